"""What stands in for a model's ``generate``, so that prompts which read the input know where it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from ..._types import SoftPromptError
from ...prompts import Prompt
from .layout import is_padded_in_front

GENERATE = "generate"


class Prompted(Protocol):
    """What is asked of the state of a model's prompts."""

    def placed(self) -> list[Prompt]: ...

    def generating(self, given: int, rows: int) -> AbstractContextManager[None]: ...


class Generation:
    """The model's own ``generate``, with the length of what it is given told to the prompt.

    Passes inside cannot tell: the first one of speculative decoding holds guesses behind the source, and without a cache each
    pass holds what was generated before. It is the model's attribute, so PEFT's wrapper, transformers' ``add_adapter`` and a
    pipeline all meet it.
    """

    def __init__(self, model: nn.Module, state: Prompted, before: Callable[..., Any] | None):
        self.model, self.state, self.before = model, state, before

    @classmethod
    def around(cls, model: nn.Module, state: Prompted) -> Generation:
        """Put it in the place of ``model.generate``."""
        generation = cls(model, state, vars(model).get(GENERATE))
        setattr(model, GENERATE, generation)
        return generation

    def remove(self) -> None:
        """Put back what was there."""
        if vars(self.model).get(GENERATE) is self:
            delattr(self.model, GENERATE)
            if self.before is not None:
                setattr(self.model, GENERATE, self.before)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._check_assistant(kwargs.get("assistant_model"))
        self._check_chunks(kwargs)
        given = kwargs.get("inputs_embeds")
        if (states := kwargs.get("encoder_outputs")) is not None:
            given = states[0]
        for candidate in (args[0] if args else None, kwargs.get("inputs"), kwargs.get("input_ids")):
            given = candidate if given is None else given
        generate = self.before or getattr(type(self.model), GENERATE).__get__(self.model)
        rows, tokens = given.shape[:2] if isinstance(given, Tensor) else (1, 1)  # from the first token alone
        with self.state.generating(tokens, rows):
            return generate(*args, **kwargs)

    def _check_chunks(self, kwargs: dict[str, Any]) -> None:
        settings = kwargs.get("generation_config") or getattr(self.model, "generation_config", None)
        chunk = kwargs.get("prefill_chunk_size") or getattr(settings, "prefill_chunk_size", None)
        if chunk and any(prompt.marker is not None for prompt in self.state.placed()):
            raise SoftPromptError(
                f"prefill_chunk_size={chunk} gives the source in parts, and the marker that this prompt stands at is in one of them; leave prefill_chunk_size out."
            )
        if chunk and any(prompt.depends_on_input for prompt in self.state.placed()):
            raise SoftPromptError(
                f"prefill_chunk_size={chunk} gives the source in parts, but this prompt is made from the whole of it; leave prefill_chunk_size out."
            )
        mask = kwargs.get("attention_mask")
        if chunk and self.state.placed() and isinstance(mask, Tensor) and is_padded_in_front(mask):
            raise SoftPromptError(
                f"prefill_chunk_size={chunk} cuts a row that is padded on the left where its prompt may not stand yet; leave prefill_chunk_size out, or generate for rows of one length."
            )

    def _check_assistant(self, assistant: Any) -> None:
        parts = assistant.modules() if isinstance(assistant, nn.Module) else ()
        if any(isinstance(part, type(self.state)) and part.placed() for part in parts):
            raise SoftPromptError(
                "the assistant of speculative decoding has a prompt of its own, which its cache cannot give back between guesses: expected a bare model; pass one without adapter, or call inside its disable_adapter()."
            )
