"""TSLoss: keep the shape of a prompt connected and without redundancy (Huang et al., arXiv 2602.16500)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._base import PromptedOutput
from .cloud import CloudObjective, distances, of_pairs


@dataclass(frozen=True, kw_only=True)
class TSLoss(CloudObjective):
    """Keep virtual tokens evenly connected, and their distances within a band.

    ::

        D_ij    = sqrt(||p_i - p_j||^2 + eps), divided by its detached mean over i < j if ``scale_free``
        w_ij    = softmax_{j != i}(-alpha D_ij),  d_i = sum_j w_ij D_ij
        L_conn  = Var_i(d_i)                                                         connectivity
        tau_low = sum softmax(-alpha D) D,  tau_high = sum softmax(alpha D) D        over i < j, without their gradient
        L_red   = mean[(tau_low - D)_+ + (D - tau_high)_+]                           redundancy, over i < j
        L       = l1 L_conn + l2 L_red

    A prompt of one or two tokens has no shape: L = 0.

    Args:
        l1, l2: weights of L_conn and L_red.
        alpha: sharpness of the soft minimum and maximum.
        eps: added under the root.
        scale_free: divide distances by their detached mean, so that alpha, l1 and l2 suit every backbone.
        weight, decay, every, layers: as for `CloudObjective`.

    Shapes: a scalar; unit: distance (squared for L_conn), or none if ``scale_free``.

    Source: arXiv 2602.16500 describes both parts in words (stated). Differs from the paper: alpha, l1, l2, the scale and the
    detached band are chosen. j = i is masked: the paper's equation lets it in, and it would pull every d_i to 0.
    """

    name = "ts_loss"
    least_tokens = 3  # two have one distance, which is its own band
    weight: float = 1.0
    l1: float = 0.1
    l2: float = 0.1
    alpha: float = 10.0
    eps: float = 1e-12
    scale_free: bool = True

    def doubts(self, num_virtual_tokens: int) -> Iterator[tuple[str, str]]:
        yield from super().doubts(num_virtual_tokens)
        if not (self.l1 or self.l2):
            yield f"objective {self.name!r} does nothing", "its l1 and l2 are 0"

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        clouds = self.clouds(seen)
        if clouds.shape[1] < 2:
            return clouds.sum() * 0.0
        d = distances(clouds, self.eps)
        if self.scale_free:
            d = d / of_pairs(d).mean(1).detach().clamp(min=self.eps).view(-1, 1, 1)
        return self.l1 * self.connectivity(d).mean() + self.l2 * self.redundancy(of_pairs(d)).mean()

    def connectivity(self, d: Tensor) -> Tensor:
        """Compute L_conn [K] from distances [K, P, P]."""
        itself = torch.eye(d.shape[-1], dtype=torch.bool, device=d.device)
        weights = torch.softmax((-self.alpha * d).masked_fill(itself, -torch.inf), dim=-1)
        return (weights * d).sum(-1).var(-1, unbiased=False)

    def redundancy(self, pairs: Tensor) -> Tensor:
        """Compute L_red [K] from the distances [K, P (P - 1) / 2] of all pairs."""
        low = (torch.softmax(-self.alpha * pairs, dim=-1) * pairs).sum(-1, keepdim=True)
        high = (torch.softmax(self.alpha * pairs, dim=-1) * pairs).sum(-1, keepdim=True)
        return ((low.detach() - pairs).clamp(min=0) + (pairs - high.detach()).clamp(min=0)).mean(-1)
