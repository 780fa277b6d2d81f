"""Contenders that train nothing: a template with label words, and a probe."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import set_seed

from ..._types import SoftPromptError
from ...training.prepare import Prepared, prepare
from ._base import Outcome, as_run, check_common, count, predictions, rows_said


def run_zero_shot(flat: dict[str, Any]) -> Outcome:
    """Ask the frozen language model by its template and label words; no row trains or chooses anything."""
    return _run_frozen(flat, lambda prepared: (prepared.first_of(prepared.zero_shot), 0))


def run_probe(flat: dict[str, Any]) -> Outcome:
    """Fit logistic regression on pooled frozen features, from which the head of every other run starts.

    The strength of its penalty is fixed (scikit-learn's C = 1 / H on standardised features), so dev rows choose nothing.
    """
    return _run_frozen(flat, lambda prepared: (prepared.first_of(prepared.probe), count(prepared.model.classifier)))


def _run_frozen(flat: dict[str, Any], found: Callable[[Prepared], tuple[dict[str, float], int]]) -> Outcome:
    """Prepare a run and train nothing; ``found`` says the scores by split, and how many parameters were fitted."""
    options = as_run(flat)
    set_seed(options.seed)
    started = time.perf_counter()
    prepared = prepare(options)
    seconds = time.perf_counter() - started
    scores, parameters = found(prepared)
    return Outcome(
        dev=scores["dev"],
        test=scores["test"],
        parameters=parameters,
        steps=0,
        learning_rate=None,
        curve=[],
        train_seconds=seconds,
        extra=rows_said(prepared.task.origin),
        predictions=partial(predictions, prepared, "test"),
    )


def check_zero_shot(flat: dict[str, Any]) -> None:
    """Refuse a head that must be trained: only label words can be asked for as they are."""
    if flat.get("head") != "verbalizer":
        raise SoftPromptError(
            f"method 'zero_shot': expected head='verbalizer' with template and label_words, got head={flat.get('head', 'pooled')!r}."
        )
    check_common(as_run(flat))
