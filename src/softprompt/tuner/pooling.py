"""One state for a whole input, and for a row of two texts that were read apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

POOLINGS = ("mean", "cls", "last")
PAIRINGS = ("joined", "apart")


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


def compare_texts(states: Tensor) -> Tensor:
    """What two texts share and where they differ, from their states [2B, H], first and second in turn, to [B, 2H].

    ``[u - v, |u - v|]`` of states u, v scaled to length sqrt(H), so that features are of the order of 1.
    """
    u, v = F.normalize(states, dim=-1).unflatten(0, (-1, 2)).unbind(1)
    return torch.cat([u - v, (u - v).abs()], -1) * states.shape[-1] ** 0.5
