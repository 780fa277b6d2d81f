"""Where in training the chosen checkpoints stand, and what the last step would have scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .intervals import Interval, bootstrap_interval, median_interval
from .scores import Block, Line, Scores, by_setting

EARLY = 0.2  # share of training; steps of warm-up are a third of it and more


@dataclass(frozen=True)
class Chosen:
    """The chosen checkpoints of a method.

    Attributes:
        method: the method whose checkpoints they are.
        shares: block -> step of the chosen checkpoint / steps of training, for runs that say it.
        median, interval: of the shares.
        early: how many shares are at most `EARLY`.
        differences: block -> test score of the last step minus that of the chosen checkpoint, for runs that scored both.
        mean, mean_interval: of the settings' mean differences.
    """

    method: str
    shares: dict[Block, float]
    median: float | None
    interval: Interval | None
    early: int
    differences: dict[Block, float]
    mean: float | None
    mean_interval: Interval | None


def chosen_checkpoints(scores: Scores) -> list[Chosen]:
    """Say where the chosen checkpoints of each method stand, on all of its runs that count.

    Lines say it by ``extra.best_step`` and ``steps``, and by ``extra.last`` with ``test`` where both were scored.
    """
    return [_chosen(method, scores.lines[method]) for method in scores.methods]


def _chosen(method: str, lines: dict[Block, Line]) -> Chosen:
    extras = {block: line.get("extra") or {} for block, line in lines.items()}
    shares = {
        block: extras[block]["best_step"] / line["steps"]
        for block, line in lines.items()
        if line.get("steps") and extras[block].get("best_step") is not None
    }
    differences = {
        block: extras[block]["last"]["test"] - line["test"]
        for block, line in lines.items()
        if extras[block].get("last")
    }
    values, found = list(shares.values()), np.array(list(differences.values()))
    groups = [found[positions] for positions in by_setting(list(differences)).values()]
    return Chosen(
        method,
        shares,
        median=float(np.median(values)) if values else None,
        interval=median_interval(values) if values else None,
        early=sum(value <= EARLY for value in values),
        differences=differences,
        mean=float(np.mean([group.mean() for group in groups])) if groups else None,
        mean_interval=bootstrap_interval(groups),
    )
