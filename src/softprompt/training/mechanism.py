"""Whether the mechanism of a method has acted in a run: the figures that ``result.json`` keeps of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from .._types import announce
from ..prompts import Prompt
from .loop.trainer import SHARE

FAR = 2.0  # times the share that was asked for


def mechanism(
    prompt: Prompt | None,
    history: Iterable[Mapping[str, Any]],
    selection: Mapping[str, Any] | None = None,
    objectives: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return what there is of these figures.

    - those of `softprompt.prompts.Prompt.mechanism`: of EPT ``fusion_entropy`` (1: uniform, the fusion tells nothing apart) and
      ``gates``;
    - ``gradient_share``: term -> the size of its gradient on the virtual tokens with the weight in force, the task's loss being 1, the mean over the
      measurements of the run (none in a run that ends before the second);
    - ``layer_scores``: layer -> the score that ranked it, and ``layer_gates``: layer -> its gate, of a search of layers.

    Args:
        prompt: of the run; None for a PEFT baseline.
        history: the trainer's log.
        objectives: entries of the config; a share that came out more than `FAR` times as large as they ask is announced.
        selection: what a search of layers has selected, as ``search/selection.json`` has it.
    """
    found = {} if prompt is None else prompt.mechanism()
    shares: dict[str, list[float]] = {}
    for entry in history:
        for key, value in entry.items():
            if key.startswith(SHARE):
                shares.setdefault(key.removeprefix(SHARE), []).append(value)
    if shares:
        finite = {name: [value for value in values if math.isfinite(value)] for name, values in shares.items()}
        found["gradient_share"] = {name: mean(values) for name, values in finite.items() if values}
        if dead := [name for name, values in finite.items() if not values]:
            announce(f"no share of {', '.join(dead)}", "its gradient was at no time finite, so the term did not act")
        for entry in objectives:
            asked, got = entry.get("share"), found["gradient_share"].get(entry["name"])
            if asked and got and got > FAR * abs(asked):
                announce(
                    f"gradient_share of {entry['name']} is {got:.2g}, {abs(asked):g} was asked for",
                    "its gradient grew between measurements; a share_every below that of the run keeps it closer",
                )
    if selection is not None:
        layers = [str(layer) for layer in selection["candidates"]]
        found["layer_scores"] = dict(zip(layers, selection["scores"], strict=True))
        found["layer_gates"] = dict(zip(layers, selection["gates"], strict=True))
    return found
