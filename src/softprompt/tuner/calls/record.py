"""What the hooks see of one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Record:
    """What the hooks see of one pass, for objectives.

    Attributes:
        call: the stack's inputs as the caller gave them.
        entered: layer -> the virtual tokens [1 or B, P, H] that entered there.
        tokens, real: [B, S, H] and [B, S], what stood at the tokens of the first of these layers, and which count.
        hidden: [B, S, H], the stack's last hidden states at the tokens.
        states: [B, S, H] each, what enters the first layer and what each layer leaves, at the tokens; where the call asked for it.
    """

    call: dict[str, Any] = field(default_factory=dict)
    entered: dict[int, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None
    real: Tensor | None = None
    hidden: Tensor | None = None
    states: tuple[Tensor, ...] | None = None

    def enter(self, layer: int, virtual: Tensor, tokens: Tensor) -> None:
        """Note the virtual tokens that entered ``layer``, and the tokens [B, S, H] that stood there."""
        self.entered[layer] = virtual
        if self.tokens is None:
            self.tokens = tokens

    def leave(self, output: Any, remove: Callable[[Tensor], Tensor]) -> None:
        """Note the stack's ``output``; ``remove`` takes the prompt's positions out of states."""
        self.hidden = remove(output[0])  # the first of a tuple, and of a ModelOutput
        states = getattr(output, "hidden_states", None)
        self.states = None if states is None else tuple(map(remove, states))
