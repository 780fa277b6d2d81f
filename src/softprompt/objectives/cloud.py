"""A prompt as a point cloud, and the controls of the TSLoss paper (arXiv 2602.16500): its norm and its distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._types import SoftPromptError
from ._base import Objective, PromptedOutput


@dataclass(frozen=True, kw_only=True)
class CloudObjective(Objective):
    """An objective that reads each layer's virtual tokens as a point cloud [P, H], and takes the mean over clouds.

    Args:
        layers: the layers to read, among those that the prompt enters; None reads all.
        weight, decay, every: as for `Objective`.
    """

    layers: Sequence[int] | None = None

    def clouds(self, seen: PromptedOutput) -> Tensor:
        """Return the clouds [K, P, H] in float32: one per layer, and one per row where prompts differ between rows.

        Raises:
            SoftPromptError: the prompt does not enter a layer of ``layers``.
        """
        wanted = list(seen.virtual if self.layers is None else self.layers)
        check_entered(self.name, wanted, list(seen.virtual))
        clouds = [seen.virtual[layer].float() for layer in wanted]
        most = max(map(len, clouds))  # a layer whose rows share one cloud counts as much as one with a cloud for each
        return torch.cat([cloud.expand(most, *cloud.shape[1:]) for cloud in clouds])


def check_entered(name: str, wanted: Sequence[int], entered: Sequence[int]) -> None:
    """Raise `SoftPromptError` where the objective ``name`` reads layers that the prompt does not enter."""
    if missing := sorted(set(wanted) - set(entered)):
        raise SoftPromptError(
            f"objective {name!r} reads the layers {list(wanted)}, but the prompt enters {list(entered)}; name layers of these, without {missing}."
        )


def distances(cloud: Tensor, eps: float) -> Tensor:
    """Compute ``D_ij = sqrt(||p_i - p_j||^2 + eps)`` [K, P, P] of clouds [K, P, H].

    It takes differences, not a Gram matrix: P is small, and points that lie close together must not cancel. eps keeps the
    gradient of equal points finite: it is 0, so points that start as equals stay so.
    """
    return ((cloud.unsqueeze(2) - cloud.unsqueeze(1)).square().sum(-1) + eps).sqrt()


def of_pairs(d: Tensor) -> Tensor:
    """Pick the distances [K, P (P - 1) / 2] over i < j from [K, P, P]."""
    return d[:, torch.ones(d.shape[1:], dtype=torch.bool, device=d.device).triu(1)]


@dataclass(frozen=True, kw_only=True)
class NormControl(CloudObjective):
    """Keep virtual tokens short: ``mean_j ||p_j||^2``, the L2 control of the TSLoss paper (arXiv 2602.16500).

    Shapes: a scalar; unit: squared length.
    """

    name = "l2"
    weight: float = 0.01

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        return self.clouds(seen).square().sum(-1).mean()


@dataclass(frozen=True, kw_only=True)
class PairControl(CloudObjective):
    """Keep virtual tokens close: ``mean_{i < j} D_ij``, the pairwise-distance control of the TSLoss paper (arXiv 2602.16500).

    Shapes: a scalar; unit: length. A prompt of one token has no pairs: the term is 0.
    """

    name = "pairwise"
    least_tokens = 2
    weight: float = 0.1
    eps: float = 1e-12

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        clouds = self.clouds(seen)
        if clouds.shape[1] < 2:
            return clouds.sum() * 0.0
        return of_pairs(distances(clouds, self.eps)).mean()
