"""Draw rows of one class together, and rows of two apart (supervised contrastive learning, Khosla et al. 2020, arXiv 2004.11362)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._types import SoftPromptError
from ._base import Objective, PromptedOutput


@dataclass(frozen=True, kw_only=True)
class SupervisedContrast(Objective):
    """Within a batch, representations of one class attract each other, and those of different classes repel each other.

    ::

        z_i = [h_i1 / ||h_i1||, ..., h_ik / ||h_ik||] / sqrt(k)
        L = mean_i -1/|P(i)| sum_(p in P(i)) log( exp(<z_i, z_p> / T) / sum_(a != i) exp(<z_i, z_a> / T) )

    h_i1 to h_ik are the states of row i at the k layers that the head reads, so that <z_i, z_p> is the mean of their cosines;
    k = 1 where it reads the last layer alone. P(i) are the other rows of i's class; rows without any are left out, and a batch without a pair adds 0.

    Args:
        weight, share, decay, every: as for `Objective`. At its weight of 1 the prompt follows this term more than the task's loss: on
            the embedded encoder its gradient is 3 to 13 times as large.
        temperature: T.

    Shapes: states h [B, H] of each layer, labels [B], a scalar in nats.

    Raises:
        SoftPromptError: a batch has not one label per row.

    Source: arXiv 2004.11362, equation 2 (exact). Differs from the paper: h is what the head reads, of several layers where it reads
    several, without a projection network and without augmented copies of a row.
    """

    name = "contrastive"
    compares_rows = True
    needs = frozenset({"head_states"})
    weight: float = 1.0
    temperature: float = 0.1

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        layers = seen.head_states or (seen.representation,)
        labels = seen.labels
        states = torch.cat([F.normalize(state.float(), dim=-1) for state in layers], -1) / len(layers) ** 0.5
        if labels is None or labels.shape != states.shape[:1]:
            got = "none" if labels is None else list(labels.shape)
            raise SoftPromptError(
                f"objective 'contrastive' compares rows by their class: expected labels of shape [{len(states)}], got {got}; it suits classification only."
            )
        itself = torch.eye(len(states), dtype=torch.bool, device=states.device)
        same = (labels.unsqueeze(1) == labels) & ~itself
        scores = (states @ states.T / self.temperature).masked_fill(itself, -torch.inf).log_softmax(1)
        counts = same.sum(1)
        if not bool(counts.any()):  # a batch of one row has no softmax either
            return states.sum() * 0.0
        each = -scores.masked_fill(~same, 0.0).sum(1) / counts.clamp(min=1)
        return each[counts > 0].mean()
