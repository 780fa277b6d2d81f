"""Figures of results: what accuracy costs, how it grows, and which ranks differ.

Each function returns a matplotlib ``Figure``; `save_figure` writes it as PNG or SVG, with the same bytes for the same results.
Matplotlib is the extra ``plots``; nothing here touches its global settings or a display.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from .._files import written_whole
from .._types import SoftPromptError
from .statistics import (
    Curve,
    Ranks,
    Scores,
    Setting,
    curve_of,
    overall,
    relative_cost,
    steps_to_target,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which readers with any colour vision tell apart; yellow is left out, it vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "svg.hashsalt": "softprompt",
    "svg.fonttype": "none",  # labels stay text: small files, readable by search and screen readers
}

PANELS = 3  # side by side
P = ParamSpec("P")
T = TypeVar("T")


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise SoftPromptError('figures need matplotlib; install it with: pip install "softprompt[plots]"') from error
    return matplotlib


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in `STYLE`, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        with _matplotlib().rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


@_styled
def accuracy_against_parameters(scores: Scores) -> Figure:
    """Draw the mean score of the settings, with its interval, against the trained parameters (log scale; median over runs).

    Raises:
        SoftPromptError: there is no block that all methods have finished, or a method has no ``parameters``.
    """
    cost = {method: _median_parameters(scores, method) for method in scores.methods}
    return _against(scores, cost, "trained parameters")


@_styled
def accuracy_against_time(scores: Scores, reference: str) -> Figure:
    """Draw the mean score of the settings, with its interval, against training time (log scale).

    Time is the median of the ratio to ``reference`` in the same block.

    Raises:
        SoftPromptError: there is no block that all methods have finished, or a method has no ``time``.
    """
    medians = {share.method: share.median for share in relative_cost(scores, reference)}
    return _against(scores, medians, f"training time relative to {reference}")


@_styled
def learning_curves(scores: Scores) -> Figure:
    """Draw the dev score against the step, one panel per setting: median over seeds, and the band between the quartiles.

    Between two evaluations, and after its last, a run keeps its score; a line begins where all its runs have a score. Runs
    without a curve are left out, and the legend says how many runs are in.

    Raises:
        SoftPromptError: no run has a curve.
    """
    panels = [setting for setting in scores.settings if any(curves_in(scores, m, setting) for m in scores.methods)]
    if not panels:
        raise SoftPromptError("learning_curves: no finished run has points in its 'curve'.")
    columns = min(PANELS, len(panels))
    height = -(-len(panels) // columns)
    figure = _figure(3.2 * columns, 2.7 * height + 0.3)
    grid = figure.subplots(height, columns, squeeze=False)
    for panel in grid.flat[len(panels) :]:
        panel.set_visible(False)
    runs: dict[str, set[int]] = {}
    for axes, setting in zip(grid.flat, panels, strict=False):
        for i, method in enumerate(scores.methods):
            if curves := curves_in(scores, method, setting):
                runs.setdefault(method, set()).add(len(curves))
                steps, quartiles = quartiles_of(curves)
                axes.plot(steps, quartiles[1], color=_colour(i), linestyle=_dashes(i), linewidth=1.6)
                axes.fill_between(steps, quartiles[0], quartiles[2], color=_colour(i), alpha=0.15, linewidth=0)
        axes.set_title(str(setting), fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel("dev score, %")
        _few_ticks(axes)
    entries = []
    for i, method in enumerate(scores.methods):
        if method in runs:
            low, high = min(runs[method]), max(runs[method])
            count = f"{low}" if low == high else f"{low} to {high}"
            entries.append((i, f"{method} ({count} {'run' if high == 1 else 'runs'})"))
    _legend(figure, entries, "line")
    return figure


@_styled
def steps_figure(scores: Scores, reference: str) -> Figure:
    """Draw the share of blocks in which each method has reached the best dev score of ``reference``, against steps as a share of the reference's.

    A line that stops below 100 % never reaches it in the rest of its blocks. See `steps_to_target`.

    Raises:
        SoftPromptError: no block has a share.
    """
    drawn = [share for share in steps_to_target(scores, reference) if share.shares]
    if not drawn:
        raise SoftPromptError(f"steps_figure: no block in which {reference!r} reaches the target after its first step.")
    finite = [value for share in drawn for value in share.shares.values() if math.isfinite(value)]
    right = 1.1 * max(finite)
    figure = _figure(4.8, 3.6)
    axes = figure.subplots()
    entries = []
    for share in drawn:
        i = scores.methods.index(share.method)
        reached = sorted(value for value in share.shares.values() if math.isfinite(value))
        heights = 100 * np.arange(len(reached) + 1) / len(share.shares)
        axes.step([0, *reached, right], [*heights, heights[-1]], where="post", color=_colour(i), linestyle=_dashes(i))
        never = f", {share.never} never" if share.never else ""
        entries.append((i, f"{share.method} ({len(share.shares)} blocks{never})"))
    axes.axvline(1, color="#999999", linewidth=0.8, zorder=0)
    axes.set_xlim(0, right)
    axes.set_ylim(0, 104)
    axes.set_xlabel(f"steps to the target, as a share of those of {reference}")
    axes.set_ylabel("blocks that reached it, %")
    _legend(figure, entries, "line")
    return figure


@_styled
def confusion_figure(confusion: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> Figure:
    """Draw which classes are taken for which: true ones down, predicted ones across, shaded by the share of the true class's rows.

    Args:
        confusion: true class -> predicted class -> rows, as `softprompt.Predictor.evaluate` returns it.
        names: of the classes, in their order.
    """
    counts = np.array([[confusion.get(name, {}).get(other, 0) for other in names] for name in names])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 1.2 + 0.45 * len(names)
    figure = _figure(side + 0.6, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = shares[row, column] > 0.5
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


@_styled
def critical_difference_diagram(ranks: Ranks) -> Figure:
    """Draw average ranks on one axis, best on the left; a bar joins methods that Nemenyi's test does not tell apart (Demsar 2006).

    Raises:
        SoftPromptError: there are fewer than two methods, or no block that all have finished.
    """
    if len(ranks.ranks) < 2 or ranks.critical_difference is None:
        raise SoftPromptError(
            "critical_difference_diagram: expected at least two methods and a block that all have finished."
        )
    from matplotlib.lines import Line2D

    names = sorted(ranks.ranks, key=lambda name: ranks.ranks[name])
    k, groups = len(names), ranks.groups()
    left = names[: (k + 1) // 2]
    first, gap = 0.55 + 0.28 * len(groups), 0.5  # depth of the first label, and between two of a side
    depth = first + gap * len(left)
    figure = _figure(7.2, 1.25 + 0.62 * depth)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(1 - 0.06 * (k - 1), k + 0.06 * (k - 1))
    axes.set_ylim(depth, -1.5)

    def line(xs: Sequence[float], ys: Sequence[float], **style: Any) -> None:
        axes.add_line(Line2D(xs, ys, **{"color": "black", "linewidth": 1.0, "solid_capstyle": "butt", **style}))

    line([1, k], [0, 0])
    for tick in range(1, k + 1):
        line([tick, tick], [0, -0.14])
        if (tick - 1) % (1 + k // 13) == 0:  # numbers of many methods would touch
            axes.text(tick, -0.22, str(tick), ha="center", va="bottom")
    width = min(ranks.critical_difference, k - 1)
    line([1, 1 + width], [-1.0, -1.0], linewidth=1.6)
    for end in (1, 1 + width):
        line([end, end], [-1.1, -0.9], linewidth=1.6)
    wider = " (wider than the axis)" if width < ranks.critical_difference else ""
    axes.text(1, -1.15, f"critical difference {ranks.critical_difference:.2f}{wider}", ha="left", va="bottom")
    for i, group in enumerate(groups):
        ends = [ranks.ranks[group[0]], ranks.ranks[group[-1]]]
        line([ends[0] - 0.015 * k, ends[1] + 0.015 * k], [0.28 + 0.28 * i] * 2, linewidth=3.5)
    for side, chosen in (("left", left), ("right", names[len(left) :][::-1])):
        edge = axes.get_xlim()[0 if side == "left" else 1]
        for i, name in enumerate(chosen):
            y = first + gap * i
            line([ranks.ranks[name]] * 2 + [edge], [0, y, y])
            label = f"{name}  {ranks.ranks[name]:.2f} " if side == "left" else f" {ranks.ranks[name]:.2f}  {name}"
            axes.text(edge, y, label, ha="right" if side == "left" else "left", va="center")
    unit = "setting" if ranks.units == 1 else "settings"
    gone = _gone(len(ranks.blocks), ranks.all_blocks)
    axes.set_title(f"average rank over {ranks.units} {unit}, 1 is best{gone}", fontsize=10)
    return figure


@_styled
def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as ``.png`` or ``.svg``, as the suffix of ``path`` says, without a date and without random ids.

    Raises:
        SoftPromptError: the suffix is another.
    """
    path = Path(path)
    metadata = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
    if path.suffix not in metadata:
        raise SoftPromptError(f"{path}: expected a name that ends in .png or .svg.")
    with written_whole(path) as partial:
        kind = path.suffix.removeprefix(".")
        figure.savefig(partial, format=kind, dpi=150, bbox_inches="tight", metadata=metadata[path.suffix])
    return path


def _figure(width: float, height: float) -> Figure:
    """Make a figure with the Agg canvas that ``savefig`` brings, which needs no display and no pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _marker(i: int) -> str:
    return MARKERS[i % len(MARKERS)]


def _dashes(i: int) -> Any:
    return DASHES[(i + i // len(COLOURS)) % len(DASHES)]


def _legend(figure: Figure, entries: Sequence[tuple[int, str]], kind: str) -> None:
    """Put the legend to the right of all panels, where it covers nothing; the figure grows by its width."""
    from matplotlib.lines import Line2D

    figure.set_figwidth(figure.get_figwidth() + 0.6 + 0.085 * max(len(label) for _, label in entries))

    handles = [
        Line2D(
            [],
            [],
            color=_colour(i),
            label=label,
            linestyle=_dashes(i) if kind == "line" else "none",
            marker=None if kind == "line" else _marker(i),
        )
        for i, label in entries
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)


def _against(scores: Scores, cost: dict[str, float | None], label: str) -> Figure:
    """Draw one point per method: its cost, its mean over the settings, and the interval of that mean."""
    means = overall(scores)
    if not means:
        raise SoftPromptError("no block that every method has finished; choose fewer methods, or run what is missing.")
    known = {method: value for method, value in cost.items() if value is not None and 0 < value < math.inf}
    if missing := [method for method in cost if method not in known]:
        raise SoftPromptError(f"no {label} of {', '.join(missing)}; leave these methods out.")
    figure = _figure(4.8, 3.6)
    axes = figure.subplots()
    for i, method in enumerate(scores.methods):
        summary = means[method]
        low, high = summary.interval or (summary.mean, summary.mean)
        axes.errorbar(
            [known[method]],
            [100 * summary.mean],
            yerr=[[100 * (summary.mean - low)], [100 * (high - summary.mean)]],
            color=_colour(i),
            marker=_marker(i),
            markersize=7,
            capsize=3,
            linestyle="none",
        )
    axes.set_xscale("log")
    axes.margins(x=0.12)
    _decimal_ticks(axes)
    blocks = scores.complete()
    settings = len({block.setting for block in blocks})
    axes.set_xlabel(label)
    axes.set_ylabel("test score, %")
    bars = ", 95 % interval over seeds" if any(summary.interval for summary in means.values()) else ""
    gone = _gone(len(blocks), len(scores.blocks))
    axes.set_title(f"mean of {settings} setting{'' if settings == 1 else 's'}{bars}{gone}", fontsize=10)
    _legend(figure, list(enumerate(scores.methods)), "marker")
    return figure


def _gone(blocks: int, all_blocks: int) -> str:
    return "" if blocks == all_blocks else f"\n({blocks} of {all_blocks} blocks: those that every method has finished)"


def _decimal_ticks(axes: Axes) -> None:
    """Write few, plain numbers on a log axis, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.get_xlim()
    subs = (1.0,) if high / low > 200 else (1.0, 3.0) if high / low > 20 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if high / low < 5 else LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float, _: object = None) -> str:
    """Write a number as 300k, 2M or 1.5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.6g}{letter}"
    return f"{value:.6g}"


def _few_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _median_parameters(scores: Scores, method: str) -> float | None:
    counts = (scores.lines[method][block].get("parameters") for block in scores.complete())
    known = [float(count) for count in counts if count is not None]
    return float(np.median(known)) if known else None


def curves_in(scores: Scores, method: str, setting: Setting) -> list[Curve]:
    """Pairs (step, dev score) of every run of a method in a setting that has some."""
    lines = scores.lines[method].items()
    return [curve for block, line in lines if block.setting == setting and (curve := curve_of(line))]


def quartiles_of(curves: Sequence[Curve]) -> tuple[list[int], np.ndarray]:
    """Return the steps, and the quartiles [3, steps] of the runs' scores in percent."""
    begin = max(curve[0][0] for curve in curves)
    steps = sorted({step for curve in curves for step, _ in curve if step >= begin})
    held = [[[score for at, score in curve if at <= step][-1] for step in steps] for curve in curves]
    return steps, 100 * np.quantile(np.array(held), [0.25, 0.5, 0.75], axis=0)
