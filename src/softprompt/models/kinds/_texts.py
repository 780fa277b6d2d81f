"""Texts, or pairs of them, that a head on top of the backbone reads: what the kinds with a label for each have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, EvalPrediction, PreTrainedTokenizerBase

from ..._types import SoftPromptError, did_you_mean
from ...data import FewRows, Verbalizer, encode_classification
from ..completing import Writing
from ..finite import not_finite
from ._base import Adapted, Card, Checked, Kind, check_encodable, logits_of, long_first


class OfTexts(Kind):
    """A kind whose rows are texts, or pairs of them, with a label each.

    Attributes:
        below: head -> transformers' class that loads the backbone below it.
    """

    columns = ("text", "text_pair", "label")
    optional = frozenset({"text_pair"})
    reads = ("text", "text_pair")
    plain = "text"
    heads: ClassVar[tuple[str, ...]] = ("pooled", "stock")
    loaders: ClassVar[dict[str, Any]] = {"SEQ_CLS": AutoModelForSequenceClassification}
    below: ClassVar[dict[str, Any]] = {"pooled": AutoModel, "stock": AutoModelForSequenceClassification}
    pipeline = "text-classification"

    @abstractmethod
    def of_logits(self, adapted: Adapted, logits: Tensor) -> dict[str, Any]:
        """The prediction for a row from its logits [C]."""

    @abstractmethod
    def given(self, logits: np.ndarray) -> np.ndarray:
        """What logits [N, C] give: shares [N, C] of the classes, or numbers [N]."""

    @abstractmethod
    def scored(self, given: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """The scores of what is given against encoded labels, [N] or [N, C]."""

    def label(self, card: Card) -> Callable[[Any], Any]:
        """What makes of a row's label what the loss reads."""
        return lambda value: value

    def choose_head(self, asked: str) -> str:
        if asked not in self.heads:
            raise SoftPromptError(
                f"head={asked!r} gives each text one class; for a {self.name} task use head={self.heads[0]!r}."
            )
        return asked

    def task_type(self, head: str, encoder_decoder: bool) -> str | None:
        return "SEQ_CLS"

    def loader(self, card: Card, encoder_decoder: bool) -> Any:
        return self.below[card.head]

    def encoder(
        self, card: Card, tokenizer: PreTrainedTokenizerBase, verbalizer: Verbalizer | None, encoder_decoder: bool
    ) -> Callable[[Dataset], Dataset]:
        return partial(
            encode_classification,
            tokenizer,
            max_length=card.max_length,
            pairs=card.pairs,
            label=self.label(card),
            cut=card.cut,
        )

    def metrics(self, names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
        return lambda prediction: self.scored(*self.for_metric(names, prediction), names)

    def for_metric(self, names: Sequence[str], prediction: EvalPrediction) -> tuple[Any, Any]:
        """What the model gives, shares [N, C] of the classes or numbers [N], and the encoded labels."""
        kept = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return self.given(np.asarray(kept, dtype=np.float64)), np.asarray(prediction.label_ids)

    def read(self, adapted: Adapted, row: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> dict[str, Any]:
        card = adapted.card
        two = card.pairs == "apart" or bool((card.columns or {}).get("text_pair_column"))
        two = two or row.get(columns.get("text_pair", "text_pair")) is not None
        return read_texts(adapted, row, where, ["text", "text_pair"] if two else ["text"], columns)

    def predict(self, adapted: Adapted, rows: Sequence[Checked], writing: Writing) -> list[dict[str, Any]]:
        return [self.of_logits(adapted, logits) for logits in self.logits(adapted, rows)]

    def encoded(self, adapted: Adapted, rows: Sequence[Checked]) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = [{}] * len(rows)
        for columns in (["text"], ["text", "text_pair"]):
            at = [i for i, (_, row) in enumerate(rows) if list(row) == columns]
            if at:
                part: Any = FewRows.from_list([{**rows[i][1], "label": self.nothing} for i in at])
                encode = self.encoder(adapted.card, adapted.tokenizer, adapted.verbalizer, encoder_decoder=False)
                for i, inputs in zip(at, encode(part).to_list(), strict=True):
                    made[i] = {name: value for name, value in inputs.items() if name != "labels"}
        return made

    nothing: ClassVar[Any] = 0  # stands for the label of a row that has none

    def answer(self, adapted: Adapted, row: Checked, encoded: Mapping[str, Any], logits: Tensor) -> dict[str, Any]:
        return self.of_logits(adapted, _finite(row, logits))

    def evaluate(self, adapted: Adapted, rows: Dataset, scores: Sequence[str] = ()) -> dict[str, Any]:
        if adapted.card.pairs == "apart" and "text_pair" not in rows.column_names:
            raise SoftPromptError("the adapter compares two texts: expected a column 'text_pair', got none.")
        self.check_labels(rows["label"], adapted.card.label_names)
        logits = torch.stack(self.logits(adapted, list(self.numbered(adapted, rows)))).double().numpy()
        encode = self.label(adapted.card)
        labels = np.asarray([encode(label) for label in rows["label"]])
        names = adapted.card.label_names
        given = self.given(logits)
        return {**self.scored(given, labels, names), "rows": len(rows), **self.detailed(given, labels, names)}

    def check_labels(self, labels: Sequence[Any], names: Sequence[str]) -> None:
        """Raise `SoftPromptError` for a label that the adapter cannot give."""
        return None

    def detailed(self, given: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        """What an evaluation says beside the scores."""
        return {}

    def example(self, card: Card) -> str:
        return '{"text": "..."}' if card.pairs is None else '{"text": "...", "text_pair": "..."}'

    @torch.no_grad()
    def logits(self, adapted: Adapted, rows: Sequence[Checked]) -> list[Tensor]:
        """The logits [C] of each row.

        Raises:
            NonFiniteError: they are no finite numbers.
        """
        encoded = self.encoded(adapted, rows)
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        collate = self.collator(adapted.tokenizer)
        for batch in long_first(encoded, adapted.batch_size):
            for i, logits in zip(batch, logits_of(adapted, collate([encoded[i] for i in batch])), strict=True):
                found[i] = _finite(rows[i], logits)
        return found


def _finite(row: Checked, logits: Tensor) -> Tensor:
    if not logits.isfinite().all():
        raise not_finite(row[0])
    return logits.float().cpu()


def read_texts(
    adapted: Adapted, row: Mapping[str, Any], where: str, needed: Sequence[str], columns: Mapping[str, str]
) -> dict[str, str]:
    """The ``needed`` texts of a row.

    Args:
        columns: name of a text -> the name of its column in the row, where it is another one.

    Raises:
        SoftPromptError: a text is missing, empty, no string, or cannot be encoded.
    """
    asked = {name: columns.get(name, name) for name in needed}
    return {name: _text(adapted, row, where, column, {*asked.values()}) for name, column in asked.items()}


def _text(adapted: Adapted, row: Mapping[str, Any], where: str, column: str, asked: set[str]) -> str:
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        there = sorted(map(str, row))
        near = "" if column in row else did_you_mean(column, sorted({*there} - asked))
        raise SoftPromptError(f"{where}: expected a non-empty {column!r}, got {text!r:.60}; columns are {there}.{near}")
    check_encodable(text, where)
    mask = "" if adapted.verbalizer is None else adapted.verbalizer.mask
    if mask and mask in text:
        raise SoftPromptError(f"{where}: the text holds the mask token {mask!r}; remove it there.")
    return text
