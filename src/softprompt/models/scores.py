"""Scores of predicted classes, each by its name: what accuracy hides of unbalanced classes and of shares that are too sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_recall_fscore_support

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
    predicted = shares.argmax(1)
    if len(np.union1d(true, predicted)) < 2:
        return 0.0  # what scikit-learn says of one class, too, with a warning for each evaluation
    return float(matthews_corrcoef(true, predicted))


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
LOWER_IS_BETTER = ("calibration_error", "mean_squared_error", "mean_absolute_error", "loss")


# name -> the score of the classes that rows have and are given [N, C], each 0 or 1; the first one chooses the checkpoint
LABEL_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "micro_f1": lambda true, given: float(f1_score(true, given, average="micro", zero_division=0.0)),
    "macro_f1": lambda true, given: _mean_of_known(f1_score(true, given, average=None, zero_division=np.nan)),
    "accuracy": lambda true, given: float((true == given).all(1).mean()),  # rows whose classes are all right
}


def _mean_of_known(values: np.ndarray) -> float:
    """Mean over the classes that some row has or is given; 0 where there is none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def _correlation(measure: Callable[..., Any]) -> Callable[[np.ndarray, np.ndarray], float]:
    """A correlation that is 0 where one side is always the same, instead of no number."""
    return lambda true, given: float(measure(true, given)[0]) if min(np.ptp(true), np.ptp(given)) > 0 else 0.0


# name -> the score of true and given numbers [N]; the first one chooses the checkpoint
NUMBER_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
    "mean_squared_error": lambda true, given: float(np.square(true - given).mean()),
    "mean_absolute_error": lambda true, given: float(abs(true - given).mean()),
}


def classification_scores(
    true: np.ndarray | Sequence[int], shares: np.ndarray | Sequence[Sequence[float]], label_names: Sequence[str]
) -> dict[str, float]:
    """All of `CLASS_SCORES` of class indices [N] and the shares [N, C] that a model gives the classes."""
    classes, given = np.asarray(true), np.asarray(shares, dtype=np.float64)
    return {name: score(classes, given, label_names) for name, score in CLASS_SCORES.items()}


def label_scores(true: np.ndarray, given: np.ndarray) -> dict[str, float]:
    """All of `LABEL_SCORES` of classes that rows have and are given, [N, C]."""
    there, said = np.asarray(true) > 0, np.asarray(given) > 0
    return {name: score(there, said) for name, score in LABEL_SCORES.items()}


def number_scores(true: np.ndarray, given: np.ndarray) -> dict[str, float]:
    """All of `NUMBER_SCORES` of true and given numbers [N]."""
    return {name: score(true, given) for name, score in NUMBER_SCORES.items()}


def per_label_scores(true: np.ndarray, given: np.ndarray, label_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """As `per_class_scores`, of classes that rows have and are given, [N, C]."""
    measures = precision_recall_fscore_support(np.asarray(true) > 0, given, average=None, zero_division=np.nan)
    return _by_name(measures, label_names)


def per_class_scores(
    true: Sequence[int], predicted: Sequence[int], label_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and number of rows of each class; None where there is nothing to divide by."""
    return _by_name(_measures(true, predicted, label_names), label_names)


def _by_name(measures: Sequence[np.ndarray], label_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    keys = ("precision", "recall", "f1", "support")
    return {
        name: {key: None if np.isnan(value) else value.item() for key, value in zip(keys, column, strict=True)}
        for name, column in zip(label_names, zip(*measures, strict=True), strict=True)
    }


def _measures(true: Any, predicted: Any, label_names: Sequence[str]) -> tuple[Any, ...]:
    measures: tuple[Any, ...] = precision_recall_fscore_support(
        true, predicted, labels=range(len(label_names)), zero_division=np.nan
    )
    return measures
