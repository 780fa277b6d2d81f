"""What a report shows of runs: the facts of its table, and its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np
from scipy.stats import bootstrap

from .figures import Figure, bar_figure, colours, heat_figure, line_figure, scatter_figure
from .runs import Curve, Run
from .similar import similarity

FACTS = {
    "task": "task",
    "method": "method",
    "backbone": "backbone",
    "num_virtual_tokens": "virtual tokens",
    "rows": "rows, train/dev/test",
    "learning_rate": "learning rate",
    "shots": "rows per class",
    "seed": "seed",
    "probe": "probe, test",
    "zero_shot": "template alone, test",
    "score": "score",
    "dev": "dev score",
    "test": "test score",
    "parameters": "trained parameters",
    "steps": "steps",
    "chosen step": "chosen step",
    "seconds": "seconds",
}
GROUPS = (
    "task",
    "method",
    "rows per class",
    "seeds",
    "test score, mean ± standard deviation",
    "95 % interval of the mean",
)
SMOOTH = 5  # evaluations in a running mean


def facts_shown(runs: Sequence[Run]) -> dict[str, str]:
    """The facts that some run has, with their names in a table."""
    return {key: name for key, name in FACTS.items() if any(run.facts.get(key) is not None for run in runs)}


def figures_between(runs: Sequence[Run], kinds: dict[str, str]) -> list[Figure]:
    """The figures that show all runs together."""
    return [*accuracies(runs, kinds), *(figure for figure in (similarity(runs), kept_layers(runs)) if figure)]


def accuracies(runs: Sequence[Run], kinds: dict[str, str]) -> list[Figure]:
    """The dev score of all runs over their steps, if any was logged."""
    of_runs = {run.name: run.curves.get(f"eval_{run.facts.get('score')}") for run in runs}
    curves = {name: curve for name, curve in of_runs.items() if curve}
    names = {str(run.facts.get("score")) for run in runs if run.name in curves}
    score = names.pop() if len(names) == 1 else "score"
    if not curves:
        return []
    smooth = any(len(curve) > 2 * SMOOTH for curve in curves.values())
    note = (
        f"Curves of more than {2 * SMOOTH} points are running means over {SMOOTH} of them; the CSV has the scores."
        if smooth
        else ""
    )
    drawn = {name: _smoothed(curve) if len(curve) > 2 * SMOOTH else curve for name, curve in curves.items()}
    figure = line_figure(f"Dev {score}", drawn, kinds, y=score, note=note)
    rows = [[name, *point] for name, curve in curves.items() for point in curve]
    return [Figure(figure.title, figure.svg, figure.columns, rows, figure.note)]


def _smoothed(curve: Curve) -> Curve:
    values = [value for _, value in curve]
    half = SMOOTH // 2
    return [
        (step, sum(values[max(0, i - half) : i + half + 1]) / len(values[max(0, i - half) : i + half + 1]))
        for i, (step, _) in enumerate(curve)
    ]


def figures_of(run: Run) -> list[Figure]:
    """The figures of one run that need no slider."""
    made = [_losses(run), _gradient(run), _information(run), _layers(run), _spaces(run), _states(run)]
    return [figure for figure in made if figure is not None]


_NO_LOSS = ("grad_norm", "learning_rate", "epoch", "share of ", "information ", "eval_", "train_accuracy")


def _losses(run: Run) -> Figure | None:
    curves = {name: curve for name, curve in run.curves.items() if not name.startswith(_NO_LOSS)}
    if "eval_loss" in run.curves:
        curves["dev loss"] = run.curves["eval_loss"]
    if not curves:
        return None
    note = "Terms as they are, without their weights; loss is their weighted sum." if len(curves) > 2 else ""
    return line_figure("Loss and its terms", curves, colours(list(curves)), y="nats", note=note)


def _gradient(run: Run) -> Figure | None:
    curves = {
        name.removeprefix("share of "): curve for name, curve in run.curves.items() if name.startswith("share of ")
    }
    if not curves:
        return None
    note = "What each term has in the gradient on the virtual tokens; the task's loss has 1."
    return line_figure("Shares of the gradient", curves, colours(list(curves)), y="share", note=note)


def _information(run: Run) -> Figure | None:
    curves = {name.removeprefix("information "): c for name, c in run.curves.items() if name.startswith("information ")}
    if not curves:
        return None
    note = "Lower bounds of divergences, in nats, on dev rows: how far the prompt stands from text, and prompted states from unprompted ones."
    return line_figure("Information bounds", curves, colours(list(curves)), y="nats", note=note)


def _layers(run: Run) -> Figure | None:
    """Gates of the layers over the steps of a search, and what it kept."""
    if not run.gates:
        return None
    candidates = run.search.get("candidates") or list(range(len(run.gates[-1]["gates"])))
    entries = run.gates[::-1][:: -(-len(run.gates) // 60)][::-1]  # the last one always
    values = [[entry["gates"][i] for entry in entries] for i in range(len(candidates))]
    kept = run.search.get("layers")
    note = (
        ""
        if kept is None
        else f"Kept: layers {', '.join(map(str, kept))}, by {run.search.get('layer_score', 'gates')}."
    )
    return heat_figure(
        "Gates of the layers",
        values,
        [str(layer) for layer in candidates],
        [str(e["step"]) for e in entries],
        "step",
        "layer",
        note,
    )


def _spaces(run: Run) -> Figure | None:
    """EPT's gate: the weight of each subspace, beside the even weights it starts from."""
    gates = run.mechanism.get("gates")
    if not isinstance(gates, list) or not gates or not all(isinstance(weight, int | float) for weight in gates):
        return None
    groups = {f"space {i}": {"before": 1 / len(gates), "after": float(weight)} for i, weight in enumerate(gates)}
    return bar_figure(
        "Weights of the subspaces", groups, {"before": "rest", "after": "c0"}, "weight", "Before training all are even."
    )


def _states(run: Run) -> Figure | None:
    """Two principal components of what the head reads of dev rows, before and after training together."""
    if not run.states:
        return None
    labels = run.states["labels"].tolist()
    names = [run.classes[label] if 0 <= label < len(run.classes) else f"class {label}" for label in labels]
    clouds = {name: run.states[name].double().numpy() for name in ("before", "after") if name in run.states}
    together = np.concatenate(list(clouds.values()))
    together -= together.mean(0)
    _, sizes, axes = np.linalg.svd(together, full_matrices=False)
    shares = sizes[:2] ** 2 / max((sizes**2).sum(), 1e-300)
    places = np.split(together @ axes[:2].T, len(clouds))
    panels = {
        f"{when} training": [(float(x), float(y), name) for (x, y), name in zip(cloud, names, strict=True)]
        for when, cloud in zip(clouds, places, strict=True)
    }
    note = f"{len(labels)} dev rows, two principal components of both states together, with {shares[0]:.0%} and {shares[1]:.0%} of their variance."
    return scatter_figure(
        "States of the rows", panels, colours([*run.classes, *sorted(set(names) - set(run.classes))]), note
    )


def kept_layers(runs: Sequence[Run]) -> Figure | None:
    """Which layers each search kept: the pattern over tasks and seeds."""
    searched = [run for run in runs if isinstance(run.search.get("layers"), list)]
    if len(searched) < 2:
        return None
    layers = sorted(
        {layer for run in searched for layer in (*(run.search.get("candidates") or []), *run.search["layers"])}
    )
    values = [[float(layer in run.search["layers"]) for layer in layers] for run in searched]
    return heat_figure(
        "Kept layers",
        values,
        [run.name for run in searched],
        [str(layer) for layer in layers],
        "layer",
        "run",
        "Kept: 1.",
    )


def groups(runs: Sequence[Run]) -> list[list[str]]:
    """What `GROUPS` names, of runs that differ in nothing but their seed."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.facts.get("test") is not None:
            alike = {key: value for key, value in run.settings.items() if key not in ("seed", "output_dir")}
            found.setdefault(json.dumps([run.facts.get("task"), alike], sort_keys=True, default=str), []).append(run)
    lines = []
    for group in found.values():
        if len({run.facts["seed"] for run in group}) > 1:
            scores = [float(run.facts["test"]) for run in group]
            interval = bootstrap_mean(scores)
            lines.append(
                [
                    *(str(group[0].facts.get(name) or "-") for name in ("task", "method", "shots")),
                    ", ".join(str(run.facts["seed"]) for run in group),
                    f"{mean(scores):.3f} ± {stdev(scores):.3f}",
                    f"{interval[0]:.3f} to {interval[1]:.3f}",
                ]
            )
    return lines


def bootstrap_mean(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the mean by the bootstrap (percentiles); of few values it is too short."""
    found = bootstrap((values,), np.mean, method="percentile", n_resamples=2000, rng=0).confidence_interval
    return float(found.low), float(found.high)


def slug(title: str) -> str:
    """A title as part of a file's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
