"""Texts, or pairs of them, with one class each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import softmax
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from ...data import PLACES, Verbalizer
from ..scores import CLASS_SCORES, classification_scores, per_class_scores
from ._base import Adapted, Card, check_labels
from ._texts import OfTexts

# where words are read -> the language model that says them
LANGUAGE_MODELS = dict(zip(PLACES, (AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM), strict=True))


class Classification(OfTexts):
    name = "classification"
    heads = ("pooled", "stock", "verbalizer")
    one_label = True
    problem_type = "single_label_classification"

    def task_type(self, head: str, encoder_decoder: bool) -> str | None:
        return None if head == "verbalizer" else "SEQ_CLS"  # PEFT has no word for classes by label words

    def loader(self, card: Card, encoder_decoder: bool) -> Any:
        if card.verbalizer is None:
            return super().loader(card, encoder_decoder)
        return LANGUAGE_MODELS[card.verbalizer.get("place", PLACES[0])]

    def encoder(
        self, card: Card, tokenizer: PreTrainedTokenizerBase, verbalizer: Verbalizer | None, encoder_decoder: bool
    ) -> Callable[[Dataset], Dataset]:
        if verbalizer is not None:
            return partial(verbalizer.encode, max_length=card.max_length)
        return super().encoder(card, tokenizer, verbalizer, encoder_decoder)

    def scores(self, names: Sequence[str]) -> list[str]:
        return [*CLASS_SCORES, "loss"]

    def given(self, logits: np.ndarray) -> np.ndarray:
        return np.asarray(softmax(logits, axis=-1))

    def scored(self, given: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        return classification_scores(labels, given, names)

    def of_logits(self, adapted: Adapted, logits: Tensor) -> dict[str, Any]:
        names, scores = adapted.card.label_names, logits.softmax(-1)
        best = int(scores.argmax())
        return {
            "label": names[best],
            "score": float(scores[best]),
            "scores": dict(zip(names, scores.tolist(), strict=True)),
        }

    def check_labels(self, labels: Sequence[Any], names: Sequence[str]) -> None:
        check_labels(labels, names)

    def detailed(self, given: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        true, predicted = labels.tolist(), given.argmax(1).tolist()
        counts = Counter(zip(true, predicted, strict=True))
        return {
            "per_class": per_class_scores(true, predicted, names),
            "confusion": {
                name: {names[j]: counts[i, j] for j in range(len(names)) if counts[i, j]}
                for i, name in enumerate(names)
                if any(label == i for label, _ in counts)
            },
        }

    def predicted(self, names: Sequence[str]) -> list[str]:
        return ["label", "score", *(f"score_{name}" for name in names)]
