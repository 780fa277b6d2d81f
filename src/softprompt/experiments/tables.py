"""Tables of results: built once, written as Markdown, LaTeX (booktabs) or CSV.

Scores are shown in percent, differences in points of percent; a CSV holds the numbers as they are.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .statistics import (
    Comparisons,
    Interval,
    LeftOut,
    Ranks,
    Scores,
    Shares,
    Summary,
    compare,
    overall,
    rank,
    relative_cost,
    steps_to_target,
    summarize,
    trainings,
)

Value = float | int | str | None
NONE = "-"


@dataclass(frozen=True)
class Column:
    """A column: its name, and the names of the numbers in each of its cells, which are columns of their own in a CSV."""

    name: str
    parts: tuple[str, ...] = ("",)
    left: bool = False


@dataclass(frozen=True)
class Cell:
    """What a reader sees, the numbers behind it (one per part of the column), and whether it is printed bold."""

    text: str
    values: tuple[Value, ...]
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A title, columns, rows of cells, and notes that belong under it: what was left out, and how numbers came about."""

    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str]

    def markdown(self) -> str:
        """Pipes; notes stand below. The title is left out: a page has its own headings."""
        head = "|" + "|".join(f" {_pipes(column.name)} " for column in self.columns) + "|"
        rule = "|" + "|".join("---" if column.left else "---:" for column in self.columns) + "|"
        body = ["|" + "|".join(f" {_strong(cell)} " for cell in row) + "|" for row in self.rows]
        notes = ["", *(f"{_pipes(note)}  " for note in self.notes)] if self.notes else []
        return "\n".join([head, rule, *body, *notes]).rstrip() + "\n"

    def latex(self) -> str:
        """A ``table`` with ``booktabs`` rules; title and notes are its caption."""
        rows = [" & ".join(_latex(column.name) for column in self.columns), *(_latex_row(row) for row in self.rows)]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_latex(' '.join([_sentence(self.title), *self.notes]))}}}",
                rf"\begin{{tabular}}{{{''.join('l' if column.left else 'r' for column in self.columns)}}}",
                r"\toprule",
                rows[0] + r" \\",
                r"\midrule",
                *(row + r" \\" for row in rows[1:]),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def csv(self) -> str:
        """Numbers to 6 digits, one column per number, empty where there is none; ``inf`` is never. Without notes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(f"{column.name} {part}".strip() for column in self.columns for part in column.parts)
        writer.writerows([_number(value) for cell in row for value in cell.values] for row in self.rows)
        return text.getvalue()


def results_table(scores: Scores, over: str = "tasks", title: str = "Results") -> Table:
    """Methods by settings: mean and standard deviation over seeds, mean of all settings, average rank, parameters.

    Mean and rank are taken on the blocks that all methods have finished; a setting's column takes all runs there are, and
    says where a method has fewer than others. The best of a column is bold, and so is what reads the same.
    """
    cells, means, ranks = summarize(scores), overall(scores), rank(scores, over)
    columns = [Column("method", left=True)]
    rows = [[Cell(method, (method,))] for method in scores.methods]
    for setting in scores.settings:
        columns.append(Column(str(setting), ("mean", "sd", "runs")))
        found = [cells.get((method, setting)) for method in scores.methods]
        _append(rows, _best([_score(summary, _most(found)) for summary in found], max))
    columns.append(Column("mean"))
    _append(rows, _best([_percent(means[m].mean if m in means else None) for m in scores.methods], max))
    columns.append(Column("rank"))
    _append(rows, _best([_plain(ranks.ranks.get(method), "{:.2f}") for method in scores.methods], min))
    columns.append(Column("parameters", ("lowest", "highest")))
    _append(rows, [_parameters(scores, method) for method in scores.methods])
    notes = ["Percent, mean ± standard deviation over seeds.", *_rank_notes(ranks), *_budget_notes(scores)]
    return Table(title, columns, rows, [*notes, *_left_out(ranks.blocks, ranks.all_blocks, ranks.left_out)])


def comparison_table(
    scores: Scores, reference: str, over: str = "seeds", test: str = "sign_flip", tie_width: float = 0.005
) -> Table:
    """Difference of each method to ``reference`` with interval, p, Holm's p, and wins, ties and losses; see `compare`."""
    found = compare(scores, reference, over, test, tie_width)
    unit = "blocks" if over == "seeds" else "settings"
    columns = [
        Column("method", left=True),
        Column(f"minus {reference}"),
        Column("95 % interval", ("low", "high")),
        Column("p"),
        Column("p (Holm)"),
        Column("W/T/L", ("wins", "ties", "losses")),
        Column(unit),
    ]
    rows = [
        [
            Cell(row.method, (row.method,)),
            _plain(row.difference, "{:+.1f}", 100),
            _between(row.interval, "{:+.1f}", 100),
            _probability(row.p),
            _probability(row.holm),
            Cell(str(row.record) if row.units else NONE, tuple(row.record)),
            Cell(str(row.units), (row.units,)),
        ]
        for row in found.rows
    ]
    return Table(f"Compared with {reference}", columns, rows, _comparison_notes(found))


def cost_table(scores: Scores, reference: str) -> Table:
    """Training time and total time relative to ``reference`` in the same block: medians; see `relative_cost`."""
    keys = {"training time": "train_seconds", "total time": "total_seconds"}
    found = {name: relative_cost(scores, reference, key) for name, key in keys.items()}
    columns = [Column("method", left=True)]
    rows = [[Cell(method, (method,))] for method in scores.methods]
    for name, shares in found.items():
        columns.append(Column(name, ("median", "low", "high", "blocks")))
        _append(rows, [_ratio(share) for share in shares])
    columns.append(Column("parameters", ("lowest", "highest")))
    _append(rows, [_parameters(scores, method) for method in scores.methods])
    columns.append(Column("trainings per cell", ("lowest", "highest")))
    _append(rows, [_trainings(scores, method) for method in scores.methods])
    notes = [f"Median ratio to {reference} in the same block, with its 95 % interval.", _MEDIAN]
    return Table(
        "Cost", columns, rows, [*notes, *_share_notes(scores, [s for shares in found.values() for s in shares])]
    )


def steps_table(scores: Scores, reference: str, target: float | None = None) -> Table:
    """Steps to a dev score as a share of the reference's; see `steps_to_target`."""
    found = steps_to_target(scores, reference, target)
    goal = f"the best dev score of {reference}" if target is None else f"a dev score of {100 * target:.1f}"
    columns = [
        Column("method", left=True),
        Column("share of steps"),
        Column("95 % interval", ("low", "high")),
        Column("never"),
        Column("blocks"),
    ]
    rows = [
        [
            Cell(share.method, (share.method,)),
            _plain(share.median, "{:.2f}"),
            _between(share.interval, "{:.2f}"),
            _count(share.never),
            _count(len(share.shares)),
        ]
        for share in found
    ]
    notes = [
        f"Steps to {goal} as a share of the steps that {reference} takes in the same block: median. A run that never gets there counts as infinite.",
        _MEDIAN,
    ]
    return Table("Steps to the target", columns, rows, [*notes, *_share_notes(scores, found)])


# Cells ----------------------------------------------------------------------------------------------------------------


def _append(rows: list[list[Cell]], cells: Sequence[Cell]) -> None:
    for row, cell in zip(rows, cells, strict=True):
        row.append(cell)


def _score(summary: Summary | None, most: int) -> Cell:
    if summary is None:
        return Cell(NONE, (None, None, 0))
    text = f"{100 * summary.mean:.1f}"
    if summary.deviation is not None:
        text += f" ± {100 * summary.deviation:.1f}"
    if summary.count < most:
        text += f" ({summary.count} of {most})"
    return Cell(text, (summary.mean, summary.deviation, summary.count))


def _most(found: Iterable[Summary | None]) -> int:
    return max((summary.count for summary in found if summary is not None), default=0)


def _best(cells: list[Cell], choose: Callable[..., float]) -> list[Cell]:
    """Print bold the best first value, and every one that reads the same."""
    shown = [None if cell.values[0] is None else float(cell.text.split()[0]) for cell in cells]
    best = choose((value for value in shown if value is not None), default=math.nan)
    return [Cell(cell.text, cell.values, value == best) for cell, value in zip(cells, shown, strict=True)]


def _percent(value: float | None) -> Cell:
    return _plain(value, "{:.1f}", 100)


def _plain(value: float | None, form: str, scale: float = 1) -> Cell:
    return Cell(NONE if value is None else _show(value, form, scale), (value,))


def _show(value: float, form: str, scale: float) -> str:
    if math.isinf(value):
        return "never"
    text = form.format(scale * value)
    return text.lstrip("+-") if float(text) == 0 else text  # no -0.0


def _between(interval: Interval | None, form: str, scale: float = 1) -> Cell:
    if interval is None:
        return Cell(NONE, (None, None))
    return Cell(" to ".join(_show(end, form, scale) for end in interval), tuple(interval))


def _ratio(share: Shares) -> Cell:
    text = NONE if share.median is None else _show(share.median, "{:.2f}", 1)
    if share.interval is not None:
        text += f" ({_between(share.interval, '{:.2f}').text})"
    return Cell(text, (share.median, *(share.interval or (None, None)), len(share.shares)))


def _probability(p: float | None) -> Cell:
    return Cell(NONE if p is None else "<0.001" if p < 0.0005 else f"{p:.3f}", (p,))


def _count(number: int) -> Cell:
    return Cell(str(number), (number,))


def _parameters(scores: Scores, method: str) -> Cell:
    """The trained parameters: one number, or the range where heads of tasks differ in size."""
    return _range(
        sorted({int(n) for line in scores.lines[method].values() if (n := line.get("parameters")) is not None})
    )


def _trainings(scores: Scores, method: str) -> Cell:
    return _range(trainings(scores, method))


def _range(found: Sequence[int]) -> Cell:
    """One number, or the lowest and the highest of sorted ones."""
    if not found:
        return Cell(NONE, (None, None))
    text = f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
    return Cell(text, (found[0], found[-1]))


# Notes ----------------------------------------------------------------------------------------------------------------

_MEDIAN = "Intervals of medians lie between order statistics and need six blocks."
_OVER = {
    "seeds": "Intervals resample seeds within each setting; the settings are taken as given.",
    "tasks": "Intervals resample settings.",
}
_TEST = {"sign_flip": "sign-flip permutation test of the mean", "wilcoxon": "Wilcoxon's signed-rank test"}


def _comparison_notes(found: Comparisons) -> list[str]:
    unit = "blocks" if found.over == "seeds" else "settings"
    return [
        f"Points of percent. {_OVER[found.over]}",
        f"p: {_TEST[found.test]} over {unit}, two-sided; Holm's correction for {_counted(len(found.rows), 'comparison')}.",
        f"W/T/L: {unit} won, tied (up to {100 * found.tie_width:g} points) and lost.",
        *_left_out(found.blocks, found.all_blocks, found.left_out),
    ]


def _rank_notes(ranks: Ranks) -> list[str]:
    if not ranks.units:
        return []
    unit = "block" if ranks.over == "seeds" else "setting"
    parts = [f"Rank: average over {_counted(ranks.units, unit)}"]
    if ranks.friedman:
        parts.append(f"Friedman p = {_probability(ranks.friedman[1]).text}".replace("= <", "< "))
    if ranks.critical_difference is not None:
        parts.append(f"critical difference {ranks.critical_difference:.2f} (Nemenyi, {ranks.alpha:g})")
    return ["; ".join(parts) + "."]


def _budget_notes(scores: Scores) -> list[str]:
    """How much each method was tuned, where the lines say it."""
    groups: dict[str, list[str]] = {}
    for method in scores.methods:
        if (cell := _trainings(scores, method)).text != NONE:
            groups.setdefault(cell.text, []).append(method)
    if not groups:
        return []
    if list(groups) == ["1"]:
        return ["Trainings per cell: 1."]
    parts = [f"{count} ({', '.join(methods)})" if len(groups) > 1 else count for count, methods in groups.items()]
    return [f"Trainings per cell, one for each learning rate tried, the best by dev score: {'; '.join(parts)}."]


def _left_out(blocks: Sequence[object], all_blocks: int, left_out: Sequence[LeftOut]) -> list[str]:
    if not left_out:
        return []
    gone = all_blocks - len(blocks)
    return [
        f"Left out where methods are compared: {gone} of {_counted(all_blocks, 'block')}, because of {_runs(left_out)}."
    ]


def _share_notes(scores: Scores, found: Sequence[Shares]) -> list[str]:
    notes = _left_out(scores.complete(), len(scores.blocks), scores.left_out)
    known = set(scores.left_out)
    single = list(dict.fromkeys(x for share in found for x in share.left_out if x not in known))
    return [*notes, *([f"Not counted: {_runs(single)}."] if single else [])]


def _runs(left_out: Sequence[LeftOut]) -> str:
    """The runs by method and reason; blocks by name where they are few."""
    groups: dict[tuple[str, str], list[str]] = {}
    for run in left_out:
        groups.setdefault((run.method, run.reason), []).append(str(run.block))
    return "; ".join(
        f"{method} on {' and '.join(blocks) if len(blocks) < 3 else f'{len(blocks)} blocks'} ({reason})"
        for (method, reason), blocks in groups.items()
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# Writing --------------------------------------------------------------------------------------------------------------


def _sentence(text: str) -> str:
    return text if text.endswith(".") else text + "."


def _pipes(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _strong(cell: Cell) -> str:
    return f"**{_pipes(cell.text)}**" if cell.bold else _pipes(cell.text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
}


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", escaped)


def _latex_row(row: Sequence[Cell]) -> str:
    return " & ".join(rf"\textbf{{{_latex(cell.text)}}}" if cell.bold else _latex(cell.text) for cell in row)


def _number(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
