"""One state for a whole input."""

from __future__ import annotations

import torch
from torch import Tensor

POOLINGS = ("mean", "cls", "last")


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Pool hidden states [B, S, H] over the real tokens of ``mask`` [B, S] to [B, H]."""
    if mask is None:
        mask = states.new_ones(states.shape[:2])
    real = mask != 0
    if pooling == "mean":
        weights = real.unsqueeze(-1).to(states)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
    at = torch.arange(mask.shape[1], device=mask.device).expand_as(real)
    index = at.masked_fill(~real, mask.shape[1]).amin(1) if pooling == "cls" else at.masked_fill(~real, -1).amax(1)
    return states[torch.arange(len(states), device=states.device), index.clamp(0, mask.shape[1] - 1)]
