"""What one call of the whole model carries, and how calls are made for now."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...objectives import PromptedOutput
from ..adapter import Adapter
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
        names: the adapter of each input; None: all have the active one.
    """

    terms: bool = True
    loss_only: bool = False
    watched: tuple[frozenset[str], list[PromptedOutput]] | None = None
    source: int | None = None
    names: tuple[str, ...] | None = None


class Arguments(dict[str, Any]):
    """Arguments of a call. The frame of the call holds them, so they live as long as it runs, and a weak reference tells."""


@dataclass
class ModelCall:
    """One call of the whole model, from `PromptState.begin` to `PromptState.finish`.

    Attributes:
        adapter: the one that is active as the call begins; a switch inside the call acts on the next one. None where inputs have
            their own.
        names: the adapter of each input, where they have their own.
        labels: the labels that came with it.
        unprompted: the unprompted states [B, H], given by the caller or made by the pass.
        below: the tokens' states [B, S, H] at the prompt's first layer, if the caller gave them.
        record: what objectives will read; None where nobody asks.
        labelled: the pass that makes logits at labels alone; None where all logits are made.
        entered: whether the model has called the stack.
        arguments: a weak reference to its `Arguments`.
    """

    adapter: Adapter | None = None
    names: tuple[str, ...] | None = None
    labels: Tensor | None = None
    unprompted: Tensor | None = None
    below: Tensor | None = None
    record: Record | None = None
    labelled: LabelledPass | None = None
    entered: bool = False
    arguments: weakref.ref[Arguments] | None = None

    @property
    def runs(self) -> bool:
        """Whether the call goes on: a call that Ctrl-C has ended is still here, and its arguments are gone."""
        return self.arguments is not None and self.arguments() is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # the copy of a model has no call
