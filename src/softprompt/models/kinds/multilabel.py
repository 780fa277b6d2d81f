"""Texts, or pairs of them, with any number of classes each, none among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit
from torch import Tensor

from ..scores import LABEL_SCORES, label_scores, per_label_scores
from ._base import Adapted, Card, check_labels
from ._texts import OfTexts

CHOSEN = 0.5  # the share from which a class is one of the text's


class Multilabel(OfTexts):
    """Each class is a question of its own: ``p_c = sigmoid(z_c)``, and the text has the classes with ``p_c >= 0.5``."""

    name = "multilabel"
    smooths = False
    problem_type = "multi_label_classification"
    nothing: ClassVar[Any] = ()

    def label(self, card: Card) -> Callable[[Any], Any]:
        count = len(card.label_names)
        return lambda own: [float(c in own) for c in range(count)]

    def scores(self, names: Sequence[str]) -> list[str]:
        return [*LABEL_SCORES, "loss"]

    def given(self, logits: np.ndarray) -> np.ndarray:
        return np.asarray(expit(logits))

    def scored(self, given: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        return label_scores(labels, given >= CHOSEN)

    def of_logits(self, adapted: Adapted, logits: Tensor) -> dict[str, Any]:
        scores = dict(zip(adapted.card.label_names, logits.sigmoid().tolist(), strict=True))
        return {"labels": [name for name, score in scores.items() if score >= CHOSEN], "scores": scores}

    def check_labels(self, labels: Sequence[Any], names: Sequence[str]) -> None:
        check_labels(chain.from_iterable(labels), names)

    def detailed(self, given: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        return {"per_class": per_label_scores(labels, given >= CHOSEN, names)}

    def predicted(self, names: Sequence[str]) -> list[str]:
        return ["labels", *(f"score_{name}" for name in names)]
