"""SetFit: its training reaches what it predicts with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from house.suites import only_cell
from softprompt.experiments.cell import run_cell


def test_setfit_in_bfloat16_computes_with_the_weights_that_it_trains(
    suite_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One autocast context around the whole training kept the first step's weights, so that texts of two classes never parted."""
    pytest.importorskip("setfit")
    read: list[tuple[np.ndarray, np.ndarray]] = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda self, x, y: read.append((np.asarray(x), np.asarray(y))) or fit(self, x, y)
    )
    own = {"num_iterations": 20, "batch_size": 8, "learning_rate": 3e-3, "dtype": "bfloat16"}
    line = run_cell(only_cell(suite_file(methods={"setfit": own})))
    assert line["status"] == "done", line["error"]
    ((states, labels),) = read
    units = states / np.linalg.norm(states, axis=1, keepdims=True)
    same = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    similar = units @ units.T
    assert similar[same].mean() > 0.7 and similar[labels[:, None] != labels].mean() < 0.3
