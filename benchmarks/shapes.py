"""Tables of the topology suites: steps and accuracy of the five arms, and whether a prompt's shape goes with its accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

import accuracy
from softprompt.bench.statistics import Scores
from softprompt.bench.tables import comparison_table, results_table, steps_table

SUITES = ("topology-20", "topology-40")
PLAIN = "cross-entropy"
TARGETS = {"sst2_sentence": 0.85, "trec": 0.85}  # training accuracies, chosen on pilot runs of one seed
SHAPES = {
    "h0_mean_lifetime": "mean H0 lifetime (less is more compact)",
    "h0_max_lifetime": "longest H0 lifetime",
    "h1_count": "H1 bars",
    "persistent_entropy": "persistent entropy",
    "h0_motion": "H0 still moves, second half (less is more stable)",
}


def scores(curve: str = "dev curve", task: str | None = None) -> Scores | None:
    """Both suites as one set of runs, the prompt's length as part of the task's name; None before the first run."""
    lines = [
        {**line, "method": line["arm"], "task": f"{line['task']}, P = {suite[-2:]}", "status": "done"}
        | {"test": line["test accuracy"], "curve": line[curve]}
        for suite in SUITES
        for line in accuracy.read(suite)
        if task in (None, line["task"])
    ]
    arms = list(accuracy.SUITES[SUITES[0]][0])
    return Scores(lines, [arm for arm in arms if any(line["arm"] == arm for line in lines)]) if lines else None


def results() -> str:
    found = scores()
    if found is None:
        return "(no runs yet)"
    return f"{results_table(found).markdown()}\n{comparison_table(found, PLAIN).markdown()}"


def steps() -> str:
    """Steps to cross-entropy's own best dev score, and to a fixed training accuracy."""
    parts = []
    if (found := scores()) is not None:
        parts.append(f"To the best dev score of {PLAIN}:\n\n{steps_table(found, PLAIN).markdown()}")
    for task, target in TARGETS.items():
        if (found := scores("train curve", task)) is not None:
            table = steps_table(found, PLAIN, target).markdown().replace("dev score", "training accuracy")
            parts.append(f"To a training accuracy of {100 * target:.0f} on {task}:\n\n{table}")
    return "\n".join(parts) or "(no runs yet)"


def correlation() -> str:
    """Spearman's rank correlation of a shape number with test accuracy, over all arms and seeds of a setting.

    Pooled: of ranks within their setting, with a 95 % bootstrap interval over runs.
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    for suite in SUITES:
        for line in accuracy.read(suite):
            lines.setdefault(f"{line['task']}, P = {suite[-2:]}", []).append(line)
    lines = {setting: runs for setting, runs in lines.items() if len(runs) > 2}
    if not lines:
        return "(no runs yet)"
    rows = [
        "| shape |" + "".join(f" {s} ({len(runs)} runs) |" for s, runs in lines.items()) + " pooled, 95 % interval |"
    ]
    rows.append("|---|" + "---:|" * (len(lines) + 1))
    for key, name in SHAPES.items():
        shown, shapes, scored = [], [], []
        for runs in lines.values():
            shape = np.array([run["shape"][key] for run in runs])
            score = np.array([run["test accuracy"] for run in runs])
            shown.append("-" if np.ptp(shape) == 0 else f"{stats.spearmanr(shape, score).statistic:+.2f}")
            if np.ptp(shape) > 0:
                shapes.append(stats.rankdata(shape) / len(runs) - 0.5)
                scored.append(stats.rankdata(score) / len(runs) - 0.5)
        pooled = "-"
        if shapes:
            x, y = np.concatenate(shapes), np.concatenate(scored)
            drawn = stats.bootstrap(
                (x, y),
                lambda a, b: np.corrcoef(a, b)[0, 1],
                paired=True,
                vectorized=False,
                n_resamples=2000,
                method="percentile",
                rng=0,
            ).confidence_interval
            pooled = f"{np.corrcoef(x, y)[0, 1]:+.2f} ({drawn.low:+.2f} to {drawn.high:+.2f})"
        rows.append(f"| {name} |" + "".join(f" {value} |" for value in shown) + f" {pooled} |")
    return "\n".join(rows)
