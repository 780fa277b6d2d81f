"""The exact persistent homology of a prompt as an objective; TSLoss (arXiv 2602.16500) has a surrogate for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .._types import SoftPromptError, check_choice
from ..topology.diagrams import persistent_entropy, wasserstein
from ..topology.rips import DEGREES, METRICS, Persistence, persistence
from ._base import PromptedOutput
from .cloud import CloudObjective

STATISTICS = ("variance", "entropy", "total", "target")
SCALES = ("mean", "start", "detached")
SCALE = "persistence_scale"
REACHED = 0.01  # of the sum of lifetimes: a target may be given with so few digits


class Scale(nn.Module):
    """The mean lifetime of H0 when training began, by which lifetimes are divided from then on; checkpoints hold it."""

    start: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("start", torch.zeros(()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Forget it."""
        self.start.zero_()

    def of(self, lifetimes: Tensor) -> Tensor:
        """Return the mean at the start; ``lifetimes`` are of the start where there were none before."""
        if not bool(self.start > 0):
            self.start.copy_(lifetimes.detach().mean())
        return self.start


@dataclass(frozen=True, kw_only=True)
class PersistenceObjective(CloudObjective):
    """A statistic of the finite Vietoris-Rips bars of the virtual tokens, with gradients through the critical edges.

    ::

        l        = lifetimes of the bars of ``degrees``, divided by a scale s
        variance = Var(l)                             even bars, of degree 0
        entropy  = -sum q ln q,  q = l / sum l        a few long bars; even ones if it is maximised. No scale changes it.
        total    = sum max(l, ``keep``)               short bars, but none shorter than keep s
        target   = W_1(diagram, target)

    s is the mean lifetime of H0 ("mean", with its gradient), that mean when training began ("start"), or without its gradient
    ("detached"). With "mean" the gradient has no part along the size of the prompt; an optimizer that scales it coordinate by
    coordinate, as Adam does, still lets the prompt grow slowly. With
    "detached" the value does not change with the size and the gradient does: a minimised term pulls with a force of 1 / s until
    all virtual tokens are one. A fixed "start" and ``keep`` end that: bars of half the first mean lifetime count as short enough.

    A negative weight or share maximises. A prompt of one token has no bars: the term is 0.

    Args:
        statistic: "variance", "entropy", "total" or "target".
        degrees: degrees of the bars: 0 (components), 1 (loops), or both.
        metric: "euclidean" or "cosine".
        scale_free: divide by s at all, so that one weight suits every backbone.
        scale: "mean", "start" or "detached".
        keep: of "total" with the scale "start": below it lifetimes have no gradient.
        target: bars (birth, death) that the prompt's bars come near to. They are of the one degree in ``degrees``, and in units
            of the scaled diagram; over "mean" the lifetimes of degree 0 sum to P - 1, and so must these.
        weight, share, decay, every, layers: as for `CloudObjective`.

    Shapes: a scalar; unit: length, squared length for the variance, nats for the entropy; none if ``scale_free``.

    Raises:
        SoftPromptError: a statistic, degree, metric or scale is unknown; the target's bars are none, or it is for two degrees;
            the value is a constant (the total of H0 over its own mean), or jumps (the variance with loops).

    Source: Vietoris-Rips persistence; not in the TSLoss paper.
    """

    name = "persistence"
    weight: float = 0.01
    statistic: str = "variance"
    degrees: Sequence[int] = (0,)
    metric: str = "euclidean"
    scale_free: bool = True
    scale: str = "mean"
    keep: float = 0.5
    target: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("statistic", self.statistic, STATISTICS)
        check_choice("metric", self.metric, METRICS)
        check_choice("scale", self.scale, SCALES)
        if not self.degrees:
            raise SoftPromptError("degrees: expected degrees of bars such as [0] or [0, 1], got none.")
        for degree in self.degrees:
            check_choice("degree", degree, DEGREES)
        if self.statistic == "variance" and tuple(self.degrees) != (0,):
            raise SoftPromptError(
                f"statistic='variance' is of degree 0, whose bars are always P - 1: a loop is born with a lifetime of 0, and moves a variance by a jump that no gradient sees; expected degrees=[0], or another statistic, got degrees={list(self.degrees)}."
            )
        if self.statistic == "total" and tuple(self.degrees) == (0,) and self._scale == "mean":
            raise SoftPromptError(
                "statistic='total' of degree 0 over its own mean (scale='mean') is the number of bars, whatever the prompt: expected scale='start', or another statistic."
            )
        target = self.target is not None
        if (self.statistic == "target") != target or (target and len(self.degrees) != 1):
            raise SoftPromptError(
                f"statistic='target' and a target diagram of one degree go together: expected both or neither, got statistic={self.statistic!r}, degrees={list(self.degrees)}, target={self.target!r}."
            )
        if any(len(bar) != 2 or bar[1] < bar[0] for bar in self.target or ()):
            raise SoftPromptError(f"target: expected bars [birth, death] with birth <= death, got {self.target!r}.")

    def target_bars(self) -> Tensor:
        """Return the target's births and deaths [K, 2]; without a target K is 0."""
        return torch.tensor([list(bar) for bar in self.target]) if self.target else torch.zeros(0, 2)

    @property
    def _scale(self) -> str:
        return self.scale if self.scale_free else "none"

    def critics(self, hidden_size: int) -> dict[str, Callable[[], nn.Module]]:
        return {SCALE: Scale} if self._scale == "start" else {}

    @property
    def least_tokens(self) -> int:  # type: ignore[override]
        """Two tokens have one bar: as even as it can be, and 1 where it is measured by its own mean."""
        by_itself = self.scale_free and self.scale == "mean"
        return 2 if self.statistic in ("total", "target") and not by_itself else 3

    def doubts(self, num_virtual_tokens: int) -> Iterator[tuple[str, str]]:
        yield from super().doubts(num_virtual_tokens)
        if 0 not in self.degrees:
            yield (
                "objective 'persistence' may do nothing",
                "degrees=[1] reads loops alone, and rows of a vocabulary, where prompts start, hardly ever form one: without a loop there is no gradient",
            )
        bars, target = num_virtual_tokens - 1, sum(death - birth for birth, death in self.target or ())
        if (
            self.target
            and tuple(self.degrees) == (0,)
            and self._scale == "mean"
            and abs(target - bars) > REACHED * bars
        ):
            yield (
                "objective 'persistence' cannot reach its target",
                f"over their own mean (scale='mean') the lifetimes of {num_virtual_tokens} virtual tokens sum to {bars}, those of the target to {target:g}; scale='start' has no such sum",
            )

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        clouds = self.clouds(seen)
        if clouds.shape[1] < 2:
            return clouds.sum() * 0.0
        bars = [persistence(cloud, self.metric, max(self.degrees)) for cloud in clouds]
        return torch.stack([self._of(of_cloud, self._unit(of_cloud, bars, critics)) for of_cloud in bars]).mean()

    def _unit(self, bars: Persistence, every: Sequence[Persistence], critics: nn.ModuleDict) -> Tensor:
        """Return s of one cloud's bars, above 0; the start is the mean over ``every`` cloud."""
        mean = bars.lifetimes(0).mean()
        if self._scale == "none":
            return torch.ones_like(mean)
        if self._scale == "start":
            mean = cast(Scale, critics[SCALE]).of(torch.cat([others.lifetimes(0) for others in every]))
        scale = mean if self._scale == "mean" else mean.detach()
        return torch.where(scale > 0, scale, torch.ones_like(scale))  # equal points

    def _of(self, bars: Persistence, scale: Tensor) -> Tensor:
        if self.statistic == "target":
            return wasserstein(bars.diagram(self.degrees[0]) / scale, self.target_bars().to(scale))
        lifetimes = torch.cat([bars.lifetimes(degree) for degree in self.degrees]) / scale
        if self.statistic == "total":
            return (lifetimes.clamp(min=self.keep) if self._scale == "start" else lifetimes).sum()
        return lifetimes.var(unbiased=False) if self.statistic == "variance" else persistent_entropy(lifetimes)
