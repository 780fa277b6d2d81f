"""Scores of classes by their names, against what they are by definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.models.scores import (
    BINS,
    CLASS_SCORES,
    LABEL_SCORES,
    LOWER_IS_BETTER,
    NUMBER_SCORES,
    classification_scores,
    label_scores,
    number_scores,
    per_label_scores,
)

NAMES = ["a", "b", "c"]


def shares_of(*tops: tuple[int, float]) -> np.ndarray:
    """Rows whose class has this share, the others the rest."""
    rows = np.zeros((len(tops), 3))
    for row, (best, share) in zip(rows, tops, strict=True):
        row[:] = (1 - share) / 2
        row[best] = share
    return rows


def test_shares_that_promise_what_they_hold_have_no_calibration_error() -> None:
    three_of_four = shares_of(*[(0, 0.75)] * 4)
    assert classification_scores([0, 0, 0, 1], three_of_four, NAMES)["calibration_error"] == pytest.approx(0)
    assert classification_scores([1, 1, 1, 1], three_of_four, NAMES)["calibration_error"] == pytest.approx(0.75)
    sure = shares_of((0, 1.0), (1, 1.0))
    assert classification_scores([0, 1], sure, NAMES)["calibration_error"] == 0
    assert classification_scores([1, 0], sure, NAMES)["calibration_error"] == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0.4, 1)), min_size=1, max_size=60))
def test_the_calibration_error_is_that_of_its_definition(rows: list[tuple[int, int, float]]) -> None:
    true, shares = [row[0] for row in rows], shares_of(*[(best, share) for _, best, share in rows])
    expected = 0.0
    for b in range(BINS):
        low, high = b / BINS, (b + 1) / BINS
        own = [i for i, row in enumerate(shares) if low <= row.max() < high or (b == BINS - 1 and row.max() == 1)]
        if own:
            accuracy = sum(shares[i].argmax() == true[i] for i in own) / len(own)
            expected += len(own) / len(rows) * abs(accuracy - sum(shares[i].max() for i in own) / len(own))
    assert classification_scores(true, shares, NAMES)["calibration_error"] == pytest.approx(expected, abs=1e-9)


def test_one_class_for_all_rows_is_seen_by_every_score_but_accuracy() -> None:
    scores = classification_scores([0] * 9 + [1], shares_of(*[(0, 0.9)] * 10), NAMES)
    assert scores["accuracy"] == 0.9 and list(scores) == list(CLASS_SCORES)
    assert scores["balanced_accuracy"] == 0.5 and scores["macro_f1"] < 0.5 and scores["matthews_correlation"] == 0


def test_a_class_that_no_row_has_or_is_given_does_not_count() -> None:
    true, given = np.array([[1, 0, 0], [0, 1, 0]]), np.array([[1, 0, 0], [1, 1, 0]])
    found = label_scores(true, given)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2) and found["micro_f1"] == pytest.approx(4 / 5)
    assert found["accuracy"] == 0.5
    nothing = np.zeros((2, 3))
    assert label_scores(nothing, nothing) == {"micro_f1": 0.0, "macro_f1": 0.0, "accuracy": 1.0}


def test_numbers_that_are_all_the_same_correlate_with_nothing() -> None:
    found = number_scores(np.array([1.0, 1.0]), np.array([0.0, 3.0]))
    assert found == {"pearson": 0.0, "spearman": 0.0, "mean_squared_error": 2.5, "mean_absolute_error": 1.5}


def test_errors_are_better_where_they_are_lower() -> None:
    scores = {*CLASS_SCORES, *LABEL_SCORES, *NUMBER_SCORES}
    lower = {name for name in scores if name.endswith(LOWER_IS_BETTER)}
    assert lower == {"calibration_error", "mean_squared_error", "mean_absolute_error"}


def test_f1_weighs_precision_and_recall_alike() -> None:
    true, given = np.array([[1, 0], [1, 1], [0, 1]]), np.array([[1, 1], [0, 1], [0, 1]])
    found = per_label_scores(true, given, ["a", "b"])["a"]
    assert found == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
