"""What an objective reads, and what it promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .._types import SoftPromptError

OF_ONE_INPUT = frozenset({"unprompted", "head_rows"})  # needs that are about the state of one input


@dataclass(frozen=True)
class PromptedOutput:
    """What one training pass shows to objectives.

    Attributes:
        virtual: layer -> [1 or B, P, H], the virtual tokens that entered there, in the order of layers.
        tokens: [B, S, H], the states of the tokens where they meet the first of these virtual tokens.
        real: [B, S], the tokens that count, without padding and without the answer of a causal language model.
        representation: [B, H], the last layer's state for the head in the prompted pass; [B, 2H] where two texts are read apart.
        head_states: [B, H] or [B, 2H] each, the states of all layers that the head reads, where it reads others than the last and an
            objective needs them.
        unprompted: [B, H] or None, the same state of the bare backbone; only where an objective needs it.
        head_rows: [C, H] or None, the vectors that the head compares states with: its weight, or embeddings of label words.
        logits: logits of the model; None where only the loss is wanted and no objective needs them.
        labels: labels that the model was given.
    """

    virtual: Mapping[int, Tensor]
    tokens: Tensor
    real: Tensor
    representation: Tensor
    unprompted: Tensor | None = None
    head_rows: Tensor | None = None
    logits: Tensor | None = None
    labels: Tensor | None = None
    head_states: tuple[Tensor, ...] = ()

    @property
    def first_virtual(self) -> Tensor:
        """Return the virtual tokens of the first layer [B, P, H], one prompt for each input."""
        virtual = next(iter(self.virtual.values())).float()
        return virtual.expand(len(self.tokens), *virtual.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A term beside the task's loss: ``weight (1 - decay progress) term``, on every ``every``-th step.

    An objective is a value: it has no parameters. What it learns are critics, which the `ObjectiveSet` owns. Its fields are the
    options of `softprompt.objective`.

    Args:
        weight: weight of the term.
        decay: share of the weight that is gone at the end of training.
        every: number of steps between two evaluations.

    Raises:
        SoftPromptError: ``every`` is below 1.
    """

    name: ClassVar[str]
    compares_rows: ClassVar[bool] = (
        False  # by their classes: it wants several of each in a batch, and nothing of the head
    )
    needs: ClassVar[frozenset[str]] = frozenset()  # of "unprompted", "head_rows", "head_states", "logits"

    weight: float
    decay: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SoftPromptError(
                f"objective {self.name!r}: every counts steps and must be at least 1, got {self.every}."
            )

    @abstractmethod
    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        """Compute the term, a scalar; ``critics`` holds the critics that `critics` names."""

    def critics(self, hidden_size: int) -> dict[str, Callable[[], nn.Module]]:
        """Return a maker for each critic, by its name; objectives that name the same critic share it."""
        return {}

    def factor(self, progress: float, step: int) -> float:
        return self.weight * (1.0 - self.decay * progress) if step % self.every == 0 else 0.0


class ObjectiveSet(nn.Module):
    """The objectives of one adapter with the critics that they share.

    Args:
        objectives: the objectives, in the order of the config.
        hidden_size: H of the backbone.

    Attributes:
        critics: modules by name; they are trained with the prompt, and are of no use without it.
        progress: share of the training that is done.
        step: number of steps done. Only these two change while a run goes: a callback sets both as a step begins.
    """

    def __init__(self, objectives: Sequence[Objective], hidden_size: int):
        super().__init__()
        self.objectives, self.critics = tuple(objectives), nn.ModuleDict()
        for objective in self.objectives:
            for name, make in objective.critics(hidden_size).items():
                if name not in self.critics:  # made once: a second one would draw, and move all draws after it
                    self.critics[name] = make()
        self.progress, self.step = 0.0, 0

    @property
    def needs(self) -> frozenset[str]:
        """Return what the objectives read that act on this step."""
        acting = (objective.needs for objective in self.objectives if objective.factor(self.progress, self.step))
        return frozenset().union(*acting)

    def ever_needs(self, what: str) -> bool:
        """Say whether any objective reads ``what`` on some step."""
        return any(what in objective.needs for objective in self.objectives)

    def forward(self, seen: PromptedOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum, and each term by its name, unweighted and detached."""
        total, terms = seen.representation.new_zeros(()), {}
        for objective in self.objectives:
            if factor := objective.factor(self.progress, self.step):
                term = objective(seen, self.critics)
                total = total + factor * term
                terms[objective.name] = term.detach()
        return total, terms


def info_nce(positive: Tensor, negative: Tensor, valid: Tensor | None = None) -> Tensor:
    """Compute ``-log softmax`` of the positive among all candidates, per row, in nats; 0 where a row has no negative.

    Shapes: positive [B]; negative [B, K]; valid [B, K], True for candidates that count.

    ``log(1 + count) - loss`` is a lower bound of the divergence KL(positive || candidates) (van den Oord et al. 2018, arXiv
    1807.03748). It is one of mutual information only where candidates are draws of the positive's own marginal. Both bounds
    hold for candidates that are drawn independently of each other and of the positive.
    """
    if valid is not None:
        negative = negative.masked_fill(~valid, -torch.inf)
    scores = torch.cat([positive.unsqueeze(1), negative], 1)
    return scores.logsumexp(1) - positive
