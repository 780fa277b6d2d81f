"""What one call of the whole model carries, and how calls are made for now."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..objectives import PromptedOutput
from .labelled import LabelledPass
from .record import Record


@dataclass(frozen=True)
class Mode:
    """How calls are made for now; `PromptState.within` alone changes it.

    Attributes:
        terms: whether objectives are added to a training loss.
        loss_only: whether of a call only the loss is read.
        watched: needs of objectives that only look on, and the list that gets what they would see; None: nobody looks on.
        source: inside ``generate``, the number of tokens that it was given: these are the source, all others are answers or
            guesses at them. None outside of it.
    """

    terms: bool = True
    loss_only: bool = False
    watched: tuple[frozenset[str], list[PromptedOutput]] | None = None
    source: int | None = None


@dataclass
class ModelCall:
    """One call of the whole model, from `PromptState.begin` to `PromptState.finish`.

    Attributes:
        labels: the labels that came with it.
        unprompted: the unprompted states [B, H], given by the caller or made by the pass.
        below: the tokens' states [B, S, H] at the prompt's first layer, if the caller gave them.
        record: what objectives will read; None where nobody asks.
        labelled: the pass that makes logits at labels alone; None where all logits are made.
        entered: whether the model has called the stack.
    """

    labels: Tensor | None = None
    unprompted: Tensor | None = None
    below: Tensor | None = None
    record: Record | None = None
    labelled: LabelledPass | None = None
    entered: bool = False
