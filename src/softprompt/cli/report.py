"""``softprompt report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .voice import err, quiet


def report(
    runs: Annotated[
        list[str], typer.Argument(help="Folders of runs, as softprompt train writes them, or names of runs on the hub.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The page; a name that ends in .md gets Markdown with SVG files beside it."
        ),
    ] = Path("report.html"),
    backbone: Annotated[str | None, typer.Option(help="Another place where the runs' backbone lies.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Labelled rows, to measure what each virtual token is worth.")
    ] = None,
) -> None:
    """Write one page about runs: scores, curves, the structural evolution of prompts under a slider, gates, nearest tokens."""
    quiet()
    from ..report import write_report

    for run in write_report(runs, output, backbone, data):
        for line in run.missing:
            err.print(f"{run.name}: {line}", markup=False, highlight=False, soft_wrap=True)
    print(output)
