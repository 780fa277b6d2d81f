"""What a method costs beside another: steps to a score, seconds, and trainings for one cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..._types import check_choice
from .intervals import Interval, median_interval
from .paired import SLACK
from .scores import Block, LeftOut, Line, Scores

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Shares:
    """A cost of a method as shares of the reference's in the same blocks.

    Attributes:
        method: the method whose cost it is.
        shares: block -> share; infinite where the method never gets there.
        median, interval: of all shares, the infinite ones included.
        never: how many shares are infinite.
        left_out: blocks without a share, and the reasons.
    """

    method: str
    shares: dict[Block, float]
    median: float | None
    interval: Interval | None
    never: int
    left_out: list[LeftOut]


def curve_of(line: Line) -> Curve:
    """Return the (step, dev score) points of a run, sorted by step, without scores that are no numbers."""
    points = [(int(step), float(score)) for step, score in line.get("curve") or () if score is not None]
    return sorted((step, score) for step, score in points if math.isfinite(score))


def first_step(curve: Curve, target: float) -> float:
    """Return the first step whose score reaches ``target``; infinity where none does."""
    return next((float(step) for step, score in curve if score >= target - SLACK), math.inf)


def steps_to_target(scores: Scores, reference: str, target: float | None = None) -> list[Shares]:
    """Count the steps until the dev score first reaches a target, as a share of the reference's steps to it.

    Args:
        scores: of the runs; their lines need ``curve``.
        reference: the method that sets the pace.
        target: a dev score; None takes the reference's own best dev score in the same block.

    A method that never reaches the target has an infinite share. Where the reference itself does not reach it, or needs no
    step, there is no share, and the result names the block as left out. Only blocks that every method has finished count.
    """
    check_choice("reference", reference, scores.methods)

    def share(base: Line, line: Line) -> float | str:
        pace, curve = curve_of(base), curve_of(line)
        if not pace or not curve:
            return f"no dev curve of {line['method'] if pace else reference}"
        goal = max(score for _, score in pace) if target is None else target
        steps = first_step(pace, goal)
        if steps == 0:
            return f"{reference} is at the target before the first step"
        if math.isinf(steps):
            return f"{reference} never reaches the target"
        return first_step(curve, goal) / steps

    return [_shares(scores, reference, method, share) for method in scores.methods]


def trainings(scores: Scores, method: str) -> list[int]:
    """Return how often a method was trained for one cell, once for each learning rate: every number that occurs, sorted."""
    return sorted({len(line["trials"]) for line in scores.lines[method].values() if line.get("trials")})


def relative_cost(scores: Scores, reference: str, key: str = "train_seconds") -> list[Shares]:
    """Divide ``time[key]`` of every method by that of the reference in the same block, on blocks that all have finished.

    Args:
        scores: of the runs; their lines need ``time``.
        reference: the method whose cost is 1.
        key: "train_seconds" or "total_seconds".
    """
    check_choice("reference", reference, scores.methods)

    def share(base: Line, line: Line) -> float | str:
        for x in (base, line):
            seconds = (x.get("time") or {}).get(key)
            if seconds is None or not math.isfinite(seconds) or seconds <= 0:
                return f"{key} of {x['method']} is {seconds}"
        return float(line["time"][key]) / float(base["time"][key])

    return [_shares(scores, reference, method, share) for method in scores.methods]


def _shares(scores: Scores, reference: str, method: str, share: Callable[[Line, Line], float | str]) -> Shares:
    shares: dict[Block, float] = {}
    left_out = list(scores.left_out)
    for block in scores.complete():
        value = share(scores.lines[reference][block], scores.lines[method][block])
        if isinstance(value, str):
            left_out.append(LeftOut(method, block, value))
        else:
            shares[block] = value
    values = list(shares.values())
    return Shares(
        method,
        shares,
        median=float(np.median(values)) if values else None,
        interval=median_interval(values) if values else None,
        never=sum(math.isinf(value) for value in values),
        left_out=left_out,
    )
