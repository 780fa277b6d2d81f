"""The exact persistent homology of a prompt as an objective: what TSLoss (arXiv 2602.16500) has a surrogate for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._types import SoftPromptError, check_choice
from ..topology.diagrams import persistent_entropy, wasserstein
from ..topology.rips import DEGREES, METRICS, persistence
from ._base import Critics, PromptedOutput
from .cloud import CloudObjective

STATISTICS = ("total", "variance", "entropy", "target")


class PersistenceObjective(CloudObjective):
    """A statistic of the finite Vietoris-Rips bars of the virtual tokens, with gradients through the critical edges.

    ::

        l        = lifetimes of the bars of ``degrees``, divided by the detached mean lifetime of H0 if ``scale_free``
        total    = sum l
        variance = Var(l)
        entropy  = -sum q ln q,  q = l / sum l
        target   = W_1(diagram, target)

    A negative weight maximises. A prompt of one token has no bars: 0.

    Args:
        statistic: "total", "variance", "entropy" or "target".
        degrees: of the bars: 0 (components), 1 (loops), or both.
        metric: "euclidean" or "cosine".
        scale_free: divide by the detached mean lifetime of H0, so that one weight suits every backbone.
        target: bars (birth, death) to come near to, of the one degree of ``degrees``, in units of the scaled diagram.
        weight, decay, every, layers: as for `CloudObjective`.

    Shapes: a scalar; unit: length, squared length for the variance, nats for the entropy; none if ``scale_free``.

    Raises:
        SoftPromptError: an unknown statistic, degree or metric; a target of bars that are none, or for two degrees.

    Source: Vietoris-Rips persistence; not in the TSLoss paper.
    """

    name = "persistence"

    def __init__(
        self,
        critics: Critics,
        hidden_size: int,
        weight: float = 0.01,
        decay: float = 0.0,
        every: int = 1,
        layers: Sequence[int] | None = None,
        statistic: str = "total",
        degrees: Sequence[int] = (0, 1),
        metric: str = "euclidean",
        scale_free: bool = True,
        target: Sequence[Sequence[float]] | None = None,
    ):
        super().__init__(weight, decay, every, layers)
        check_choice("statistic", statistic, STATISTICS)
        check_choice("metric", metric, METRICS)
        for degree in degrees:
            check_choice("degree", degree, DEGREES)
        if (statistic == "target") != (target is not None) or (target is not None and len(degrees) != 1):
            raise SoftPromptError(
                f"statistic='target' and a target diagram of one degree go together: expected both or neither, got statistic={statistic!r}, degrees={list(degrees)}, target={target!r}."
            )
        bars = torch.zeros(0, 2) if not target else torch.tensor([list(map(float, bar)) for bar in target])
        if bars.dim() != 2 or bars.shape[1] != 2 or bool((bars[:, 1] < bars[:, 0]).any()):
            raise SoftPromptError(f"target: expected bars [birth, death] with birth <= death, got {target!r}.")
        self.statistic, self.degrees, self.metric, self.scale_free = statistic, list(degrees), metric, scale_free
        self.target = bars

    def forward(self, seen: PromptedOutput) -> Tensor:
        clouds = self.clouds(seen)
        if clouds.shape[1] < 2:
            return clouds.sum() * 0.0
        return torch.stack([self._of(cloud) for cloud in clouds]).mean()

    def _of(self, cloud: Tensor) -> Tensor:
        found = persistence(cloud, self.metric, max(self.degrees))
        scale = found.lifetimes(0).detach().mean() if self.scale_free else cloud.new_ones(())
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # equal points
        if self.statistic == "target":
            return wasserstein(found.diagram(self.degrees[0]) / scale, self.target.to(cloud))
        lifetimes = torch.cat([found.lifetimes(degree) for degree in self.degrees]) / scale
        if self.statistic == "total":
            return lifetimes.sum()
        return lifetimes.var(unbiased=False) if self.statistic == "variance" else persistent_entropy(lifetimes)
