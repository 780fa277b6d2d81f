"""Texts, or pairs of them, with one class each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from scipy.special import softmax
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from ..._types import SoftPromptError
from ...data import FewRows, Verbalizer, encode_classification
from ..finite import not_finite
from ..scores import CLASS_SCORES, classification_scores, per_class_scores
from ._base import Adapted, Card, Checked, Kind, check_labels, logits_of, long_first
from ._texts import read_texts


class Classification(Kind):
    name = "classification"
    columns = ("text", "text_pair", "label")
    optional = frozenset({"text_pair"})
    reads = ("text", "text_pair")
    plain = "text"
    heads = ("pooled", "stock", "verbalizer")
    loaders: ClassVar[dict[str, Any]] = {"SEQ_CLS": AutoModelForSequenceClassification}
    below: ClassVar[dict[str, Any]] = {
        "pooled": AutoModel,
        "verbalizer": AutoModelForMaskedLM,
        "stock": AutoModelForSequenceClassification,
    }
    pipeline = "text-classification"
    one_label = True

    def choose_head(self, asked: str) -> str:
        return asked

    def task_type(self, head: str, encoder_decoder: bool) -> str | None:
        return None if head == "verbalizer" else "SEQ_CLS"  # PEFT has no word for masked language models

    def loader(self, head: str, encoder_decoder: bool) -> Any:
        return self.below[head]

    def encoder(
        self, card: Card, tokenizer: PreTrainedTokenizerBase, verbalizer: Verbalizer | None, encoder_decoder: bool
    ) -> Callable[[Dataset], Dataset]:
        if verbalizer is not None:
            return partial(verbalizer.encode, max_length=card.max_length)
        return partial(encode_classification, tokenizer, max_length=card.max_length, pairs=card.pairs)

    def scores(self, names: Sequence[str]) -> list[str]:
        return [*CLASS_SCORES, "loss"]

    def metrics(self, names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
        return partial(_trainer_scores, names)

    def for_metric(self, names: Sequence[str], prediction: EvalPrediction) -> tuple[Any, Any]:
        """The shares [N, C] that the model gives the classes, and the class indices [N]."""
        return _shares(prediction), np.asarray(prediction.label_ids)

    def read(self, adapted: Adapted, row: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> dict[str, Any]:
        card = adapted.card
        two = card.pairs == "apart" or bool((card.columns or {}).get("text_pair_column"))
        two = two or row.get(columns.get("text_pair", "text_pair")) is not None
        return read_texts(adapted, row, where, ["text", "text_pair"] if two else ["text"], columns)

    def predict(self, adapted: Adapted, rows: Sequence[Checked], max_new_tokens: int) -> list[dict[str, Any]]:
        return [_named(adapted.card.label_names, scores) for scores in self._probabilities(adapted, rows)]

    def encoded(self, adapted: Adapted, rows: Sequence[Checked]) -> list[dict[str, Any]]:
        encode = self.encoder(adapted.card, adapted.tokenizer, adapted.verbalizer, encoder_decoder=False)
        made: list[dict[str, Any]] = [{}] * len(rows)
        for columns in (["text"], ["text", "text_pair"]):
            at = [i for i, (_, row) in enumerate(rows) if list(row) == columns]
            if at:
                part: Any = FewRows.from_list([{**rows[i][1], "label": 0} for i in at])
                for i, inputs in zip(at, encode(part).to_list(), strict=True):
                    made[i] = {name: value for name, value in inputs.items() if name != "labels"}
        return made

    def answer(self, adapted: Adapted, row: Checked, encoded: Mapping[str, Any], logits: Tensor) -> dict[str, Any]:
        return _named(adapted.card.label_names, _probabilities(row, logits))

    def evaluate(self, adapted: Adapted, rows: Dataset) -> dict[str, Any]:
        labels, names = list(rows["label"]), adapted.card.label_names
        check_labels(labels, names)
        if adapted.card.pairs == "apart" and "text_pair" not in rows.column_names:
            raise SoftPromptError("the adapter compares two texts: expected a column 'text_pair', got none.")
        checked = list(self.numbered(adapted, rows))
        shares = torch.stack(self._probabilities(adapted, checked)).numpy()
        predicted = shares.argmax(1).tolist()
        counts = Counter(zip(labels, predicted, strict=True))
        return {
            **classification_scores(labels, shares, names),
            "rows": len(rows),
            "per_class": per_class_scores(labels, predicted, names),
            "confusion": {
                name: {names[j]: counts[i, j] for j in range(len(names)) if counts[i, j]}
                for i, name in enumerate(names)
                if any(true == i for true, _ in counts)
            },
        }

    def predicted(self, names: Sequence[str]) -> list[str]:
        return ["label", "score", *(f"score_{name}" for name in names)]

    def example(self, card: Card) -> str:
        return '{"text": "..."}' if card.pairs is None else '{"text": "...", "text_pair": "..."}'

    @torch.no_grad()
    def _probabilities(self, adapted: Adapted, rows: Sequence[Checked]) -> list[Tensor]:
        """The probabilities [C] of each row."""
        encoded = self.encoded(adapted, rows)
        probabilities: list[Tensor] = [torch.empty(0)] * len(rows)
        collate = self.collator(adapted.tokenizer)
        for batch in long_first(encoded, adapted.batch_size):
            for i, logits in zip(batch, logits_of(adapted, collate([encoded[i] for i in batch])), strict=True):
                probabilities[i] = _probabilities(rows[i], logits)
        return probabilities


def _probabilities(row: Checked, logits: Tensor) -> Tensor:
    """Softmax [C] of a row's logits."""
    if not logits.isfinite().all():
        raise not_finite(row[0])
    return logits.float().softmax(-1).cpu()


def _named(names: Sequence[str], scores: Tensor) -> dict[str, Any]:
    best = int(scores.argmax())
    return {
        "label": names[best],
        "score": float(scores[best]),
        "scores": dict(zip(names, scores.tolist(), strict=True)),
    }


def _trainer_scores(names: Sequence[str], prediction: EvalPrediction) -> dict[str, float]:
    """`classification_scores` of the logits."""
    return classification_scores(prediction.label_ids, _shares(prediction), names)


def _shares(prediction: EvalPrediction) -> np.ndarray:
    """Softmax [N, C] of the logits that a trainer has kept."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=-1))
