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
from statistics import fmean

from .statistics import (
    ALPHA,
    EARLY,
    FEW,
    KEPT,
    TIE,
    Comparisons,
    Interval,
    LeftOut,
    Ranks,
    Scores,
    Shares,
    Summary,
    chosen_checkpoints,
    compare,
    mechanisms,
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
    """A column: its name, and the names of the numbers in each of its cells; a CSV has one column for each number."""

    name: str
    parts: tuple[str, ...] = ("",)
    left: bool = False


@dataclass(frozen=True)
class Cell:
    """The text that a reader sees, the numbers behind it (one per part of the column), and whether it is printed bold."""

    text: str
    values: tuple[Value, ...]
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A title, columns, lines of cells, and the notes under them: what was left out, and how numbers came about."""

    title: str
    columns: list[Column]
    lines: list[list[Cell]]
    notes: list[str]

    def markdown(self) -> str:
        """Write the table with pipes, and its notes below; the title is left out, because a page has its own headings."""
        head = "|" + "|".join(f" {_pipes(column.name)} " for column in self.columns) + "|"
        rule = "|" + "|".join("---" if column.left else "---:" for column in self.columns) + "|"
        body = ["|" + "|".join(f" {_strong(cell)} " for cell in line) + "|" for line in self.lines]
        notes = ["", *(f"{_pipes(note)}  " for note in self.notes)] if self.notes else []
        return "\n".join([head, rule, *body, *notes]).rstrip() + "\n"

    def latex(self) -> str:
        """Write a ``table`` with ``booktabs`` rules; title and notes are its caption."""
        lines = [" & ".join(_latex(column.name) for column in self.columns), *(_latex_row(line) for line in self.lines)]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_latex(' '.join([_sentence(self.title), *self.notes]))}}}",
                rf"\begin{{tabular}}{{{''.join('l' if column.left else 'r' for column in self.columns)}}}",
                r"\toprule",
                lines[0] + r" \\",
                r"\midrule",
                *(line + r" \\" for line in lines[1:]),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def csv(self) -> str:
        """Write numbers to 6 digits without notes: one column per number, empty where there is none, ``inf`` for never."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(f"{column.name} {part}".strip() for column in self.columns for part in column.parts)
        writer.writerows([_number(value) for cell in line for value in cell.values] for line in self.lines)
        return text.getvalue()


def results_table(scores: Scores) -> Table:
    """Tabulate methods by settings: mean and standard deviation over seeds, mean of all settings, average rank, parameters.

    Mean and rank are taken on the blocks that all methods have finished. A setting's column takes all runs there are, and
    says where a method has fewer runs than others. The best value of a column is bold, and so is every value that reads the
    same.
    """
    cells, means, ranks = summarize(scores), overall(scores), rank(scores)
    columns = [Column("method", left=True)]
    lines = [[Cell(method, (method,))] for method in scores.methods]
    for setting in scores.settings:
        columns.append(Column(str(setting), ("mean", "sd", "runs")))
        summaries = [cells.get((method, setting)) for method in scores.methods]
        _append(lines, _best([_score(summary, _most(summaries)) for summary in summaries], max))
    columns.append(Column("mean"))
    _append(lines, _best([_percent(means[m].mean if m in means else None) for m in scores.methods], max))
    columns.append(Column("rank"))
    _append(lines, _best([_plain(ranks.ranks.get(method), "{:.2f}") for method in scores.methods], min))
    columns.append(Column("parameters", ("lowest", "highest")))
    _append(lines, [_parameters(scores, method) for method in scores.methods])
    notes = ["Percent, mean ± standard deviation over seeds.", *_rank_notes(ranks), *_budget_notes(scores)]
    return Table("Results", columns, lines, [*notes, *_left_out(ranks.blocks, ranks.all_blocks, ranks.left_out)])


def comparison_table(scores: Scores, reference: str) -> Table:
    """Tabulate each method's difference to ``reference``: interval, p, Holm's p, and wins, ties and losses; see `compare`."""
    compared = compare(scores, reference)
    columns = [
        Column("method", left=True),
        Column(f"minus {reference}"),
        Column("95 % interval", ("low", "high", "resampled")),
        Column("p"),
        Column("p (Holm)"),
        Column("W/T/L", ("wins", "ties", "losses")),
        Column("blocks"),
    ]
    lines = [
        [
            Cell(line.method, (line.method,)),
            _plain(line.difference, "{:+.1f}", 100),
            _resampled(line.interval, compared.fewest),
            _probability(line.p),
            _probability(line.holm),
            Cell(str(line.record) if line.units else NONE, tuple(line.record)),
            Cell(str(line.units), (line.units,)),
        ]
        for line in compared.lines
    ]
    return Table(f"Compared with {reference}", columns, lines, _comparison_notes(compared))


def cost_table(scores: Scores, reference: str) -> Table:
    """Tabulate median training time and total time, relative to ``reference`` in the same block; see `relative_cost`."""
    keys = {"training time": "train_seconds", "total time": "total_seconds"}
    costs = {name: relative_cost(scores, reference, key) for name, key in keys.items()}
    columns = [Column("method", left=True)]
    lines = [[Cell(method, (method,))] for method in scores.methods]
    for name, shares in costs.items():
        columns.append(Column(name, ("median", "low", "high", "blocks")))
        _append(lines, [_ratio(share) for share in shares])
    columns.append(Column("parameters", ("lowest", "highest")))
    _append(lines, [_parameters(scores, method) for method in scores.methods])
    columns.append(Column("trainings per cell", ("lowest", "highest")))
    _append(lines, [_trainings(scores, method) for method in scores.methods])
    notes = [f"Median ratio to {reference} in the same block, with its 95 % interval.", _MEDIAN]
    return Table(
        "Cost", columns, lines, [*notes, *_share_notes(scores, [s for shares in costs.values() for s in shares])]
    )


def steps_table(scores: Scores, reference: str, target: float | None = None) -> Table:
    """Tabulate the steps to a dev score as a share of the reference's steps; see `steps_to_target`."""
    shares = steps_to_target(scores, reference, target)
    goal = f"the best dev score of {reference}" if target is None else f"a dev score of {100 * target:.1f}"
    columns = [
        Column("method", left=True),
        Column("share of steps"),
        Column("95 % interval", ("low", "high")),
        Column("never"),
        Column("blocks"),
    ]
    lines = [
        [
            Cell(share.method, (share.method,)),
            _plain(share.median, "{:.2f}"),
            _between(share.interval, "{:.2f}"),
            _count(share.never),
            _count(len(share.shares)),
        ]
        for share in shares
    ]
    notes = [
        f"Steps to {goal} as a share of the steps that {reference} takes in the same block: median. A run that never gets there counts as infinite.",
        _MEDIAN,
    ]
    return Table("Steps to the target", columns, lines, [*notes, *_share_notes(scores, shares)])


def checkpoints_table(scores: Scores) -> Table:
    """Tabulate where the chosen checkpoints stand in training, and the last step beside them; see `chosen_checkpoints`."""
    columns = [
        Column("method", left=True),
        Column("chosen at, share of training"),
        Column("95 % interval", ("low", "high")),
        Column(f"in the first {EARLY:.0%}"),
        Column("runs"),
        Column("last minus chosen, test"),
        Column("95 % interval of that", ("low", "high")),
        Column("runs with both"),
    ]
    lines = [
        [
            Cell(chosen.method, (chosen.method,)),
            _plain(chosen.median, "{:.2f}"),
            _between(chosen.interval, "{:.2f}"),
            _count(chosen.early) if chosen.shares else Cell(NONE, (None,)),
            _count(len(chosen.shares)),
            _plain(chosen.mean, "{:+.1f}", 100),
            _between(chosen.mean_interval, "{:+.1f}", 100),
            _count(len(chosen.differences)),
        ]
        for chosen in chosen_checkpoints(scores)
    ]
    notes = [
        "Step of the checkpoint that dev scores choose, as a share of all steps of its run: median over runs, early stops included.",
        "Last minus chosen: points of percent, for runs with score_last; the interval resamples seeds within each setting.",
        _MEDIAN,
    ]
    return Table("Chosen checkpoints", columns, lines, notes)


def mechanism_table(scores: Scores) -> Table:
    """Tabulate what each method's mechanism did: one line for each figure of a method in a setting; see `mechanisms`."""
    columns = [
        *(Column(name, left=True) for name in ("method", "setting", "figure")),
        *(Column(name) for name in ("mean", "lowest", "highest", "runs")),
    ]
    lines = [
        [
            *(Cell(text, (text,)) for text in (figure.method, str(figure.setting), figure.name)),
            *(_plain(choose(figure.values), "{:.3f}") for choose in (fmean, min, max)),
            _count(len(figure.values)),
        ]
        for figure in mechanisms(scores)
    ]
    notes = [
        "Figures of the trained prompts and their runs: fusion_entropy is 1 where the fusion tells nothing apart; gradient_share is the size of a term's gradient on the virtual tokens, that of the task's loss being 1 (in cells up to 2026-11-28 the first of its measurements, in those before that all, are the share that was asked for)."
    ]
    if any(line[2].text.startswith(KEPT) for line in lines):
        notes.append(
            f"{KEPT} N: the share of runs whose search kept layer N; layer_scores N: the score that ranked it, by the method's layer_score (layer_gates where runs note gates alone)."
        )
    return Table("Mechanisms", columns, lines, notes if lines else ["No run has noted its mechanism."])


# Cells ----------------------------------------------------------------------------------------------------------------


def _append(lines: list[list[Cell]], cells: Sequence[Cell]) -> None:
    for line, cell in zip(lines, cells, strict=True):
        line.append(cell)


def _score(summary: Summary | None, most: int) -> Cell:
    if summary is None:
        return Cell(NONE, (None, None, 0))
    text = f"{100 * summary.mean:.1f}"
    if summary.deviation is not None:
        text += f" ± {100 * summary.deviation:.1f}"
    if summary.count < most:
        text += f" ({summary.count} of {most})"
    return Cell(text, (summary.mean, summary.deviation, summary.count))


def _most(summaries: Iterable[Summary | None]) -> int:
    return max((summary.count for summary in summaries if summary is not None), default=0)


def _best(cells: list[Cell], choose: Callable[..., float]) -> list[Cell]:
    """Mark the best first value bold, and every value that reads the same."""
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


def _resampled(interval: Interval | None, fewest: int) -> Cell:
    """Show the interval of a difference; a CSV says beside it how many values it resamples at least."""
    shown = _between(interval, "{:+.1f}", 100)
    return Cell(shown.text, (*shown.values, fewest))


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
    """Show the trained parameters: one number, or the range where heads of tasks differ in size."""
    return _range(
        sorted({int(n) for line in scores.lines[method].values() if (n := line.get("parameters")) is not None})
    )


def _trainings(scores: Scores, method: str) -> Cell:
    return _range(trainings(scores, method))


def _range(numbers: Sequence[int]) -> Cell:
    """Show one number, or the lowest and the highest of sorted ones."""
    if not numbers:
        return Cell(NONE, (None, None))
    text = f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
    return Cell(text, (numbers[0], numbers[-1]))


# Notes ----------------------------------------------------------------------------------------------------------------

COVERED = {2: (50, 77), 3: (75, 87), 4: (80, 90), 5: (84, 90)}  # seeds -> percent, in one setting and over eight
_MEDIAN = "Intervals of medians lie between order statistics and need six blocks."


def _comparison_notes(compared: Comparisons) -> list[str]:
    return [
        "Points of percent. Intervals resample seeds within each setting; the settings are taken as given.",
        *_few(compared),
        f"p: sign-flip permutation test of the mean over blocks, two-sided; Holm's correction for {_counted(len(compared.lines), 'comparison')}.",
        f"W/T/L: blocks won, tied (up to {100 * TIE:g} points) and lost.",
        *_left_out(compared.blocks, compared.all_blocks, compared.left_out),
    ]


def _few(compared: Comparisons) -> list[str]:
    """Say that the intervals are too short, where they are of few values."""
    if not 1 < compared.fewest < FEW:  # of one value there is no interval
        return []
    one, eight = COVERED[compared.fewest]
    return [
        f"The intervals are too short: they resample {compared.fewest} seeds of a setting. A 95 % bootstrap interval of as many normal values covers their mean in about {one} % of cases, over eight settings in about {eight} %; where all differences are equal it has no width."
    ]


def _rank_notes(ranks: Ranks) -> list[str]:
    if not ranks.units:
        return []
    parts = [f"Rank: average over {_counted(ranks.units, 'setting')}"]
    if ranks.friedman:
        parts.append(f"Friedman p = {_probability(ranks.friedman[1]).text}".replace("= <", "< "))
    if ranks.critical_difference is not None:
        parts.append(f"critical difference {ranks.critical_difference:.2f} (Nemenyi, {ALPHA:g})")
    return ["; ".join(parts) + "."]


def _budget_notes(scores: Scores) -> list[str]:
    """Say how much each method was tuned, where the lines tell."""
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


def _share_notes(scores: Scores, shares: Sequence[Shares]) -> list[str]:
    notes = _left_out(scores.complete(), len(scores.blocks), scores.left_out)
    known = set(scores.left_out)
    single = list(dict.fromkeys(x for share in shares for x in share.left_out if x not in known))
    return [*notes, *([f"Not counted: {_runs(single)}."] if single else [])]


def _runs(left_out: Sequence[LeftOut]) -> str:
    """Name the runs by method and reason; blocks by name where they are few."""
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


def _latex_row(line: Sequence[Cell]) -> str:
    return " & ".join(rf"\textbf{{{_latex(cell.text)}}}" if cell.bold else _latex(cell.text) for cell in line)


def _number(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
