"""A metric of the user's own, beside the scores that a kind of task has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import EvalPrediction

from .._types import SoftPromptError, did_you_mean
from ..models.kinds import Kind

Metric = Callable[[Any, Any], float | Mapping[str, float]]
OF_TRAINER = {"loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch"}


def metric_name(metric: Metric) -> str:
    """The name of a metric's score: that of the function, or of the class of another callable; "metric" for a lambda."""
    own = getattr(metric, "func", metric)  # of a functools.partial
    name = str(getattr(own, "__name__", type(own).__name__))
    return "metric" if name == "<lambda>" else name


def check_metric(metric: Metric, kind: Kind, names: Sequence[str], loss_only: bool) -> None:
    """Refuse a metric before training.

    Raises:
        SoftPromptError: it is not callable, or a run like this hands it nothing.
    """
    if not callable(metric):
        raise SoftPromptError(
            f"metric: expected a function of (predictions, labels), got {type(metric).__name__}; to choose by a score that is there, set metric_for_best_model."
        )
    if kind.metrics(names) is None:
        raise SoftPromptError(
            f"metric {metric_name(metric)!r}: a {kind.name} task is scored by its loss alone in training, so a metric would read nothing; drop it."
        )
    if loss_only:
        raise SoftPromptError(
            f"metric {metric_name(metric)!r}: prediction_loss_only=True leaves no predictions; drop one of the two."
        )


class WithMetric:
    """The scores of a kind of task and those of a metric of the user's, as a trainer computes them.

    Args:
        metric: takes (predictions, labels) as `Kind.for_metric` has them; returns a number, or numbers by name.
        kind: of the task.
        names: of the classes.
        best: the score that chooses the checkpoint.

    Attributes:
        own: names of the metric's scores, after the first evaluation.
    """

    def __init__(self, metric: Metric, kind: Kind, names: Sequence[str], best: str):
        self.metric, self.kind, self.names, self.best = metric, kind, names, best
        self.own: tuple[str, ...] = ()
        usual = kind.metrics(names)
        assert usual is not None  # check_metric saw to it
        self._usual = usual

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        scores = self._usual(prediction)
        found = self._measure(prediction)
        if taken := sorted(found.keys() & (scores.keys() | OF_TRAINER)):
            raise SoftPromptError(
                f"metric {metric_name(self.metric)!r}: the name {taken[0]!r} is taken by a score that is always there; give it another."
            )
        self.own = tuple(found)
        if self.best not in {*scores, *found, "loss"}:
            raise SoftPromptError(
                f"metric_for_best_model={self.best!r}: expected one of {', '.join((*scores, *found, 'loss'))}.{did_you_mean(self.best, (*scores, *found))}"
            )
        return {**scores, **found}

    def _measure(self, prediction: EvalPrediction) -> dict[str, float]:
        name = metric_name(self.metric)
        try:
            value = self.metric(*self.kind.for_metric(self.names, prediction))
        except Exception as error:  # whatever the user's function raises
            said = " ".join(str(error).split())[:300]
            raise SoftPromptError(f"metric {name!r} raised {type(error).__name__}: {said}") from error
        if not isinstance(value, Mapping):
            return {name: _number(value, f"metric {name!r}")}
        if not value or not all(isinstance(key, str) for key in value):
            raise SoftPromptError(f"metric {name!r}: expected a number, or numbers by name, got {value!r:.200}.")
        return {key: _number(entry, f"metric {name!r}: {key!r}") for key, entry in value.items()}


def _number(value: Any, where: str) -> float:
    """A finite number of Python, numpy or torch, as a float; a score that is none would choose a checkpoint by chance."""
    plain = value.item() if getattr(value, "shape", None) == () else value
    if isinstance(plain, bool) or not isinstance(plain, int | float) or not math.isfinite(plain):
        raise SoftPromptError(f"{where}: expected a finite number, got {value!r:.200}.")
    return float(plain)
