"""A prompt as a point cloud, and the controls of the TSLoss paper (arXiv 2602.16500): its norm and its distances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._types import SoftPromptError
from ._base import Critics, Objective, PromptedOutput


class CloudObjective(Objective):
    """An objective that reads each layer's virtual tokens as a point cloud [P, H], and takes the mean over clouds.

    Args:
        layers: the layers to read, of those that the prompt enters; None reads all.
        weight, decay, every: as for `Objective`.
    """

    def __init__(self, weight: float, decay: float, every: int, layers: Sequence[int] | None):
        super().__init__(weight, decay, every)
        self.layers = None if layers is None else list(layers)

    def clouds(self, seen: PromptedOutput) -> Tensor:
        """[K, P, H] in float32: one cloud per layer, and per row where prompts differ between rows.

        Raises:
            SoftPromptError: the prompt does not enter a layer of ``layers``.
        """
        wanted = list(seen.rows) if self.layers is None else self.layers
        if missing := sorted(set(wanted) - set(seen.rows)):
            raise SoftPromptError(
                f"objective {self.name!r} reads the layers {wanted}, but the prompt enters {list(seen.rows)}; name layers of these, without {missing}."
            )
        found = [seen.rows[layer].float() for layer in wanted]
        most = max(map(len, found))  # a layer whose rows share one cloud counts as much as one with a cloud for each
        return torch.cat([rows.expand(most, *rows.shape[1:]) for rows in found])


def distances(cloud: Tensor, eps: float) -> Tensor:
    """``D_ij = sqrt(||p_i - p_j||^2 + eps)`` [K, P, P] of clouds [K, P, H].

    Differences, not a Gram matrix: P is small, and rows that lie close together must not cancel. eps gives equal rows a
    gradient.
    """
    return ((cloud.unsqueeze(2) - cloud.unsqueeze(1)).square().sum(-1) + eps).sqrt()


def of_pairs(d: Tensor) -> Tensor:
    """The distances [K, P (P - 1) / 2] over i < j of [K, P, P]."""
    return d[:, torch.ones(d.shape[1:], dtype=torch.bool, device=d.device).triu(1)]


class NormControl(CloudObjective):
    """``mean_j ||p_j||^2``: the L2 control of the TSLoss paper (arXiv 2602.16500). A scalar; unit: squared length."""

    name = "l2"

    def __init__(
        self,
        critics: Critics,
        hidden_size: int,
        weight: float = 0.01,
        decay: float = 0.0,
        every: int = 1,
        layers: Sequence[int] | None = None,
    ):
        super().__init__(weight, decay, every, layers)

    def forward(self, seen: PromptedOutput) -> Tensor:
        return self.clouds(seen).square().sum(-1).mean()


class PairControl(CloudObjective):
    """``mean_{i < j} D_ij``: the pairwise-distance control of the TSLoss paper (arXiv 2602.16500). A scalar; unit: length.

    A prompt of one token has no pairs: 0.
    """

    name = "pairwise"

    def __init__(
        self,
        critics: Critics,
        hidden_size: int,
        weight: float = 0.1,
        decay: float = 0.0,
        every: int = 1,
        layers: Sequence[int] | None = None,
        eps: float = 1e-12,
    ):
        super().__init__(weight, decay, every, layers)
        self.eps = eps

    def forward(self, seen: PromptedOutput) -> Tensor:
        clouds = self.clouds(seen)
        if clouds.shape[1] < 2:
            return clouds.sum() * 0.0
        return of_pairs(distances(clouds, self.eps)).mean()
