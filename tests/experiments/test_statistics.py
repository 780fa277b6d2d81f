"""Statistics of results, against SciPy, the literature, and examples made by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from house.suites import finished, table_of
from softprompt import SoftPromptError
from softprompt.experiments.statistics import (
    Block,
    Scores,
    Setting,
    bootstrap_interval,
    chosen_checkpoints,
    compare,
    critical_difference,
    holm,
    median_interval,
    overall,
    paired_p,
    rank,
    relative_cost,
    steps_to_target,
    summarize,
    win_tie_loss,
)


def setting(task: str) -> Setting:
    return Setting(task, 16, None)


SMALL = {
    "plain": {"rte": [0.50, 0.54, 0.52], "trec": [0.80, 0.82, 0.84]},
    "a|b_c": {"rte": [0.56, 0.58, 0.60], "trec": [0.80, 0.82, 0.78]},
}


# Table 6 of Demsar (2006), JMLR 7: area under the curve of C4.5, with -m, with -cf, and with both, on 14 data sets
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.975, 0.975], [0.957, 0.978, 0.946, 0.970],
    ]
)  # fmt: skip


DEMSAR_METHODS = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")


def demsar(values: np.ndarray = DEMSAR) -> Scores:
    return Scores(
        finished(name, f"set {i}", 0, float(values[i, j])) for i in range(14) for j, name in enumerate(DEMSAR_METHODS)
    )


# What counts ----------------------------------------------------------------------------------------------------------


def test_runs_that_do_not_count_are_named() -> None:
    lines = [
        finished("a", "rte", 0, 0.5),
        finished("a", "rte", 1, math.nan),
        finished("a", "rte", 2, None),
        finished("b", "rte", 0, 0.6),
        finished("b", "rte", 1, None, status="failed", error="out of memory"),
        finished("b", "cola", 0, math.inf),
    ]
    scores = Scores(lines)
    assert [(run.method, str(run.block), run.reason) for run in scores.left_out] == [
        ("a", "rte, 16 shots, seed 1", "test score is nan"),
        ("a", "rte, 16 shots, seed 2", "no test score"),
        ("a", "cola, 16 shots, seed 0", "no run"),
        ("b", "rte, 16 shots, seed 1", "failed: out of memory"),
        ("b", "rte, 16 shots, seed 2", "no run"),
        ("b", "cola, 16 shots, seed 0", "test score is inf"),
    ]
    assert scores.complete() == [Block(setting("rte"), 0)]
    assert summarize(scores)["a", setting("rte")].mean == 0.5  # not nan
    assert ("b", setting("cola")) not in summarize(scores)


def test_a_run_that_failed_first_and_then_finished_counts() -> None:
    failed = finished("a", "rte", 0, None, status="failed", error="killed")
    for lines in ([failed, finished("a", "rte", 0, 0.5)], [finished("a", "rte", 0, 0.5), failed]):
        scores = Scores(lines)
        assert scores.left_out == [] and scores.seeds("a", setting("rte")) == [0.5]


def test_order_is_given_or_that_of_appearance() -> None:
    lines = table_of({"b": {"z": [0.1], "a": [0.2]}, "a": {"a": [0.3], "z": [0.4]}})
    assert Scores(lines).methods == ["b", "a"] and Scores(lines, methods=["a", "b"]).methods == ["a", "b"]
    assert [s.task for s in Scores(lines).settings] == ["z", "a"]
    assert Scores(lines, methods=["a"]).blocks == [Block(setting("a"), 0), Block(setting("z"), 0)]
    with pytest.raises(SoftPromptError, match=r"unknown method in these results 'c': expected one of b, a\."):
        Scores(lines, methods=["c"])
    with pytest.raises(SoftPromptError, match=r"two finished runs of 'b' on z, 16 shots, seed 0; expected one"):
        Scores([*lines, lines[0]])


def test_names_of_settings() -> None:
    names = [str(Setting("rte", *amount)) for amount in ((16, None), (None, 64), (None, None))]
    assert names == ["rte, 16 shots", "rte, 64 rows", "rte"]


# Means and intervals --------------------------------------------------------------------------------------------------


def test_bootstrap_of_one_group_is_that_of_scipy() -> None:
    values = [0.50, 0.54, 0.52, 0.61, 0.47]
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap_interval([values]) == pytest.approx((expected.low, expected.high), abs=1e-15)
    assert bootstrap_interval([values]) == bootstrap_interval([values])  # the seed is fixed


def test_bootstrap_resamples_within_groups() -> None:
    """Against every possible resample, counted out: 2 of 2 and 3 of 3 values."""
    groups = [[0.0, 0.4], [1.0, 1.3, 1.9]]
    means = [
        (np.mean(a) + np.mean(b)) / 2
        for a in itertools.product(groups[0], repeat=2)
        for b in itertools.product(groups[1], repeat=3)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    found = bootstrap_interval(groups)
    assert found == pytest.approx((low, high), abs=0.03)
    assert bootstrap_interval([[1.0, 1.0], [3.0, 3.0]]) == (2.0, 2.0)  # tasks differ, seeds do not: nothing is drawn


@pytest.mark.parametrize("groups", [[], [[0.5]], [[0.5, 0.6], [0.7]]])
def test_no_interval_where_the_spread_is_unknown(groups: list[list[float]]) -> None:
    assert bootstrap_interval(groups) is None


def test_median_interval_by_hand() -> None:
    assert median_interval([5, 3, 1, 4, 2]) is None  # the whole range of 5 covers 1 - 2/32 = 94 %
    assert median_interval([5, 3, 1, 6, 4, 2]) == (1, 6)  # 1 - 2/64 = 97 %
    # of 9, the 2nd and the 8th: 1 - 2 (1 + 9)/512 = 96 %
    assert median_interval([9, 8, 7, 6, 5, 4, 3, 2, 1]) == (2, 8)
    assert median_interval([1, 2, 3, 4, math.inf, math.inf, math.inf]) == (1, math.inf)


def test_summary_of_seeds() -> None:
    found = summarize(Scores(table_of({"a": {"rte": [0.5, 0.6, 0.7], "one": [0.4]}})))
    three, one = found["a", setting("rte")], found["a", setting("one")]
    assert (three.mean, three.deviation, three.count) == (pytest.approx(0.6), pytest.approx(0.1), 3)
    assert three.interval is not None and 0.5 <= three.interval.low < 0.6 < three.interval.high <= 0.7
    assert (one.mean, one.deviation, one.interval, one.count) == (0.4, None, None, 1)


def test_every_setting_has_the_same_weight() -> None:
    lines = table_of({"a": {"many": [0.9, 0.9, 0.9, 0.9], "few": [0.1, 0.3]}})
    found = overall(Scores(lines))["a"]
    assert found.mean == pytest.approx(0.55)
    assert found.interval == pytest.approx((0.5, 0.6))  # only the seeds of "few" vary: 0.1, 0.2 or 0.3


# Paired comparisons ---------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # 0.01 * 4, 0.02 * 3, max(0.06, 0.03 * 2), max(0.06, 0.04 * 1)
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8]) and holm([0.9, 0.8]) == [1, 1] and holm([]) == []
    # the smallest is only Bonferroni's, and none falls below its own p
    p = [0.001, 0.2, 0.013, 0.05]
    assert holm(p)[0] == 0.004 and all(a >= b for a, b in zip(holm(p), p, strict=True))
    with pytest.raises(SoftPromptError, match="expected probabilities between 0 and 1"):
        holm([0.5, math.nan])


def by_all_signs(differences: list[float]) -> float:
    """The two-sided sign-flip p, counted out."""
    means = [np.mean(np.multiply(differences, signs)) for signs in itertools.product((1, -1), repeat=len(differences))]
    seen = np.mean(differences)
    lower, upper = (np.mean([m <= seen + 1e-12 for m in means]), np.mean([m >= seen - 1e-12 for m in means]))
    return float(min(1, 2 * min(lower, upper)))


@pytest.mark.parametrize(
    "differences",
    [[0.1, 0.2, 0.3, 0.4, 0.05], [0.1, -0.2, 0.3], [0.1, 0.1, -0.1, 0.0], [0.3, -0.3], [0.02, 0.01, 0.04, -0.01, 0.03, 0.02]],
)  # fmt: skip
def test_sign_flips_are_counted_exactly(differences: list[float]) -> None:
    assert paired_p(differences) == pytest.approx(by_all_signs(differences))


def test_sign_flips_of_many_pairs_are_drawn() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(0.5, 1, 30)
    assert (
        paired_p(differences)
        == paired_p(differences)
        == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    )


def test_sign_flips_without_a_difference_or_with_one_pair() -> None:
    assert paired_p([0.0, 0.0, 0.0]) == 1
    assert paired_p([0.3]) == 1
    assert paired_p([0.1] * 5) == pytest.approx(2 / 32)  # five pairs never reach 0.05


def test_comparison_by_hand() -> None:
    scores = Scores(table_of(SMALL))
    found = compare(scores, "plain")
    (row,) = found.lines
    assert (row.method, row.units, len(found.blocks), found.left_out) == ("a|b_c", 6, 6, [])
    assert row.difference == pytest.approx((0.06 - 0.02) / 2)
    differences = [0.06, 0.04, 0.08, 0, 0, -0.06]
    assert row.p == row.holm == pytest.approx(by_all_signs(differences))
    assert row.record == (3, 2, 1)
    assert row.interval == pytest.approx(bootstrap_interval([differences[:3], differences[3:]]))
    assert compare(scores, "a|b_c").lines[0].difference == pytest.approx(-0.02)


def test_the_tested_mean_is_the_shown_one() -> None:
    """Two seeds that win by 0.2 weigh as much as four that lose by 0.2: no difference, so p is 1."""
    lines = table_of({"a": {"few": [0.5, 0.5], "many": [0.5] * 4}, "b": {"few": [0.7, 0.7], "many": [0.3] * 4}})
    (row,) = compare(Scores(lines), "a").lines
    assert row.difference == pytest.approx(0) and row.p == pytest.approx(1)


def test_only_blocks_that_all_have_finished_are_compared() -> None:
    lines = table_of({"a": {"rte": [0.5, 0.5, 0.5]}, "b": {"rte": [0.6, 0.9]}, "c": {"rte": [0.7, math.nan, 0.7]}})
    found = compare(Scores(lines), "a")
    assert [row.difference for row in found.lines] == [pytest.approx(0.1), pytest.approx(0.2)]
    assert (len(found.blocks), found.all_blocks) == (1, 3)
    assert [(run.method, run.block.seed, run.reason) for run in found.left_out] == [
        ("b", 2, "no run"),
        ("c", 1, "test score is nan"),
    ]
    assert [row.interval for row in found.lines] == [None, None]  # one seed is left
    without = compare(Scores(lines, methods=["a", "b"]), "a")
    assert without.lines[0].difference == pytest.approx(0.25) and len(without.blocks) == 2


def test_nothing_in_common() -> None:
    scores = Scores([finished("a", "rte", 0, 0.5), finished("b", "rte", 1, 0.6)])
    (row,) = compare(scores, "a").lines
    assert (row.difference, row.interval, row.p, row.holm, row.record, row.units) == (
        None,
        None,
        None,
        None,
        (0, 0, 0),
        0,
    )
    ranks = rank(scores)
    assert (ranks.ranks, ranks.friedman, ranks.critical_difference, ranks.units) == ({}, None, None, 0)
    assert overall(scores) == {} and len(ranks.left_out) == 2


def test_ties_have_a_width() -> None:
    assert win_tie_loss([0.006, 0.005, 0.0, -0.005, -0.0051]) == (1, 3, 1)
    assert win_tie_loss([0.905 - 0.9, 0.9 - 0.905]) == (0, 2, 0)  # 0.0050000000000000044


def test_an_unknown_reference_is_refused() -> None:
    scores = Scores(table_of(SMALL))
    with pytest.raises(
        SoftPromptError, match=r"unknown reference 'plan': expected one of plain, a\|b_c\. Did you mean 'plain'\?"
    ):
        compare(scores, "plan")


# Ranks ----------------------------------------------------------------------------------------------------------------


def test_critical_difference_of_demsar() -> None:
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    # q_0.05 of his table 5(a), by number of methods: CD at n = 1 is q sqrt(k (k + 1) / 6)
    for k, q in {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}.items():
        assert critical_difference(k, 1) / math.sqrt(k * (k + 1) / 6) == pytest.approx(q, abs=0.0015)


def test_ranks_of_demsar() -> None:
    """Average ranks 3.143, 2.000, 2.893, 1.964; his table ranks the equal (rounded) last pair of "voting" 2 and 3."""
    values = DEMSAR.copy()
    values[12, 2] += 0.0004
    found = rank(demsar(values))
    assert [round(found.ranks[name], 3) for name in DEMSAR_METHODS] == [3.143, 2.0, 2.893, 1.964]
    assert found.friedman == pytest.approx(tuple(stats.friedmanchisquare(*values.T)))
    average = np.array(list(found.ranks.values()))
    uncorrected = 12 * 14 / 20 * ((average**2).sum() - 4 * 25 / 4)  # 9.28 in the paper
    ties = sum(n**3 - n for row in values for n in np.unique(row, return_counts=True)[1])
    assert uncorrected == pytest.approx(9.28, abs=0.01)
    assert found.friedman is not None and found.friedman[0] == pytest.approx(uncorrected / (1 - ties / (14 * 60)))
    assert (found.units, found.all_blocks) == (14, 14)
    # no pair is 1.25 apart but for the ends: 3.143 - 1.964 = 1.179, so all are one group
    assert found.groups() == [["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]]


def test_ties_share_their_rank() -> None:
    found = rank(
        Scores(table_of({"a": {"x": [0.5], "y": [0.1]}, "b": {"x": [0.5], "y": [0.3]}, "c": {"x": [0.2], "y": [0.2]}}))
    )
    assert found.ranks == {"a": 2.25, "b": 1.25, "c": 2.5}
    same = rank(Scores(table_of({m: {"x": [0.5], "y": [0.5]} for m in "abc"})))
    assert same.ranks == {"a": 2, "b": 2, "c": 2} and same.friedman == (0, 1)
    # means of the same scores, added in another order: 0.6 and 0.6000000000000001
    summed = rank(Scores(table_of({"a": {"x": [0.1, 0.2, 0.3]}, "b": {"x": [0.3, 0.2, 0.1]}})))
    assert summed.ranks == {"a": 1.5, "b": 1.5} and summed.friedman is None


def test_ranks_go_by_the_mean_of_a_setting() -> None:
    found = rank(Scores(table_of({"a": {"x": [0.9, 0.1, 0.1]}, "b": {"x": [0.2, 0.2, 0.2]}})))
    assert (found.ranks, found.units) == ({"a": 1, "b": 2}, 1)


def test_groups_that_do_not_differ() -> None:
    blocks = {f"t{i}": [0.0] for i in range(40)}
    levels = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}
    apart = rank(Scores(table_of({m: {t: [v] for t in blocks} for m, v in levels.items()})))
    assert apart.critical_difference is not None and apart.critical_difference < 1
    assert apart.groups() == []
    near = {
        m: {t: [v + (0.15 if m in "bc" and i % 2 else 0) * (1 if m == "c" else 0)] for i, t in enumerate(blocks)}
        for m, v in levels.items()
    }
    assert rank(Scores(table_of(near))).groups() == [["b", "c"]]


# Steps and cost -------------------------------------------------------------------------------------------------------


def with_curves(**curves: list[list[tuple[int, float]]]) -> Scores:
    return Scores(
        finished(method, "rte", seed, 0.5, curve=[list(point) for point in curve])
        for method, several in curves.items()
        for seed, curve in enumerate(several)
    )


def test_steps_to_the_best_of_the_reference() -> None:
    scores = with_curves(
        plain=[[(10, 0.5), (20, 0.7), (30, 0.7)], [(10, 0.6), (20, 0.5)], [(5, math.nan), (10, 0.2), (40, 0.8)]],
        fast=[[(5, 0.7)], [(10, 0.55), (20, 0.65)], [(10, 0.7999), (40, math.nan)]],
    )
    plain, fast = steps_to_target(scores, "plain")
    assert list(plain.shares.values()) == [1, 1, 1]  # the first step at the best, not the last
    assert list(fast.shares.values()) == [5 / 20, 20 / 10, math.inf]
    assert (fast.median, fast.never, fast.interval) == (2, 1, None)
    slow = steps_to_target(with_curves(plain=[[(10, 0.5)]] * 2, slow=[[(10, 0.4)]] * 2), "plain")[1]
    assert (slow.median, slow.never) == (math.inf, 2)


def test_steps_to_a_number() -> None:
    scores = with_curves(
        plain=[[(10, 0.5), (20, 0.7)], [(10, 0.5)], [(0, 0.65), (10, 0.7)], []],
        fast=[[(10, 0.6)], [(10, 0.6)], [(10, 0.6)], [(10, 0.6)]],
    )
    _, fast = steps_to_target(scores, "plain", target=0.6)
    assert {block.seed: share for block, share in fast.shares.items()} == {0: 0.5}
    assert [(run.block.seed, run.reason) for run in fast.left_out] == [
        (1, "plain never reaches the target"),
        (2, "plain is at the target before the first step"),
        (3, "no dev curve of plain"),
    ]


def test_time_is_compared_within_a_block() -> None:
    lines = [
        finished(method, "rte", seed, 0.5, time={"train_seconds": seconds, "total_seconds": None})
        for method, several in {"a": [10.0, 100.0, 1.0], "b": [5.0, 200.0, 4.0]}.items()
        for seed, seconds in enumerate(several)
    ]
    a, b = relative_cost(Scores(lines), "a")
    assert list(a.shares.values()) == [1, 1, 1] and list(b.shares.values()) == [0.5, 2, 4] and b.median == 2
    total = relative_cost(Scores(lines), "a", "total_seconds")[1]
    assert total.median is None and {run.reason for run in total.left_out} == {"total_seconds of a is None"}


def test_a_reference_that_took_no_time_gives_no_ratio():
    lines = [finished(m, "rte", 0, 0.5, time={"train_seconds": s}) for m, s in (("a", 0.0), ("b", 2.0))]
    _, other = relative_cost(Scores(lines), "a")
    assert other.shares == {} and other.left_out[-1].reason == "train_seconds of a is 0.0"


def test_settings_weigh_alike_in_what_the_last_step_costs():
    lines = [
        finished("a", task, seed, 0.5, steps=10, extra={"best_step": 5, "last": {"dev": 0, "test": last}})
        for task, lasts in (("few", [0.7]), ("many", [0.5, 0.5, 0.5]))
        for seed, last in enumerate(lasts)
    ]
    (found,) = chosen_checkpoints(Scores(lines))
    assert found.mean == pytest.approx(0.1)
