"""Scores of predicted classes, each by its name: what accuracy hides of unbalanced classes and of shares that are too sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

BINS = 15  # of calibration


def _accuracy(true: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> float:
    return float(accuracy_score(true, shares.argmax(1)))


def _balanced_accuracy(true: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> float:
    """Mean recall of the classes that some row has."""
    return float(np.nanmean(_measures(true, shares.argmax(1), names)[1]))


def _macro_f1(true: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> float:
    """Mean F1 of the classes that some row has or is given."""
    return float(np.nanmean(_measures(true, shares.argmax(1), names)[2]))


def _matthews(true: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> float:
    """The correlation of true and predicted classes; 0 where one of them is always the same."""
    return float(matthews_corrcoef(true, shares.argmax(1)))


def _calibration_error(true: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> float:
    """``sum_b n_b / N |accuracy_b - share_b|`` over 15 equal bins b of the predicted class's share (arXiv 1706.04599)."""
    top, right = shares.max(1), shares.argmax(1) == true
    bins = np.minimum((top * BINS).astype(int), BINS - 1)
    gaps = (abs(right[bins == b].sum() - top[bins == b].sum()) for b in np.unique(bins))
    return float(sum(gaps) / len(true))


# name -> the score of true classes [N] and the classes' shares [N, C]; the first one chooses the checkpoint
CLASS_SCORES: dict[str, Callable[[np.ndarray, np.ndarray, Sequence[str]], float]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "matthews_correlation": _matthews,
    "calibration_error": _calibration_error,
}
LOWER_IS_BETTER = ("calibration_error", "loss")


def classification_scores(
    true: Sequence[int], shares: np.ndarray | Sequence[Sequence[float]], label_names: Sequence[str]
) -> dict[str, float]:
    """All of `CLASS_SCORES` of class indices [N] and the shares [N, C] that a model gives the classes."""
    classes, given = np.asarray(true), np.asarray(shares, dtype=np.float64)
    return {name: score(classes, given, label_names) for name, score in CLASS_SCORES.items()}


def per_class_scores(
    true: Sequence[int], predicted: Sequence[int], label_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and number of rows of each class; None where there is nothing to divide by."""
    measures = ("precision", "recall", "f1", "support")
    columns = zip(*_measures(true, predicted, label_names), strict=True)
    return {
        name: {key: None if np.isnan(value) else value.item() for key, value in zip(measures, column, strict=True)}
        for name, column in zip(label_names, columns, strict=True)
    }


def _measures(true: Any, predicted: Any, label_names: Sequence[str]) -> tuple[Any, ...]:
    measures: tuple[Any, ...] = precision_recall_fscore_support(
        true, predicted, labels=range(len(label_names)), zero_division=np.nan
    )
    return measures
