"""Texts, or pairs of them, with a number each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ..scores import NUMBER_SCORES, number_scores
from ._base import Adapted, Card
from ._texts import OfTexts


class Regression(OfTexts):
    name = "regression"
    smooths = False
    problem_type = "regression"
    has_classes = False
    nothing: ClassVar[Any] = 0.0

    def label(self, card: Card) -> Callable[[Any], Any]:
        return float

    def scores(self, names: Sequence[str]) -> list[str]:
        return [*NUMBER_SCORES, "loss"]

    def given(self, logits: np.ndarray) -> np.ndarray:
        return logits.reshape(len(logits))

    def scored(self, given: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        return number_scores(labels, given)

    def of_logits(self, adapted: Adapted, logits: Tensor) -> dict[str, Any]:
        return {"value": float(logits)}

    def predicted(self, names: Sequence[str]) -> list[str]:
        return ["value"]
