"""What the studies in ``benchmarks/suites`` ask beyond accuracy: layers, starts, steps, and a prompt's shape.

    softprompt bench benchmarks/suites/spt.yaml --data DIR    # one study; its cells.jsonl goes to results/suites/spt.jsonl

What is published so far ran in November 2026, by the suites of that date.

Each function returns a table of what is there of the study's cells.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from softprompt.experiments.records import read_cells
from softprompt.experiments.statistics import Line, Scores, setting_of
from softprompt.experiments.tables import comparison_table, results_table, steps_table

RESULTS = Path(__file__).resolve().parent.parent / "results" / "suites"
PUBLISHED = "-2026-11"  # in the names of the suites and of their cells
KEPT = 3  # layers of the SPT study
LENGTHS = (20, 40)  # P of the topology studies
PLAIN = "cross-entropy"
COLLAPSED = ("with persistence",)  # its prompts of November 2026 are copies of one point
FULL = 0.99  # a gate above it lets hardly any gradient through
TARGET = 0.85  # training accuracy, chosen on pilot runs of one seed
SHAPES = {
    "h0_mean_lifetime": "mean H0 lifetime (less is more compact)",
    "h0_max_lifetime": "longest H0 lifetime",
    "h1_count": "H1 bars",
    "persistent_entropy": "persistent entropy",
    "h0_motion": "H0 still moves, second half (less is more stable)",
}


def cells(study: str) -> list[Line]:
    """The finished cells of a study of November 2026."""
    return finished(f"{study}{PUBLISHED}")


def finished(suite: str) -> list[Line]:
    """The finished cells of a suite."""
    return [line for line in read_cells(RESULTS / f"{suite}.jsonl").values() if line["status"] == "done"]


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


def gates() -> str:
    """Do searches with other rows and starts rank the layers alike? Spearman's correlation of their gates, mean over pairs."""
    found: dict[str, list[list[float]]] = {}
    for line in cells("spt"):
        if "gates" in line["extra"]:
            found.setdefault(str(setting_of(line)), []).append(line["extra"]["gates"])
    lines = ["| task | runs | agreement of seeds | lowest gate | highest gate | last kept minus first dropped |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for setting, runs in sorted(found.items()):
        agree = [stats.spearmanr(a, b).statistic for a, b in itertools.combinations(runs, 2)]
        margin = statistics.median(sorted(run)[-KEPT] - sorted(run)[-KEPT - 1] for run in runs)
        ends = f"{min(map(min, runs)):.2f} | {max(map(max, runs)):.2f} | {margin:.3f}"
        lines.append(f"| {setting} | {len(runs)} | {statistics.mean(agree):+.2f} | {ends} |")
    return "\n".join(lines)


def searches() -> str:
    """What searches of layers with today's defaults agree on: rank correlations of pairs of seeds, and the layers both keep."""
    found: dict[tuple[str, str], list[Line]] = {}
    for head, suite in (("label words", "masked-lm"), ("probe", "few-shot")):
        for line in finished(suite):
            if line["method"] == "spt":
                found.setdefault((head, str(setting_of(line))), []).append(line)
    lines = [
        "| head | task | searches | agreement of scores | of gates | layers that two keep | lowest gate | gates above 0.99 |"
    ]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    pairs: list[tuple[float, ...]] = []
    for (head, setting), runs in sorted(found.items()):
        own = [_agreement(a["extra"], b["extra"]) for a, b in itertools.combinations(runs, 2)]
        gates = [gate for run in runs for gate in run["extra"]["gates"]]
        full = f"{sum(gate > FULL for gate in gates) / len(runs):.1f}"
        lines.append(f"| {head} | {setting} | {len(runs)} | {_means(own)} | {min(gates):.0e} | {full} |")
        pairs += own
    lines.append(f"| all | all | {sum(map(len, found.values()))} | {_means(pairs)} | | |")
    return "\n".join(lines)


def _agreement(one: Line, other: Line) -> tuple[float, ...]:
    """Of two searches: correlation of ablation scores, of gates, and the number of layers that both keep."""
    ranks = (stats.spearmanr(one[key], other[key]).statistic for key in ("layer_scores", "gates"))
    return *ranks, len({*one["layers"]} & {*other["layers"]})


def _means(pairs: Sequence[tuple[float, ...]]) -> str:
    scores, gates, shared = (statistics.mean(values) for values in zip(*pairs, strict=True))
    return f"{scores:+.2f} | {gates:+.2f} | {shared:.1f}"


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


def lifetimes() -> str:
    """Mean H0 lifetime of the trained prompts, by arm and setting: how far their virtual tokens stand apart."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in topology_cells():
        values = found.setdefault(line["method"], {}).setdefault(line["task"], [])
        values.append(line["extra"]["topology"]["0"]["h0_mean_lifetime"])
    settings = list(next(iter(found.values())))
    lines = ["| arm |" + "".join(f" {setting} |" for setting in settings), "|---|" + "---:|" * len(settings)]
    for arm, by_setting in found.items():
        lines.append(f"| {arm} |" + "".join(f" {statistics.mean(by_setting[s]):.4f} |" for s in settings))
    return "\n".join(lines)


def shape_correlation() -> str:
    return correlations(topology_cells(), COLLAPSED)


def correlations(lines: list[Line], left_out: Sequence[str] = ()) -> str:
    """Spearman's rank correlation of a shape number with test accuracy, within setting and arm.

    An arm moves shape and accuracy at once, so over arms together a correlation may say no more than that arms differ. Values
    are ranked among the seeds of one arm in one setting, and correlated over the arms of a setting, and over all settings
    (pooled) with a 95 % bootstrap interval that resamples runs, wider by sqrt(n / (n - groups)): each group of ranks has lost its
    mean. A number that is the same in all seeds of an arm says nothing
    there.

    Args:
        lines: finished cells with ``extra.topology``.
        left_out: arms that are shown alone and pooled nowhere.
    """
    groups: dict[str, dict[str, list[Line]]] = {}
    for line in lines:
        groups.setdefault(line["task"], {}).setdefault(line["method"], []).append(line)
    pooled = {task: [runs for arm, runs in arms.items() if arm not in left_out] for task, arms in groups.items()}
    alone = {arm: [arms[arm] for arms in groups.values() if arm in arms] for arm in left_out}
    everything = [runs for arms in pooled.values() for runs in arms]
    columns = {**pooled, "pooled": everything, **{f"{arm}, alone": runs for arm, runs in alone.items() if runs}}
    names = [f" {name} ({sum(map(len, runs))} runs) |" for name, runs in columns.items()]
    shown = ["| shape |" + "".join(names), "|---|" + "---:|" * len(columns)]
    for key, name in SHAPES.items():
        texts = []
        for column, runs in columns.items():
            x, y, count = _ranks_within(runs, key)
            texts.append(_correlation(x, y, 0 if column in groups else count))
        shown.append(f"| {name} |" + "".join(f" {text} |" for text in texts))
    return "\n".join(shown)


def _ranks_within(groups: list[list[Line]], key: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Ranks of shape and test accuracy among the runs of each group, around 0, and the number of groups."""
    shapes, scored = [np.zeros(0)], [np.zeros(0)]
    for runs in groups:
        shape = np.array([run["extra"]["topology"]["0"][key] for run in runs])
        if np.ptp(shape) > 0:
            middle = (len(runs) + 1) / 2
            shapes.append(stats.rankdata(shape) - middle)
            scored.append(stats.rankdata([run["test"] for run in runs]) - middle)
    return np.concatenate(shapes), np.concatenate(scored), len(shapes) - 1


def _correlation(x: np.ndarray, y: np.ndarray, groups: int) -> str:
    """The correlation of ranks; with the interval, where ``groups`` (0 for none) say how many means the ranks have lost."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return "-"
    middle = np.corrcoef(x, y)[0, 1]
    found = f"{middle:+.2f}"
    if not groups:
        return found
    drawn = stats.bootstrap(
        (x, y),
        lambda a, b: np.corrcoef(a, b)[0, 1],
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=0,
    ).confidence_interval
    wider = np.sqrt(len(x) / (len(x) - groups))
    low, high = np.clip(middle + wider * (np.array([drawn.low, drawn.high]) - middle), -1, 1)
    return f"{found} ({low:+.2f} to {high:+.2f})"
