"""What a kind of task is: everything about it that a run, a prediction or a command asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from datasets import Dataset
from peft import PeftConfig
from torch import Tensor
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ..._types import SoftPromptError
from ...data import Collate, Verbalizer, collator, length_of
from ...objectives import OBJECTIVES
from ..completing import Writing

# Where a row stands ("row 3", "a.csv, line 4"), and what the model reads of it, as `Kind.read` returns it.
Checked = tuple[str, dict[str, Any]]


class Card(Protocol):
    """What is read of a `softprompt.models.TaskCard`, which itself asks for kinds."""

    @property
    def kind(self) -> str: ...
    @property
    def head(self) -> str: ...
    @property
    def label_names(self) -> list[str]: ...
    @property
    def max_length(self) -> int: ...
    @property
    def cut(self) -> str: ...
    @property
    def pooling(self) -> str | None: ...
    @property
    def pairs(self) -> str | None: ...
    @property
    def features(self) -> list[int] | None: ...
    @property
    def verbalizer(self) -> dict[str, Any] | None: ...
    @property
    def columns(self) -> dict[str, str] | None: ...


class Adapted(Protocol):
    """A tuned model and what it is used with, such as a `softprompt.Predictor`."""

    @property
    def model(self) -> Any: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def card(self) -> Card: ...
    @property
    def verbalizer(self) -> Verbalizer | None: ...
    @property
    def batch_size(self) -> int: ...


class Kind(ABC):
    """One kind of task.

    Attributes:
        name: as it stands in ``task.json``.
        columns: of labelled rows.
        optional: those of them that rows may lack.
        reads: columns from which a prediction is made.
        plain: the column for which a line of plain text stands.
        heads: that a card may name.
        loaders: PEFT's word for the task to transformers' class with its own head.
        pipeline: transformers' word for the task, which the hub shows.
        batch_size: rows at a time in a prediction.
        has_classes: whether a card names classes.
        one_label: whether a row has one class.
        smooths: whether labels exclude each other, so that a trainer may smooth them.
        problem_type: transformers' word for the loss of a sequence classifier; None for another one.
        kept: what a trainer keeps of (logits, labels) in an evaluation; None keeps the logits.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    optional: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[tuple[str, ...]]
    plain: ClassVar[str]
    heads: ClassVar[tuple[str, ...]]
    loaders: ClassVar[dict[str, Any]]
    pipeline: ClassVar[str]
    batch_size: ClassVar[int] = 64
    has_classes: ClassVar[bool] = True
    one_label: ClassVar[bool] = False
    smooths: ClassVar[bool] = True
    problem_type: ClassVar[str | None] = None
    kept: ClassVar[Callable[[Any, Any], Tensor] | None] = None

    # ------------------------------------------------------------------ the model

    @abstractmethod
    def choose_head(self, asked: str) -> str:
        """The head of a run that asks for ``asked``; announces where it is another one.

        Raises:
            SoftPromptError: the head that was asked for is none of this kind.
        """

    @abstractmethod
    def task_type(self, head: str, encoder_decoder: bool) -> str | None:
        """PEFT's word for the task; None where it has none."""

    def loader(self, card: Card, encoder_decoder: bool) -> Any:
        """transformers' class that loads the backbone below the card's head."""
        return self.loaders[str(self.task_type(card.head, encoder_decoder))]

    def check_method(self, method: str, config: PeftConfig) -> None:
        """Raise `SoftPromptError` if a method cannot learn this kind of task."""
        comparing = [
            entry["name"]
            for entry in getattr(config, "objectives", None) or []
            if OBJECTIVES[entry["name"]].compares_rows
        ]
        if comparing and not self.one_label:
            raise SoftPromptError(
                f"the objective {comparing[0]!r} (method {method!r}) compares rows of one class with others, and rows of a {self.name} task do not have one class each; use another method, such as 'prompt_tuning'."
            )

    # ------------------------------------------------------------------ rows

    @abstractmethod
    def encoder(
        self, card: Card, tokenizer: PreTrainedTokenizerBase, verbalizer: Verbalizer | None, encoder_decoder: bool
    ) -> Callable[[Dataset], Dataset]:
        """The function that turns labelled rows into model inputs."""

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collate:
        """Encoded rows to a padded batch."""
        return collator(tokenizer, self.name)

    # ------------------------------------------------------------------ scores in training

    @abstractmethod
    def scores(self, names: Sequence[str]) -> list[str]:
        """What an evaluation measures; the first one chooses the checkpoint.

        Args:
            names: of the classes.
        """

    def choose_score(self, names: Sequence[str]) -> str:
        """The score that chooses the checkpoint; announces why where it is not the usual one."""
        return self.scores(names)[0]

    def metrics(self, names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]] | None:
        """What a trainer computes beside the loss, or None."""
        return None

    def for_metric(self, names: Sequence[str], prediction: EvalPrediction) -> tuple[Any, Any]:
        """The (predictions, labels) that a metric of the user's reads: what the trainer keeps, and the encoded labels."""
        return prediction.predictions, prediction.label_ids

    def test_scores(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, max_length: int
    ) -> dict[str, float]:
        """What is measured on the rows of the test set alone, beside what the trainer measures."""
        return {}

    # ------------------------------------------------------------------ use

    @abstractmethod
    def read(self, adapted: Adapted, row: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> dict[str, Any]:
        """What the model reads of a row; see `softprompt.Predictor.check`."""

    def numbered(self, adapted: Adapted, rows: Iterable[Mapping[str, Any]]) -> Iterator[Checked]:
        """What the model reads of rows that are called by their number."""
        return ((f"row {number}", self.read(adapted, row, f"row {number}", {})) for number, row in enumerate(rows, 1))

    @abstractmethod
    def predict(self, adapted: Adapted, rows: Sequence[Checked], writing: Writing) -> list[dict[str, Any]]:
        """One prediction for each row; see `softprompt.Predictor.predict`."""

    @abstractmethod
    def encoded(self, adapted: Adapted, rows: Sequence[Checked]) -> list[dict[str, Any]]:
        """The model inputs of rows that `read` has checked, each as a collator takes it."""

    def answer(self, adapted: Adapted, row: Checked, encoded: Mapping[str, Any], logits: Tensor) -> dict[str, Any]:
        """The prediction for a row from its ``logits``: [C] of a text, [S, C] of its tokens.

        Raises:
            NonFiniteError: they are no finite numbers.
        """
        raise SoftPromptError(f"rows of {self.name} have no logits to be read row by row.")

    @abstractmethod
    def evaluate(self, adapted: Adapted, rows: Dataset, scores: Sequence[str] = ()) -> dict[str, Any]:
        """Scores on labelled rows, with further ``scores`` of completions; see `softprompt.Predictor.evaluate`."""

    @abstractmethod
    def predicted(self, names: Sequence[str]) -> list[str]:
        """The columns of a table of predictions."""

    @abstractmethod
    def example(self, card: Card) -> str:
        """A row for which a prediction can be made, as Python."""


def logits_of(adapted: Adapted, batch: Mapping[str, Any]) -> Tensor:
    """The model's logits for a batch."""
    logits = adapted.model(**{name: value.to(adapted.model.device) for name, value in batch.items()}).logits
    assert isinstance(logits, Tensor)
    return logits


def long_first(encoded: Sequence[Mapping[str, Any]], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows of about one length, a batch at a time; the longest first, so that memory runs out at once."""
    order = sorted(range(len(encoded)), key=lambda i: length_of(encoded[i]), reverse=True)
    return (order[at : at + batch_size] for at in range(0, len(order), batch_size))


def check_encodable(text: str, where: str) -> None:
    """Raise `SoftPromptError` for a text that stands for no characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SoftPromptError(
            f"{where}: the text holds half of a surrogate pair ({text[error.start]!a}, character {error.start + 1}), which "
            "stands for no character; it was cut there."
        ) from error


def check_labels(labels: Iterable[int], names: Sequence[str]) -> None:
    """Raise `SoftPromptError` for a label that is none of the adapter's classes."""
    if unknown := [label for label in labels if not 0 <= label < len(names)]:
        raise SoftPromptError(
            f"label {max(unknown)} is not among the adapter's {len(names)} classes: {', '.join(names)}."
        )
