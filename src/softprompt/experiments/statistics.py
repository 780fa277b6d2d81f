"""Statistics of finished runs: means with intervals, paired comparisons, ranks, steps to a target.

Pure functions of *lines*, one mapping per run (see `Scores`). A *setting* is (task, shots, rows); a *block* is a setting
with a seed: the same rows for every method.

What is drawn at random, ``over``:

- ``"seeds"`` (default): the settings are the ones that were chosen, only seeds are a sample. Intervals resample the seeds
  within each setting, tests take blocks as units. The result speaks of these settings.
- ``"tasks"``: the settings are a sample of all there might be. Each counts once, with the mean of its seeds; intervals
  resample settings, tests take settings as units. The result speaks of further settings, and needs many of them.

In both, every setting has the same weight in a mean. Comparisons use only blocks that every compared method has finished;
what is left out is part of each result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from .._types import SoftPromptError, check_choice

Line = Mapping[str, Any]
Curve = list[tuple[int, float]]
OVER = ("seeds", "tasks")
TESTS = ("sign_flip", "wilcoxon")
RESAMPLES = 9999
SLACK = 1e-9  # a difference of 0.005 between two accuracies is stored as 0.00500000000000000444


class Setting(NamedTuple):
    """A task with its number of training rows, ``shots`` per class or ``rows`` in all (None: all)."""

    task: str
    shots: int | None
    rows: int | None

    def __str__(self) -> str:
        amount = f"{self.shots} shots" if self.shots else f"{self.rows} rows" if self.rows else ""
        return f"{self.task}, {amount}" if amount else self.task


class Block(NamedTuple):
    """A setting with a seed."""

    setting: Setting
    seed: int

    def __str__(self) -> str:
        return f"{self.setting}, seed {self.seed}"


class Interval(NamedTuple):
    """A confidence interval; an end may be infinite."""

    low: float
    high: float


@dataclass(frozen=True)
class LeftOut:
    """A run that does not count, and why: it failed, its score is not a number, or it is not there."""

    method: str
    block: Block
    reason: str

    def __str__(self) -> str:
        return f"{self.method} on {self.block}: {self.reason}"


def setting_of(line: Line) -> Setting:
    """The setting of a line."""
    return Setting(line["task"], line.get("shots"), line.get("rows"))


def block_of(line: Line) -> Block:
    """The block of a line."""
    return Block(setting_of(line), line["seed"])


class Scores:
    """The scores of finished runs by method and block, and what is missing.

    Args:
        lines: mappings with ``method``, ``task``, ``shots``, ``rows``, ``seed``, ``status`` ("done" or "failed"), the
            score, and what single functions read: ``parameters``, ``steps``, ``curve``, ``time``.
        methods: those to look at, in this order; None takes all, in order of appearance.
        score: the key to compare, "test" or "dev"; larger is better.

    Attributes:
        methods, settings: in the given order, or in that of appearance.
        blocks: every block in which some method was tried, by setting, then as they appear.
        lines: method -> block -> line, of the runs that count.
        left_out: the runs that do not.

    Raises:
        SoftPromptError: a method without lines, or two finished lines of one method on one block.
    """

    def __init__(self, lines: Iterable[Line], methods: Sequence[str] | None = None, score: str = "test"):
        lines = list(lines)
        there = list(dict.fromkeys(line["method"] for line in lines))
        for method in methods or ():
            check_choice("method in these results", method, there)
        self.score = score
        self.methods = list(there if methods is None else methods)
        lines = [line for line in lines if line["method"] in self.methods]
        self.settings = list(dict.fromkeys(setting_of(line) for line in lines))
        order = {setting: i for i, setting in enumerate(self.settings)}
        self.blocks = sorted(dict.fromkeys(block_of(line) for line in lines), key=lambda block: order[block.setting])
        self.lines: dict[str, dict[Block, Line]] = {method: {} for method in self.methods}
        failures: dict[tuple[str, Block], str] = {}
        for line in lines:
            method, block = line["method"], block_of(line)
            if reason := self._unusable(line):
                failures[method, block] = reason
            elif block in self.lines[method]:
                raise SoftPromptError(
                    f"two finished runs of {method!r} on {block}; expected one per method and block: give one suite at a time, or name the methods apart."
                )
            else:
                self.lines[method][block] = line
        self.left_out = [
            LeftOut(method, block, failures.get((method, block), "no run"))
            for method in self.methods
            for block in self.blocks
            if block not in self.lines[method]
        ]

    def _unusable(self, line: Line) -> str:
        if line["status"] != "done":
            return f"failed: {line.get('error') or 'no reason given'}"
        value = line.get(self.score)
        if value is None:
            return f"no {self.score} score"
        return "" if math.isfinite(value) else f"{self.score} score is {value}"

    def value(self, method: str, block: Block) -> float:
        """The score of a run that counts."""
        return float(self.lines[method][block][self.score])

    def seeds(self, method: str, setting: Setting) -> list[float]:
        """The scores of all runs that count in a setting, in order of the blocks."""
        return [self.value(method, block) for block in self.lines[method] if block.setting == setting]

    def complete(self, methods: Sequence[str] | None = None) -> list[Block]:
        """The blocks that all ``methods`` have finished (None: all methods)."""
        chosen = self.methods if methods is None else methods
        return [block for block in self.blocks if all(block in self.lines[method] for method in chosen)]

    def matrix(self, methods: Sequence[str], blocks: Sequence[Block], over: str) -> np.ndarray:
        """Scores [units, methods]: of the blocks, or of the settings' means over these blocks."""
        check_choice("over", over, OVER)
        by_block = np.array([[self.value(method, block) for method in methods] for block in blocks])
        if over == "seeds" or not blocks:
            return by_block.reshape(len(blocks), len(methods))
        groups = _by_setting(blocks)
        return np.array([by_block[rows].mean(0) for rows in groups.values()])


def _by_setting(blocks: Sequence[Block]) -> dict[Setting, list[int]]:
    """Positions of the blocks of each setting, in order of appearance."""
    groups: dict[Setting, list[int]] = {}
    for i, block in enumerate(blocks):
        groups.setdefault(block.setting, []).append(i)
    return groups


# Means and intervals --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (None for one value), interval of the mean (None where nothing varies by chance),
    and the number of values."""

    mean: float
    deviation: float | None
    interval: Interval | None
    count: int


def bootstrap_interval(
    groups: Sequence[Sequence[float] | np.ndarray], confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Percentile-bootstrap interval of the mean of the groups' means; each group is resampled by itself.

    One group is the ordinary bootstrap of a mean. Few values give too short an interval: with 5 normal ones, a 95 %
    interval covers the mean in about 84 % of cases.

    Returns:
        The interval, or None where a group has fewer than two values: how much it varies is not known.
    """
    if not groups or any(len(group) < 2 for group in groups):
        return None

    def mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis) for sample in samples], axis=0)

    found = stats.bootstrap(
        [np.asarray(group, dtype=float) for group in groups],
        mean_of_means,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def _interval(groups: list[np.ndarray], over: str) -> Interval | None:
    """Of the mean of the settings' means: seeds resampled within each setting, or the settings themselves."""
    return bootstrap_interval(groups if over == "seeds" else [np.array([group.mean() for group in groups])])


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Interval of a median between two order statistics, from the binomial distribution; at least ``confidence``, exact.

    Values may be infinite. Returns None below 6 values (at 0.95): not even the whole range is that certain.
    """
    found = stats.quantile_test(np.asarray(values, dtype=float), q=0.0, p=0.5).confidence_interval(confidence)
    low, high = float(found.low), float(found.high)
    return None if math.isnan(low) or math.isnan(high) else Interval(low, high)


def summarize(scores: Scores) -> dict[tuple[str, Setting], Summary]:
    """Mean and spread over the seeds of each (method, setting); a pair without a run that counts has no entry."""
    table = {}
    for method in scores.methods:
        for setting in scores.settings:
            if values := scores.seeds(method, setting):
                table[method, setting] = _summary(values, bootstrap_interval([values]))
    return table


def _summary(values: Sequence[float], interval: Interval | None) -> Summary:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), deviation, interval, len(values))


def overall(scores: Scores, over: str = "seeds") -> dict[str, Summary]:
    """Mean of the settings' means of each method, on the blocks that all methods have finished.

    The deviation is that of the settings' means. Empty where no block is complete.
    """
    check_choice("over", over, OVER)
    blocks = scores.complete()
    if not blocks:
        return {}
    matrix = scores.matrix(scores.methods, blocks, "seeds")
    table = {}
    for column, method in enumerate(scores.methods):
        groups = [matrix[rows, column] for rows in _by_setting(blocks).values()]
        means = [float(group.mean()) for group in groups]
        table[method] = _summary(means, _interval(groups, over))
    return table


# Paired comparisons ---------------------------------------------------------------------------------------------------


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
        difference: mean of the settings' mean differences, method minus reference.
        interval: of the difference.
        p: of the paired test; holm: corrected for all comparisons of the table. None where no block counts.
        record: wins, ties and losses of the method.
        units: paired differences behind it: blocks, or settings.
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
        blocks: those that count: finished by every method.
        all_blocks: how many there are.
        left_out: the runs for whose sake the others are left out.
        over, test, tie_width: as given.
    """

    reference: str
    rows: list[Comparison]
    blocks: list[Block]
    all_blocks: int
    left_out: list[LeftOut]
    over: str
    test: str
    tie_width: float


def compare(
    scores: Scores, reference: str, over: str = "seeds", test: str = "sign_flip", tie_width: float = 0.005
) -> Comparisons:
    """Paired differences of every other method to ``reference``, on the blocks that all have finished.

    Args:
        scores: of the runs.
        reference: the method to compare with.
        over: what is a sample, "seeds" or "tasks" (see the module).
        test: "sign_flip" or "wilcoxon" (see `paired_p`).
        tie_width: a difference up to this size is a tie.

    Raises:
        SoftPromptError: an unknown method, ``over`` or ``test``.
    """
    check_choice("reference", reference, scores.methods)
    check_choice("test", test, TESTS)
    blocks = scores.complete()
    units = scores.matrix(scores.methods, blocks, over)
    single = scores.matrix(scores.methods, blocks, "seeds")
    groups = list(_by_setting(blocks).values())
    shares = np.ones(len(units))
    if over == "seeds" and test == "sign_flip":  # the tested mean is the shown one: a setting's blocks share its weight
        for g in groups:
            shares[g] = 1 / len(g)
    base = scores.methods.index(reference)
    rows = []
    for column, method in enumerate(scores.methods):
        if method == reference:
            continue
        by_unit = units[:, column] - units[:, base]
        by_setting = [single[g, column] - single[g, base] for g in groups]
        means = [float(group.mean()) for group in by_setting]
        rows.append(
            Comparison(
                method,
                difference=float(np.mean(means)) if means else None,
                interval=_interval(by_setting, over),
                p=paired_p(by_unit * shares, test) if means else None,
                holm=None,
                record=win_tie_loss(by_unit, tie_width),
                units=len(by_unit),
            )
        )
    corrected = iter(holm([row.p for row in rows if row.p is not None]))
    rows = [row if row.p is None else replace(row, holm=next(corrected)) for row in rows]
    return Comparisons(reference, rows, blocks, len(scores.blocks), scores.left_out, over, test, tie_width)


def paired_p(differences: Sequence[float] | np.ndarray, test: str = "sign_flip", seed: int = 0) -> float:
    """Two-sided p of paired differences, against a distribution that is symmetric around 0.

    ``"sign_flip"`` (the default: it tests the mean, which the tables show, and has no special case for ties or zeros)
    compares the mean with the means under all 2^n choices of signs up to n = 13, and under 9,999 random ones above.
    ``"wilcoxon"`` is the signed-rank test, zero differences split between both sides (Demsar 2006). No p is below
    2 / 2^n: five pairs never reach 0.05.
    """
    check_choice("test", test, TESTS)
    values = np.asarray(differences, dtype=float)
    if not values.any():
        return 1.0  # no difference at all; a rank test has nothing to rank
    if test == "wilcoxon":
        return float(stats.wilcoxon(values, zero_method="zsplit").pvalue)
    if len(values) == 1:
        return 1.0  # both signs are as far from 0; SciPy wants two pairs
    found = stats.permutation_test(
        (values,),
        lambda sample, axis: np.round(sample.mean(axis), 12),  # equal means, added in another order, are equal
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: ``max over j <= i of min(1, (m - j) p_(j))``, j from 0, in the given order.

    Raises:
        SoftPromptError: a value is no probability.
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
    """Wins, ties and losses of the first against the second, of every ordered pair, on the blocks that all have finished."""
    units = scores.matrix(scores.methods, scores.complete(), over)
    return {
        (a, b): win_tie_loss(units[:, i] - units[:, j], tie_width)
        for i, a in enumerate(scores.methods)
        for j, b in enumerate(scores.methods)
        if i != j
    }


# Ranks ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """Average ranks (1 is best) of k methods over n units.

    Attributes:
        ranks: method -> average rank, ties share theirs; empty where no block is complete.
        friedman: (statistic, p) of Friedman's test with correction for ties, that no method differs; None for k < 3.
        critical_difference: Nemenyi's: average ranks farther apart differ at ``alpha``; None for k < 2 or n = 0.
        units: n.
        blocks, all_blocks, left_out: as in `Comparisons`.
    """

    ranks: dict[str, float]
    friedman: tuple[float, float] | None
    critical_difference: float | None
    alpha: float
    units: int
    over: str
    blocks: list[Block]
    all_blocks: int
    left_out: list[LeftOut]

    def groups(self) -> list[list[str]]:
        """Largest sets of methods, best first, whose ranks all lie within the critical difference; sets of one are left out."""
        names = sorted(self.ranks, key=lambda name: self.ranks[name])
        width = self.critical_difference or 0.0
        found: list[list[str]] = []
        end = 0
        for i, first in enumerate(names):
            group = [name for name in names[i:] if self.ranks[name] - self.ranks[first] < width]
            if len(group) > 1 and i + len(group) > end:
                found.append(group)
                end = i + len(group)
        return found


def rank(scores: Scores, over: str = "tasks", alpha: float = 0.05) -> Ranks:
    """Average ranks with Friedman's test and Nemenyi's critical difference (Demsar 2006), on complete blocks.

    Ranks are taken over settings by default: both statistics want independent data sets, and seeds of one task are not.
    """
    blocks = scores.complete()
    units = scores.matrix(scores.methods, blocks, over)
    n, k = units.shape if len(units) else (0, len(scores.methods))
    # Means of the same scores in another order differ in the last digit; that is a tie
    ranks = stats.rankdata(-np.round(units, 12), axis=1) if n else units
    friedman = None
    if n and k >= 3:
        same = bool((ranks == ranks[:, :1]).all())
        found = None if same else stats.friedmanchisquare(*ranks.T)
        friedman = (0.0, 1.0) if found is None else (float(found.statistic), float(found.pvalue))
    return Ranks(
        ranks={method: float(ranks[:, i].mean()) for i, method in enumerate(scores.methods)} if n else {},
        friedman=friedman,
        critical_difference=critical_difference(k, n, alpha) if n and k > 1 else None,
        alpha=alpha,
        units=n,
        over=over,
        blocks=blocks,
        all_blocks=len(scores.blocks),
        left_out=scores.left_out,
    )


def critical_difference(methods: int, units: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of average ranks, ``q_alpha sqrt(k (k + 1) / (6 n))`` (Demsar 2006).

    q_alpha is the upper quantile of the studentized range of k means with infinite degrees of freedom, over sqrt 2.
    """
    q = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * units)))


# Steps and cost -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shares:
    """A cost of a method as shares of the reference's in the same blocks.

    Attributes:
        shares: block -> share; infinite where the method never gets there.
        median, interval: of all shares, the infinite ones included.
        never: how many are infinite.
        left_out: blocks without a share, and why.
    """

    method: str
    shares: dict[Block, float]
    median: float | None
    interval: Interval | None
    never: int
    left_out: list[LeftOut]


def curve_of(line: Line) -> Curve:
    """The (step, dev score) points of a run, by step; scores that are no numbers are left out."""
    points = [(int(step), float(score)) for step, score in line.get("curve") or () if score is not None]
    return sorted((step, score) for step, score in points if math.isfinite(score))


def first_step(curve: Curve, target: float) -> float:
    """The first step whose score reaches ``target``; infinite where none does."""
    return next((float(step) for step, score in curve if score >= target - SLACK), math.inf)


def steps_to_target(scores: Scores, reference: str, target: float | None = None) -> list[Shares]:
    """Steps until the dev score first reaches a target, as a share of the reference's steps to it.

    Args:
        scores: of the runs; their lines need ``curve``.
        reference: the method that sets the pace.
        target: a dev score; None takes the reference's own best dev score in the same block.

    A method that never reaches the target has an infinite share. Where the reference itself does not (or needs no step),
    there is no share, and the block is left out by name. Only blocks that every method has finished count.
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
    """How often a method was trained for one cell, the learning rates that it tried: every number that occurs, sorted."""
    return sorted({len(line["trials"]) for line in scores.lines[method].values() if line.get("trials")})


def relative_cost(scores: Scores, reference: str, key: str = "train_seconds") -> list[Shares]:
    """``time[key]`` of every method over that of the reference in the same block; only blocks that all have finished.

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
    found: dict[Block, float] = {}
    left_out = list(scores.left_out)
    for block in scores.complete():
        value = share(scores.lines[reference][block], scores.lines[method][block])
        if isinstance(value, str):
            left_out.append(LeftOut(method, block, value))
        else:
            found[block] = value
    values = list(found.values())
    return Shares(
        method,
        found,
        median=float(np.median(values)) if values else None,
        interval=median_interval(values) if values else None,
        never=sum(math.isinf(value) for value in values),
        left_out=left_out,
    )
