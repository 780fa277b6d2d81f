"""A suite's tables and curves as one self-contained page, in the style of `softprompt.report`."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from ..report.figures import Figure, colours, line_figure
from ..report.page import document, figure_grid
from .plots import curves_in, quartiles_of
from .statistics import Scores
from .tables import Table

CURVES = "Dev score over steps"


def comparison_page(title: str, tables: Mapping[str, Table], scores: Scores) -> str:
    """The page: every table with its notes, and for each setting the median curve of every method."""
    curves = _curves(scores)
    names = {name: table.title for name, table in tables.items()} | ({"curves": CURVES} if curves else {})
    links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in names.items())
    parts = [f'<header><h1>{escape(title)}</h1><nav aria-label="tables">{links}</nav></header><main>']
    for name, table in tables.items():
        parts.append(f'<section id="{name}"><h2>{escape(table.title)}</h2>{_table(table)}</section>')
    if curves:
        parts.append(f'<section id="curves"><h2>{CURVES}</h2>{figure_grid(curves)}</section>')
    return document(title, [*parts, "</main>"])


def _table(table: Table) -> str:
    kinds = ["" if column.left else " class=number" for column in table.columns]
    head = "".join(
        f'<th scope="col"{kind}>{escape(column.name)}</th>' for kind, column in zip(kinds, table.columns, strict=True)
    )
    lines = []
    for line in table.lines:
        cells = [
            f"<td{kind}>{f'<strong>{escape(cell.text)}</strong>' if cell.bold else escape(cell.text)}</td>"
            for kind, cell in zip(kinds, line, strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>{notes}'


def _curves(scores: Scores) -> list[Figure]:
    """Of each setting: the median over seeds, from the step on at which all runs of a method have a score."""
    kinds, figures = colours(scores.methods), []
    for setting in scores.settings:
        medians = {}
        for method in scores.methods:
            if found := curves_in(scores, method, setting):
                steps, quartiles = quartiles_of(found)
                medians[method] = list(zip(steps, quartiles[1].tolist(), strict=True))
        if medians:
            figures.append(line_figure(str(setting), medians, kinds, y="dev score, %", note="Median over seeds."))
    return figures
