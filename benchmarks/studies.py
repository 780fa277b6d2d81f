"""What the studies in ``benchmarks/suites`` ask beyond accuracy: layers, starts, steps, and a prompt's shape.

    softprompt bench benchmarks/suites/spt.yaml --data DIR    # one study; its cells.jsonl is results/suites/spt.jsonl

Each function returns a table of what is there of the study's cells.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from softprompt.experiments.records import read_cells
from softprompt.experiments.statistics import Line, Scores, setting_of
from softprompt.experiments.tables import comparison_table, results_table, steps_table

CELLS = Path(__file__).resolve().parent.parent / "results" / "suites"
LENGTHS = (20, 40)  # P of the topology studies
PLAIN = "cross-entropy"
TARGET = 0.85  # training accuracy, chosen on pilot runs of one seed
SHAPES = {
    "h0_mean_lifetime": "mean H0 lifetime (less is more compact)",
    "h0_max_lifetime": "longest H0 lifetime",
    "h1_count": "H1 bars",
    "persistent_entropy": "persistent entropy",
    "h0_motion": "H0 still moves, second half (less is more stable)",
}


def cells(study: str) -> list[Line]:
    """The finished cells of a study."""
    return [line for line in read_cells(CELLS / f"{study}.jsonl").values() if line["status"] == "done"]


def accuracies(study: str, reference: str) -> str:
    """Accuracy of every arm, and its differences to ``reference``."""
    return _accuracies(Scores(cells(study)), reference)


def _accuracies(scores: Scores, reference: str) -> str:
    return f"{results_table(scores).markdown()}\n{comparison_table(scores, reference).markdown()}"


# Layers: SPT ---------------------------------------------------------------------------------------------------------


def kept_layers() -> str:
    """How often the search kept each layer, by task."""
    layers_of: dict[str, list[list[int]]] = {}
    for line in cells("spt"):
        if "gates" in line["extra"]:
            layers_of.setdefault(str(setting_of(line)), []).append(line["extra"]["layers"])
    lines = ["| task | runs |" + "".join(f" layer {i} |" for i in range(6)), "|---|---|" + "---|" * 6]
    for setting, kept in sorted(layers_of.items()):
        counts = (sum(i in layers for layers in kept) for i in range(6))
        lines.append(f"| {setting} | {len(kept)} |" + "".join(f" {count} |" for count in counts))
    return "\n".join(lines)


# Steps and starts: InfoPrompt ----------------------------------------------------------------------------------------


def steps_to_plain() -> str:
    """Steps to prompt tuning's best dev score."""
    return steps_table(Scores(cells("infoprompt")), "prompt_tuning").markdown()


def spread_of_starts() -> str:
    """Standard deviation of test accuracy over the starts of a prompt, everything else the same."""
    scores: dict[tuple[str, str], list[float]] = {}
    for line in cells("starts"):
        scores.setdefault((line["task"], line["options"]["method"]), []).append(100 * line["test"])
    lines = ["| task | arm | starts | mean | standard deviation | lowest | highest |", "|---|---|---|---|---|---|---|"]
    for (task, method), values in scores.items():
        shown = (
            f"{statistics.mean(values):.1f} | {statistics.stdev(values):.2f} | {min(values):.1f} | {max(values):.1f}"
        )
        lines.append(f"| {task} | {method} | {len(values)} | {shown} |")
    return "\n".join(lines)


# Shape and training: TSLoss ------------------------------------------------------------------------------------------


def topology_cells(task: str | None = None) -> list[Line]:
    """The cells of all lengths as one study, the prompt's length as part of the task's name."""
    return [
        {**line, "task": f"{line['task']}, P = {length}"}
        for length in LENGTHS
        for line in cells(f"topology-{length}")
        if task in (None, line["task"])
    ]


def topology_accuracies() -> str:
    return _accuracies(Scores(topology_cells()), PLAIN)


def topology_steps() -> str:
    """Steps to cross-entropy's own best dev score, and to a fixed training accuracy."""
    parts = [f"To the best dev score of {PLAIN}:\n\n{steps_table(Scores(topology_cells()), PLAIN).markdown()}"]
    for task in dict.fromkeys(line["task"] for line in cells(f"topology-{LENGTHS[0]}")):
        lines = [{**line, "curve": line["extra"]["train_curve"]} for line in topology_cells(task)]
        table = steps_table(Scores(lines), PLAIN, TARGET).markdown().replace("dev score", "training accuracy")
        parts.append(f"To a training accuracy of {100 * TARGET:.0f} on {task}:\n\n{table}")
    return "\n".join(parts)


def shape_correlation() -> str:
    """Spearman's rank correlation of a shape number with test accuracy, over all arms and seeds of a setting.

    Pooled: of ranks within their setting, with a 95 % bootstrap interval over runs.
    """
    settings: dict[str, list[Line]] = {}
    for line in topology_cells():
        settings.setdefault(line["task"], []).append(line)
    heads = "".join(f" {name} ({len(runs)} runs) |" for name, runs in settings.items())
    lines = [f"| shape |{heads} pooled, 95 % interval |", "|---|" + "---:|" * (len(settings) + 1)]
    for key, name in SHAPES.items():
        shown, shapes, scored = [], [], []
        for runs in settings.values():
            shape = np.array([run["extra"]["topology"]["0"][key] for run in runs])
            score = np.array([run["test"] for run in runs])
            shown.append("-" if np.ptp(shape) == 0 else f"{stats.spearmanr(shape, score).statistic:+.2f}")
            if np.ptp(shape) > 0:
                shapes.append(stats.rankdata(shape) / len(runs) - 0.5)
                scored.append(stats.rankdata(score) / len(runs) - 0.5)
        lines.append(f"| {name} |" + "".join(f" {value} |" for value in shown) + f" {_pooled(shapes, scored)} |")
    return "\n".join(lines)


def _pooled(shapes: list[Any], scored: list[Any]) -> str:
    if not shapes:
        return "-"
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
    return f"{np.corrcoef(x, y)[0, 1]:+.2f} ({drawn.low:+.2f} to {drawn.high:+.2f})"
