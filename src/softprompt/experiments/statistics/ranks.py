"""Average ranks of methods, and which of them differ (Demsar 2006)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .scores import Block, LeftOut, Scores, by_setting

ALPHA = 0.05  # of Nemenyi's test, as in Demsar's figures


@dataclass(frozen=True)
class Ranks:
    """Average ranks (1 is best) of k methods over n settings.

    Attributes:
        ranks: method -> average rank; ties share theirs. Empty where no block is complete.
        friedman: (statistic, p) of Friedman's test that no method differs, corrected for ties; None for k < 3.
        critical_difference: Nemenyi's: average ranks farther apart than this differ at `ALPHA`; None for k < 2 or n = 0.
        units: n.
        blocks, all_blocks, left_out: as in `Comparisons`.
    """

    ranks: dict[str, float]
    friedman: tuple[float, float] | None
    critical_difference: float | None
    units: int
    blocks: list[Block]
    all_blocks: int
    left_out: list[LeftOut]

    def groups(self) -> list[list[str]]:
        """Return the largest sets of methods whose ranks all lie within the critical difference, best first, without sets of one."""
        names = sorted(self.ranks, key=lambda name: self.ranks[name])
        width = self.critical_difference or 0.0
        joined: list[list[str]] = []
        end = 0
        for i, first in enumerate(names):
            group = [name for name in names[i:] if self.ranks[name] - self.ranks[first] < width]
            if len(group) > 1 and i + len(group) > end:
                joined.append(group)
                end = i + len(group)
        return joined


def rank(scores: Scores) -> Ranks:
    """Average the methods' ranks on complete blocks, with Friedman's test and Nemenyi's critical difference (Demsar 2006).

    Ranks are taken over settings: both statistics want independent data sets, which seeds of one task are not.
    """
    blocks = scores.complete()
    matrix = scores.matrix(blocks)
    units = np.array([matrix[positions].mean(0) for positions in by_setting(blocks).values()])
    n, k = len(units), len(scores.methods)
    # Means of the same scores in another order differ in the last digit; that is a tie
    ranks = stats.rankdata(-np.round(units, 12), axis=1) if n else units
    friedman = None
    if n and k >= 3:
        same = bool((ranks == ranks[:, :1]).all())
        test = None if same else stats.friedmanchisquare(*ranks.T)
        friedman = (0.0, 1.0) if test is None else (float(test.statistic), float(test.pvalue))
    return Ranks(
        ranks={method: float(ranks[:, i].mean()) for i, method in enumerate(scores.methods)} if n else {},
        friedman=friedman,
        critical_difference=critical_difference(k, n) if n and k > 1 else None,
        units=n,
        blocks=blocks,
        all_blocks=len(scores.blocks),
        left_out=scores.left_out,
    )


def critical_difference(methods: int, units: int) -> float:
    """Compute Nemenyi's critical difference of average ranks, ``q_alpha sqrt(k (k + 1) / (6 n))`` (Demsar 2006).

    q_alpha is the upper quantile of the studentized range of k means with infinite degrees of freedom, over sqrt 2.
    """
    q = stats.studentized_range.ppf(1 - ALPHA, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * units)))
