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
    """The mean cosine of a virtual token to its nearest token in another run, both ways; of runs of one width, at their first layer."""
    clouds: dict[str, torch.Tensor] = {}
    for run in runs:
        try:
            prefix = read_prompt(run.folder)().prefix.detach()
        except SoftPromptError:  # not of this library, or not there: its section says so
            continue
        if len(prefix):
            clouds[run.name] = prefix[0].float()
    widths = [cloud.shape[1] for cloud in clouds.values()]
    names = [name for name, cloud in clouds.items() if cloud.shape[1] == max(set(widths), key=widths.count)]
    if len(names) < 2:
        return None
    values = [[nearest_both_ways(clouds[a], clouds[b]) for b in names] for a in names]
    note = "Mean cosine of a virtual token to the nearest one of the other run, both ways."
    return heat_figure("Similarity of the prompts", values, names, names, "run", "run", note)
