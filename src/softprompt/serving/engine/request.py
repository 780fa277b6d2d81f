"""What is asked of an engine, what it answers, and why it may refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..._types import SoftPromptError
from ...models import Writing


class UnknownPromptError(SoftPromptError):
    """No prompt of this name is served."""


class TakenError(SoftPromptError):
    """A prompt of this name is served already."""


class TooLongError(SoftPromptError):
    """A text has more tokens than its prompt was trained for, or than the backbone has positions."""


class OverloadedError(SoftPromptError):
    """Too much is waiting.

    Attributes:
        retry_after_s: after how many seconds there may be room.
    """

    def __init__(self, message: str, retry_after_s: float):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooLateError(SoftPromptError):
    """The time of a request ran out before its answer was made."""


class ClosingError(SoftPromptError):
    """The engine takes no more requests."""


@dataclass(frozen=True)
class Request:
    """One row for one prompt.

    Attributes:
        prompt: its name.
        row: what the model reads: text (and text_pair), prompt, or tokens.
        timeout_s: seconds within which the answer is wanted; None is the engine's own limit.
        truncate: cut a text that is too long, as a prediction offline does, in place of refusing it.
        writing: of a completion.
        on_text: is given each further piece of a completion, in the engine's thread.
    """

    prompt: str
    row: Mapping[str, Any]
    timeout_s: float | None = None
    truncate: bool = False
    writing: Writing = field(default_factory=Writing)
    on_text: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Encoded:
    """A row as a model reads it.

    Attributes:
        row: the columns that were read.
        inputs: what a collator takes.
        tokens: of its texts.
        length: positions of its longest text, virtual tokens included.
        texts: inputs in a batch: 2 where texts are read apart.
        new: tokens to write.
    """

    row: dict[str, Any]
    inputs: dict[str, Any]
    tokens: int
    length: int
    texts: int = 1
    new: int = 0


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        prediction: as `softprompt.Predictor` predicts the row.
        prompt_tokens: of the text; virtual tokens are not counted.
        completion_tokens: that were written.
        finish_reason: of a completion, "stop" (it ended itself, or reached a stop text) or "length".
        queued_s: seconds before its batch began.
        computed_s: seconds from there to the answer.
    """

    prediction: dict[str, Any]
    prompt_tokens: int
    completion_tokens: int = 0
    finish_reason: str | None = None
    queued_s: float = 0.0
    computed_s: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What an engine takes on.

    Attributes:
        batch_tokens: positions of one batch, padding and virtual tokens included; one row may have more.
        batch_prompts: prompts of one batch; None mixes all.
        waiting_rows: rows that wait; one more is refused.
        writing_rows: completions that are written at once.
        cohorts: batches of completions that are written at once; each costs a pass for each token.
        new_tokens: of one completion.
        timeout_s: seconds after which a request is given up.
    """

    batch_tokens: int = 1024
    batch_prompts: int | None = None
    waiting_rows: int = 1024
    writing_rows: int = 64
    cohorts: int = 8
    new_tokens: int = 512
    timeout_s: float = 30.0
