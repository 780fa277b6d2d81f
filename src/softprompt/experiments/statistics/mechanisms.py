"""Whether the mechanism of a method acted: the figures that runs have noted, by setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..._types import SoftPromptError
from .scores import Line, Scores, Setting

KEPT = "layer_kept"


@dataclass(frozen=True)
class Figure:
    """One figure of a method in a setting: its name, and what each run says, in the order of the blocks."""

    method: str
    setting: Setting
    name: str
    values: tuple[float, ...]


def mechanisms(scores: Scores) -> list[Figure]:
    """Every figure of ``extra.mechanism``, of the runs that count and have it; see `softprompt.training.mechanism.mechanism`.

    Of a search of layers there is for each candidate ``layer_kept`` (1 where the run kept it, else 0) and the score that ranked it:
    ``layer_scores``, or ``layer_gates`` of a run that notes its gates alone. A list is a figure for each of its numbers (``gates 1``), and so is a mapping for each of its names (``gradient_share tightness``).
    Figures that are not finite are left out.

    Raises:
        SoftPromptError: figures that are neither numbers nor lists or mappings of numbers.
    """
    found: dict[tuple[str, Setting, str], list[float]] = {}
    for method in scores.methods:
        for block, line in scores.lines[method].items():
            noted = (line.get("extra") or {}).get("mechanism")
            figures = _flat({} if noted is None else noted, f"{method} on {block}: extra.mechanism")
            for name, value in (*figures, *_of_search(line)):
                if math.isfinite(value):
                    found.setdefault((method, block.setting, name), []).append(value)
    return [Figure(*key, tuple(values)) for key, values in found.items()]


def _of_search(line: Line) -> Iterator[tuple[str, float]]:
    """Which candidates a search of layers kept, and their scores; nothing of a run that searched none."""
    extra = line.get("extra") or {}
    gates, kept = extra.get("gates"), extra.get("layers")
    if gates is None or kept is None:
        return
    candidates = (line.get("options") or {}).get("layers") or range(len(gates))
    ranked = "layer_gates" if extra.get("layer_scores") is None else "layer_scores"
    for layer in candidates:
        yield f"{KEPT} {layer}", float(layer in kept)
    for layer, score in zip(candidates, gates if ranked == "layer_gates" else extra["layer_scores"], strict=False):
        yield f"{ranked} {layer}", score


def _flat(figures: Any, where: str) -> Iterator[tuple[str, float]]:
    if not isinstance(figures, Mapping):
        raise _unlike(where, "figures by name", figures)
    for name, value in figures.items():
        parts = value if isinstance(value, Mapping) else dict(enumerate(value, 1)) if isinstance(value, list) else None
        for part, number in ((None, value),) if parts is None else parts.items():
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise _unlike(f"{where}.{name}", "a number, or a list or mapping of numbers", value)
            yield (name if part is None else f"{name} {part}"), number


def _unlike(where: str, expected: str, got: Any) -> SoftPromptError:
    return SoftPromptError(f"{where}: expected {expected}, got {got!r:.60}; run the cell again, or take it out.")
