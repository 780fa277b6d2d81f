"""How alike the prompts of several runs are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._types import SoftPromptError
from ..tuner import read_prompt
from .figures import Figure, heat_figure
from .look import nearest_both_ways
from .runs import Run


def similarity(runs: Sequence[Run]) -> Figure | None:
    """The mean cosine of a virtual token to its nearest token in another run, both ways, at the first layer.

    Compared are the prompts that lie in one space: of one backbone, from the same first layer on, not made from the input.
    """
    spaces: dict[tuple[object, ...], dict[str, torch.Tensor]] = {}
    for run in runs:
        try:
            prompt = read_prompt(run.folder)
        except SoftPromptError:  # not of this library, or not there: its section says so
            continue
        prefix = prompt().prefix.detach()
        if len(prefix) and not prompt.depends_on_input:
            space = (run.facts.get("backbone"), prompt.layers[0], prefix.shape[-1])
            spaces.setdefault(space, {})[run.name] = prefix[0].float()
    clouds = max(spaces.values(), key=len, default={})
    if len(clouds) < 2:
        return None
    names = [f"{i} {name}" for i, name in enumerate(clouds, 1)]
    values = [[nearest_both_ways(a, b) for b in clouds.values()] for a in clouds.values()]
    note = "Mean cosine of a virtual token to the nearest one of the other run, both ways, at the first layer."
    columns = [str(i) for i in range(1, len(names) + 1)]
    return heat_figure("Similarity of the prompts", values, names, columns, "run", "run", note)
