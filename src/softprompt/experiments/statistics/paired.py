"""Paired comparisons of methods: differences in the same blocks, their tests, and wins, ties and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..._types import SoftPromptError, check_choice
from .intervals import RESAMPLES, Interval, bootstrap_interval
from .scores import Block, LeftOut, Scores, by_setting

TIE = 0.005  # a difference of accuracies up to this size is a tie: half a point
SLACK = 1e-9  # a difference of 0.005 between two accuracies is stored as 0.00500000000000000444


class WinTieLoss(NamedTuple):
    """How many blocks a method wins, ties and loses."""

    wins: int
    ties: int
    losses: int

    def __str__(self) -> str:
        return f"{self.wins}/{self.ties}/{self.losses}"


@dataclass(frozen=True)
class Comparison:
    """A method against the reference.

    Attributes:
        method: the method that is compared.
        difference: mean of the settings' mean differences, method minus reference.
        interval: of the difference.
        p: of the paired test; None where no block counts.
        holm: p, corrected for all comparisons of the table.
        record: wins, ties and losses of the method.
        units: number of paired differences behind it, one for each block.
    """

    method: str
    difference: float | None
    interval: Interval | None
    p: float | None
    holm: float | None
    record: WinTieLoss
    units: int


@dataclass(frozen=True)
class Comparisons:
    """All methods against one.

    Attributes:
        reference: the method that the others are compared with.
        lines: one `Comparison` for each other method.
        blocks: the blocks that count: every method has finished them.
        all_blocks: how many blocks there are.
        left_out: the runs for whose sake blocks are left out.
        fewest: seeds of a setting that an interval resamples at least; 0 where no block counts.
    """

    reference: str
    lines: list[Comparison]
    blocks: list[Block]
    all_blocks: int
    left_out: list[LeftOut]
    fewest: int


def compare(scores: Scores, reference: str) -> Comparisons:
    """Compare every other method with ``reference`` by paired differences, on the blocks that all have finished.

    Args:
        scores: of the runs.
        reference: the method to compare with.

    Raises:
        SoftPromptError: the method is unknown.
    """
    check_choice("reference", reference, scores.methods)
    blocks = scores.complete()
    matrix = scores.matrix(blocks)
    groups = list(by_setting(blocks).values())
    shares = np.ones(len(blocks))
    for g in groups:  # the tested mean is the shown one: a setting's blocks share its weight
        shares[g] = 1 / len(g)
    base = scores.methods.index(reference)
    lines = []
    for column, method in enumerate(scores.methods):
        if method == reference:
            continue
        differences = matrix[:, column] - matrix[:, base]
        by_group = [differences[g] for g in groups]
        means = [float(group.mean()) for group in by_group]
        lines.append(
            Comparison(
                method,
                difference=float(np.mean(means)) if means else None,
                interval=bootstrap_interval(by_group),
                p=paired_p(differences * shares) if means else None,
                holm=None,
                record=win_tie_loss(differences),
                units=len(differences),
            )
        )
    corrected = iter(holm([line.p for line in lines if line.p is not None]))
    lines = [line if line.p is None else replace(line, holm=next(corrected)) for line in lines]
    fewest = min(map(len, groups), default=0)
    return Comparisons(reference, lines, blocks, len(scores.blocks), scores.left_out, fewest)


def paired_p(differences: Sequence[float] | np.ndarray) -> float:
    """Compute the two-sided p of paired differences, against a distribution that is symmetric around 0.

    The sign-flip test compares the mean with the means under all 2^n choices of signs up to n = 13, and under `RESAMPLES` random
    ones above. It tests the mean, which the tables show, and has no special case for ties. No p is below 2 / 2^n: five pairs
    never reach 0.05.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) == 1:
        return 1.0  # both signs are as far from 0; SciPy wants two pairs
    flipped = stats.permutation_test(
        (values,),
        lambda sample, axis: np.round(sample.mean(axis), 12),  # equal means, added in another order, are equal
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(flipped.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values by Holm's step-down method: ``max over j <= i of min(1, (m - j) p_(j))``, j from 0, in the given order.

    Raises:
        SoftPromptError: a value is not a probability.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise SoftPromptError(f"holm: expected probabilities between 0 and 1, got {list(p_values)}.")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def win_tie_loss(differences: Sequence[float] | np.ndarray) -> WinTieLoss:
    """Count differences above, within and below [-`TIE`, `TIE`]."""
    values = np.asarray(differences, dtype=float)
    wins, losses = int((values > TIE + SLACK).sum()), int((values < -TIE - SLACK).sum())
    return WinTieLoss(wins, len(values) - wins - losses, losses)
