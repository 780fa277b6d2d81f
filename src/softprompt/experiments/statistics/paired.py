"""Paired comparisons of methods: differences in the same blocks, their tests, and wins, ties and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..._types import SoftPromptError, check_choice
from .intervals import RESAMPLES, Interval, interval_of
from .scores import Block, LeftOut, Scores, by_setting

TESTS = ("sign_flip", "wilcoxon")
SLACK = 1e-9  # a difference of 0.005 between two accuracies is stored as 0.00500000000000000444


class WinTieLoss(NamedTuple):
    """How many units a method wins, ties and loses."""

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
        units: number of paired differences behind it, one for each block or setting.
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
        over, test, tie_width: as given.
        fewest: values that an interval resamples at least: seeds of a setting, or settings; 0 where no block counts.
    """

    reference: str
    lines: list[Comparison]
    blocks: list[Block]
    all_blocks: int
    left_out: list[LeftOut]
    over: str
    test: str
    tie_width: float
    fewest: int


def compare(
    scores: Scores, reference: str, over: str = "seeds", test: str = "sign_flip", tie_width: float = 0.005
) -> Comparisons:
    """Compare every other method with ``reference`` by paired differences, on the blocks that all have finished.

    Args:
        scores: of the runs.
        reference: the method to compare with.
        over: what is a sample, "seeds" or "tasks" (see `softprompt.experiments.statistics`).
        test: "sign_flip" or "wilcoxon" (see `paired_p`).
        tie_width: a difference up to this size is a tie.

    Raises:
        SoftPromptError: the method, ``over`` or ``test`` is unknown.
    """
    check_choice("reference", reference, scores.methods)
    check_choice("test", test, TESTS)
    blocks = scores.complete()
    units = scores.matrix(scores.methods, blocks, over)
    single = scores.matrix(scores.methods, blocks, "seeds")
    groups = list(by_setting(blocks).values())
    shares = np.ones(len(units))
    if over == "seeds" and test == "sign_flip":  # the tested mean is the shown one: a setting's blocks share its weight
        for g in groups:
            shares[g] = 1 / len(g)
    fewest = min(map(len, groups), default=0) if over == "seeds" else len(groups)
    base = scores.methods.index(reference)
    lines = []
    for column, method in enumerate(scores.methods):
        if method == reference:
            continue
        by_unit = units[:, column] - units[:, base]
        differences = [single[g, column] - single[g, base] for g in groups]
        means = [float(group.mean()) for group in differences]
        lines.append(
            Comparison(
                method,
                difference=float(np.mean(means)) if means else None,
                interval=interval_of(differences, over),
                p=paired_p(by_unit * shares, test) if means else None,
                holm=None,
                record=win_tie_loss(by_unit, tie_width),
                units=len(by_unit),
            )
        )
    corrected = iter(holm([line.p for line in lines if line.p is not None]))
    lines = [line if line.p is None else replace(line, holm=next(corrected)) for line in lines]
    return Comparisons(reference, lines, blocks, len(scores.blocks), scores.left_out, over, test, tie_width, fewest)


def paired_p(differences: Sequence[float] | np.ndarray, test: str = "sign_flip", seed: int = 0) -> float:
    """Compute the two-sided p of paired differences, against a distribution that is symmetric around 0.

    ``"sign_flip"`` compares the mean with the means under all 2^n choices of signs up to n = 13, and under 9,999 random ones
    above. It is the default: it tests the mean, which the tables show, and has no special case for ties or zeros.
    ``"wilcoxon"`` is the signed-rank test; it splits zero differences between both sides (Demsar 2006). No p is below 2 / 2^n:
    five pairs never reach 0.05.
    """
    check_choice("test", test, TESTS)
    values = np.asarray(differences, dtype=float)
    if not values.any():
        return 1.0  # no difference at all; a rank test has nothing to rank
    if test == "wilcoxon":
        return float(stats.wilcoxon(values, zero_method="zsplit").pvalue)
    if len(values) == 1:
        return 1.0  # both signs are as far from 0; SciPy wants two pairs
    flipped = stats.permutation_test(
        (values,),
        lambda sample, axis: np.round(sample.mean(axis), 12),  # equal means, added in another order, are equal
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
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


def win_tie_loss(differences: Sequence[float] | np.ndarray, tie_width: float) -> WinTieLoss:
    """Count differences above, within and below ``[-tie_width, tie_width]``."""
    values = np.asarray(differences, dtype=float)
    wins, losses = int((values > tie_width + SLACK).sum()), int((values < -tie_width - SLACK).sum())
    return WinTieLoss(wins, len(values) - wins - losses, losses)


def records(scores: Scores, over: str = "seeds", tie_width: float = 0.005) -> dict[tuple[str, str], WinTieLoss]:
    """Count, for every ordered pair, what the first wins, ties and loses against the second, on the blocks that all have finished."""
    units = scores.matrix(scores.methods, scores.complete(), over)
    return {
        (a, b): win_tie_loss(units[:, i] - units[:, j], tie_width)
        for i, a in enumerate(scores.methods)
        for j, b in enumerate(scores.methods)
        if i != j
    }
