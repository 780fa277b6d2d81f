"""What an objective reads, and what it promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, cast, get_type_hints

import torch
from torch import Tensor, nn

from .._types import SoftPromptError, announce
from ..typed import conform
from .shares import Balance, ReentrantError, StepGradients

SHARE_EVERY = 20  # steps; a measurement is a backward pass for the loss and for each term
LEAST = {"every": 1, "samples": 1, "latent": 1, "eps": 0, "keep": 0}  # what a number must be at least
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
        weight: weight of the term; below 0 the term is maximised.
        share: in place of a weight, the size of the term's gradient on the virtual tokens as a share of the task's loss':
            ``weight = share |g_task| / |g_term|``, below 0 as well, measured anew every `ObjectiveSet.share_every` steps; where
            gradients are accumulated, on their means over the step. A term whose gradient has faded below a hundredth of its
            second largest gets less. What a fixed weight does depends on the backbone and the head; a share does not.
        decay: share of the weight that is gone at the end of training.
        every: number of steps between two evaluations.

    Raises:
        SoftPromptError: a field has a value that it cannot have.
    """

    name: ClassVar[str]
    compares_rows: ClassVar[bool] = (
        False  # by their classes: it wants several of each in a batch, and nothing of the head
    )
    least_tokens: ClassVar[int] = 1  # virtual tokens; fewer have nothing that the term could move
    needs: ClassVar[frozenset[str]] = frozenset()  # of "unprompted", "head_rows", "head_states", "logits"

    weight: float
    share: float | None = None
    decay: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in (field.name for field in fields(self)):  # entries come from YAML and JSON
            above = 0 if name == "temperature" else None
            key = f"objective {self.name!r}: {name}"
            value = conform(key, getattr(self, name), hints[name], LEAST.get(name), above)
            object.__setattr__(self, name, value)
        if not 0 <= self.decay <= 1:
            raise SoftPromptError(
                f"objective {self.name!r}: decay is the share of the weight that goes: expected 0 to 1, got {self.decay!r}."
            )

    @abstractmethod
    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        """Compute the term, a scalar; ``critics`` holds the critics that `critics` names."""

    def critics(self, hidden_size: int) -> dict[str, Callable[[], nn.Module]]:
        """Return a maker for each critic, by its name; objectives that name the same critic share it."""
        return {}

    def doubts(self, num_virtual_tokens: int) -> Iterator[tuple[str, str]]:
        """What is surely not meant as it is set, with the reason of each, for a prompt of that length."""
        if not (self.weight if self.share is None else self.share):
            yield f"objective {self.name!r} does nothing", f"its {'weight' if self.share is None else 'share'} is 0"
        elif num_virtual_tokens < self.least_tokens:
            yield (
                f"objective {self.name!r} does nothing",
                f"it compares virtual tokens with each other: expected at least {self.least_tokens}, got num_virtual_tokens={num_virtual_tokens}",
            )
        if self.share is not None and abs(self.share) > 1:
            yield (
                f"objective {self.name!r} outweighs the task",
                f"with share={self.share:g} the size of its gradient on the virtual tokens is {abs(self.share):g} times that of the task's loss",
            )

    def factor(self, progress: float, step: int) -> float:
        """Return what the term, or the weight that is its share, counts on this step; 0 where it does not act."""
        strength = self.weight if self.share is None else self.share
        return strength * (1.0 - self.decay * progress) if step % self.every == 0 else 0.0


class ObjectiveSet(nn.Module):
    """The objectives of one adapter with the critics that they share, and the weights of those that are given as shares.

    Args:
        objectives: the objectives, in the order of the config.
        hidden_size: H of the backbone.
        share_every: steps between two measurements of the terms' shares in the gradient; 0 for none.
        first: share of the training, at its start, in which the terms alone are minimised.

    Attributes:
        critics: modules by name; they are trained with the prompt, and are of no use without it.
        balances: the weight of each objective that has a ``share``.
        progress: share of the training that is done; None where nobody says it.
        step: number of steps done. `ObjectivesCallback` sets both as a step begins; without it the calls are counted, and nothing
            decays.
        measured: name -> ``|weight g_term| / |g_task|`` of this step up to the last call, with the weight that the steps before it
            had; without those that had none yet, and empty where nothing was measured.

    Raises:
        SoftPromptError: an objective is given a share, and nothing is measured.
    """

    def __init__(
        self, objectives: Sequence[Objective], hidden_size: int, share_every: int = SHARE_EVERY, first: float = 0.0
    ):
        super().__init__()
        self.objectives, self.critics = tuple(objectives), nn.ModuleDict()
        for objective in self.objectives:
            for name, make in objective.critics(hidden_size).items():
                if name not in self.critics:  # made once: a second one would draw, and move all draws after it
                    self.critics[name] = make()
        shared = [objective.name for objective in self.objectives if objective.share is not None]
        if shared and not share_every:
            raise SoftPromptError(
                f"share_every=0 measures no gradient, but {', '.join(shared)} {'has' if len(shared) == 1 else 'have'} a share of it; give a weight in place of the share, or share_every=20."
            )
        self.balances = nn.ModuleDict({name: Balance() for name in shared})
        self.share_every, self.first = share_every, first
        self.progress: float | None = None
        self.step = 0
        self.measured: dict[str, Tensor] = {}
        self._gradients, self._held = StepGradients(step=-1), dict[str, Tensor]()
        self._announced = False

    @property
    def acting(self) -> list[tuple[Objective, float]]:
        """Return the objectives that act on this step, each with its factor."""
        factors = [(objective, objective.factor(self.progress or 0.0, self.step)) for objective in self.objectives]
        return [(objective, factor) for objective, factor in factors if factor]

    @property
    def needs(self) -> frozenset[str]:
        """Return what the objectives read that act on this step."""
        return frozenset().union(*(objective.needs for objective, _ in self.acting))

    @property
    def task_factor(self) -> float:
        """What the task's loss counts on this step: nothing while the terms come first."""
        return 0.0 if (self.progress or 0.0) < self.first else 1.0

    def ever_needs(self, what: str) -> bool:
        """Say whether any objective reads ``what`` on some step."""
        return any(what in objective.needs for objective in self.objectives)

    def forward(self, seen: PromptedOutput, task: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum, and each term by its name, unweighted and detached.

        Args:
            seen: what objectives read of a pass.
            task: the loss of that pass, against which shares are measured; None measures none.

        Raises:
            SoftPromptError: an objective has a share, and there was never a loss to measure it against; the terms come first, and
                nobody says how far training is.
        """
        if self.progress is None:
            self._without_progress()
        acting, balances = self.acting, self._balances
        terms = {o.name: o(seen, self.critics) for o, _ in acting}
        norms = self._measure(seen, task, terms)
        total, self.measured = seen.representation.new_zeros(()), {}
        for o, factor in acting:
            ratio = balances[o.name].ratio if o.name in balances else total.new_ones(())
            total = total + factor * ratio * terms[o.name]
            if norms and norms[""] > 0 and (o.name not in balances or o.name in self._held):
                # with the weight of the steps up to here: the new one gives the share that was asked for, whatever the term does
                in_force = abs(factor) * self._held.get(o.name, ratio)
                self.measured[o.name] = in_force * norms[o.name] / norms[""]
        if self.progress is None and torch.is_grad_enabled():
            self.step += 1
        return total, {name: term.detach() for name, term in terms.items()}

    def _without_progress(self) -> None:
        how = "give the trainer callbacks=[softprompt.ObjectivesCallback()], or set softprompt.prompts_of(model).active_objectives().progress at each step"
        if self.first:
            raise SoftPromptError(
                f"objectives_first={self.first:g}: expected to be told how far training is, or the task's loss would never count; {how}."
            )
        decaying = [objective.name for objective in self.objectives if objective.decay]
        if decaying and not self._announced:
            announce(f"decay=0 of {', '.join(decaying)}", f"nobody says how far training is; {how}")
            self._announced = True

    @property
    def _balances(self) -> dict[str, Balance]:
        return cast(dict[str, Balance], dict(self.balances.items()))

    def _due(self, objective: Objective) -> bool:
        """Whether this is the first step in ``share_every`` on which an objective acts."""
        every, step = self.share_every, self.step
        return every > 0 and (step - objective.every) // every < step // every

    def _measure(self, seen: PromptedOutput, task: Tensor | None, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Measure the gradients of the loss ("") and of the terms, where it is time to, and set the weights from them."""
        balances = {name: balance for name, balance in self._balances.items() if name in terms}
        unknown = [name for name, balance in balances.items() if not balance.measured]
        virtual, compiled = list(seen.virtual.values()), torch.compiler.is_compiling()
        if unknown and (task is None or compiled):
            raise SoftPromptError(
                f"the share of {', '.join(unknown)} is measured against the loss of a call, by a backward pass of its own: expected a loss, and a model that is neither compiled nor sharded by FSDP; give a weight in place of the share."
            )
        learns = torch.is_grad_enabled() and all(part.requires_grad for part in virtual)
        due = bool(unknown) or any(self._due(objective) for objective in self.objectives if objective.name in terms)
        if task is None or compiled or not learns or not terms or not due:
            return {}
        if self._gradients.step != self.step:
            self._gradients = StepGradients(self.step)
            self._held = {name: balance.ratio.clone() for name, balance in balances.items() if balance.measured}
        try:
            norms = self._gradients.add({"": task, **terms}, virtual)
        except ReentrantError:
            if self.balances:
                raise
            announce(
                "share_every=0", "reentrant gradient checkpoints know only a whole backward pass: no share is measured"
            )
            self.share_every = 0
            return {}
        for name, balance in balances.items():
            balance.measure(norms[""], norms[name])
        return norms


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
