"""The exact persistent homology of a prompt as an objective; TSLoss (arXiv 2602.16500) has a surrogate for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._types import SoftPromptError, check_choice
from ..topology.diagrams import persistent_entropy, wasserstein
from ..topology.rips import DEGREES, METRICS, persistence
from ._base import PromptedOutput
from .cloud import CloudObjective

STATISTICS = ("total", "variance", "entropy", "target")


@dataclass(frozen=True, kw_only=True)
class PersistenceObjective(CloudObjective):
    """A statistic of the finite Vietoris-Rips bars of the virtual tokens, with gradients through the critical edges.

    ::

        l        = lifetimes of the bars of ``degrees``, divided by the detached mean lifetime of H0 if ``scale_free``
        total    = sum l
        variance = Var(l)
        entropy  = -sum q ln q,  q = l / sum l
        target   = W_1(diagram, target)

    A negative weight maximises. A prompt of one token has no bars: the term is 0.

    Args:
        statistic: "total", "variance", "entropy" or "target".
        degrees: degrees of the bars: 0 (components), 1 (loops), or both.
        metric: "euclidean" or "cosine".
        scale_free: divide by the detached mean lifetime of H0, so that one weight suits every backbone.
        target: bars (birth, death) that the prompt's bars come near to. They are of the one degree in ``degrees``, and in units
            of the scaled diagram.
        weight, decay, every, layers: as for `CloudObjective`.

    Shapes: a scalar; unit: length, squared length for the variance, nats for the entropy; none if ``scale_free``.

    Raises:
        SoftPromptError: a statistic, degree or metric is unknown; the target's bars are none; or it is for two degrees.

    Source: Vietoris-Rips persistence; not in the TSLoss paper.
    """

    name = "persistence"
    weight: float = 0.01
    statistic: str = "total"
    degrees: Sequence[int] = (0, 1)
    metric: str = "euclidean"
    scale_free: bool = True
    target: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("statistic", self.statistic, STATISTICS)
        check_choice("metric", self.metric, METRICS)
        for degree in self.degrees:
            check_choice("degree", degree, DEGREES)
        target = self.target is not None
        if (self.statistic == "target") != target or (target and len(self.degrees) != 1):
            raise SoftPromptError(
                f"statistic='target' and a target diagram of one degree go together: expected both or neither, got statistic={self.statistic!r}, degrees={list(self.degrees)}, target={self.target!r}."
            )
        bars = self.target_bars()
        if bars.dim() != 2 or bars.shape[1] != 2 or bool((bars[:, 1] < bars[:, 0]).any()):
            raise SoftPromptError(f"target: expected bars [birth, death] with birth <= death, got {self.target!r}.")

    def target_bars(self) -> Tensor:
        """Return the target's births and deaths [K, 2]; without a target K is 0."""
        return torch.tensor([list(map(float, bar)) for bar in self.target]) if self.target else torch.zeros(0, 2)

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        clouds = self.clouds(seen)
        if clouds.shape[1] < 2:
            return clouds.sum() * 0.0
        return torch.stack([self._of(cloud) for cloud in clouds]).mean()

    def _of(self, cloud: Tensor) -> Tensor:
        bars = persistence(cloud, self.metric, max(self.degrees))
        scale = bars.lifetimes(0).detach().mean() if self.scale_free else cloud.new_ones(())
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # equal points
        if self.statistic == "target":
            return wasserstein(bars.diagram(self.degrees[0]) / scale, self.target_bars().to(cloud))
        lifetimes = torch.cat([bars.lifetimes(degree) for degree in self.degrees]) / scale
        if self.statistic == "total":
            return lifetimes.sum()
        return lifetimes.var(unbiased=False) if self.statistic == "variance" else persistent_entropy(lifetimes)
