"""Scores of predicted classes, beside accuracy: what unbalanced classes hide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

CLASS_SCORES = ("balanced_accuracy", "macro_f1")  # beside accuracy


def classification_scores(
    true: Sequence[int], predicted: Sequence[int], label_names: Sequence[str]
) -> dict[str, float]:
    """Accuracy, balanced accuracy (mean recall of the classes that some row has) and macro-F1 (mean F1 of those and of the
    predicted ones) of class indices."""
    _, recall, f1, _ = _measures(true, predicted, label_names)
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "balanced_accuracy": float(np.nanmean(recall)),
        "macro_f1": float(np.nanmean(f1)),
    }


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


def _measures(true: Sequence[int], predicted: Sequence[int], label_names: Sequence[str]) -> tuple[Any, ...]:
    measures: tuple[Any, ...] = precision_recall_fscore_support(
        true, predicted, labels=range(len(label_names)), zero_division=np.nan
    )
    return measures
