"""The active adapter: its prompt, and what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .._types import AnnounceOnce, SoftPromptError
from ..objectives import ObjectiveSet
from ..prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Facts of an adapter that are read after its config was attached.

    Attributes:
        representation: the state of an input that its head reads.
        consistency: weight of the consistency of a gated prompt.
        shared_prefix: whether inputs may share a pass of the prompt.
        label_only_logits: whether logits may be left out where no label is.
        learning_rates: rates of parameter groups.
    """

    representation: str
    consistency: float
    shared_prefix: bool
    label_only_logits: bool
    learning_rates: dict[str, float]


@dataclass(frozen=True)
class Adapter:
    """An adapter whose prompt is placed, with what is minimised beside its loss."""

    name: str
    prompt: Prompt
    objectives: ObjectiveSet | None
    settings: Settings

    @property
    def consistency(self) -> float:
        """Weight of the consistency loss; 0 for a prompt without gates."""
        return 0.0 if self.prompt.gate_logits is None else self.settings.consistency

    @property
    def adds_terms(self) -> bool:
        """Whether training calls are recorded: gates are being learned, or objectives read them."""
        return self.prompt.gate_logits is not None or self.objectives is not None

    @property
    def reads_logits(self) -> str | None:
        """What, of all that is added to a training loss, reads logits; None for nothing."""
        if self.consistency:
            return "the consistency of a gated prompt compares logits"
        return (
            "an objective reads logits" if self.objectives is not None and "logits" in self.objectives.needs else None
        )


def check_trained_together(adapters: Sequence[Adapter], tell: AnnounceOnce) -> None:
    """Refuse adapters whose objectives a mixed batch would leave out; say which of them take no gradient.

    Raises:
        SoftPromptError: one has objectives or gates.
    """
    for adapter in adapters:
        if adapter.adds_terms:
            raise SoftPromptError(
                f"adapter_names: {adapter.name} is trained with objectives or gates, which read whole batches, and a mixed batch trains the loss of the task alone; train it by itself, or with objectives=[]."
            )
    still = [one.name for one in adapters if not any(p.requires_grad for p in one.prompt.parameters())]
    if still and torch.is_grad_enabled():
        names = [adapter.name for adapter in adapters]
        tell(
            f"{', '.join(still)}: not trained",
            f"these adapters take no gradient in mixed batches; model.set_requires_grad({names}, True) lets all of them learn",
        )
