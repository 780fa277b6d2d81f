"""The report as Markdown, with its figures as files beside it: for pull requests and notes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from .._files import write_text
from .contents import GROUPS, facts_shown, figures_between, figures_of, groups, slug
from .figures import Figure, colours
from .runs import Run


def write_markdown(runs: Sequence[Run], path: Path) -> None:
    """Write tables to ``path``, and each figure to an SVG file whose name begins as that of ``path``."""
    shown = facts_shown(runs)
    lines = ["# Runs", "", "| run | " + " | ".join(shown.values()) + " |", "|---" * (1 + len(shown)) + "|"]
    for run in runs:
        lines.append("| " + " | ".join([_plain(run.name), *(_plain(run.facts.get(key)) for key in shown)]) + " |")
    if lines_of_groups := groups(runs):
        lines += ["", "| " + " | ".join(GROUPS) + " |", "|---" * len(GROUPS) + "|"]
        lines += ["| " + " | ".join(map(_plain, line)) + " |" for line in lines_of_groups]
    for figure in figures_between(runs, colours([run.name for run in runs])):
        lines += _picture(figure, path, "runs")
    for i, run in enumerate(runs):
        lines += ["", f"## {_plain(run.name)}", *(f"- {_plain(line)}" for line in run.missing)]
        for figure in figures_of(run):
            lines += _picture(figure, path, f"run-{i}")
    write_text(path, "\n".join(lines) + "\n")


def _picture(figure: Figure, path: Path, whose: str) -> list[str]:
    if not figure.svg:
        return []
    file = path.with_name(f"{path.stem}-{whose}-{slug(figure.title)}.svg")
    style = files(__package__).joinpath("assets", "page.css").read_text("utf-8")
    head, _, body = figure.svg.partition(">")
    write_text(file, f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{body}\n')
    return ["", f"![{figure.title}]({file.name})", *(["", figure.note] if figure.note else [])]


def _plain(value: Any) -> str:
    """A value in a cell of a table; text of a user is no markup."""
    if value is None:
        return "-"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#!~" else c for c in text.replace("\n", " "))
