"""``softprompt bench`` and ``softprompt compare``: suites of experiments."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._files import to_json
from .._types import SoftPromptError, check_choice
from .voice import err, quiet
from .workers import Address, Cpus, ExecutorName, Gpus, Retries, Workers

if TYPE_CHECKING:
    from ..experiments import Cell

Method = Annotated[list[str] | None, typer.Option(help="Only this method, by its exact name; repeatable.")]
Only = Annotated[
    list[str] | None, typer.Option(help="Only cells with this text in 'task, setting, seed, method'; repeatable.")
]
Skip = Annotated[list[str] | None, typer.Option(help="Leave out cells with this text; repeatable.")]


def bench(
    suite: Annotated[str, typer.Argument(help="YAML file, or a shipped suite: smoke, few-shot, low-data, full.")],
    data: Annotated[str | None, typer.Option(help="Folder that holds one folder per task.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of cells.jsonl; a stopped suite goes on there. [default: bench-output/NAME]"),
    ] = None,
    executor: ExecutorName = "auto",
    workers: Workers = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a cell; another number, other last digits.")] = 1,
    address: Address = None,
    cpus_per_cell: Cpus = 1,
    gpus_per_cell: Gpus = 0,
    retries: Retries = 1,
    task: Annotated[
        list[str] | None, typer.Option(help="A task's folder in place of the suite's tasks; repeatable.")
    ] = None,
    method: Method = None,
    only: Only = None,
    skip: Skip = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: a default of every run, such as backbone.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Print the numbered cells and stop.")] = False,
    print_cell: Annotated[
        int | None,
        typer.Option(help="Print the flat YAML of a numbered cell for `softprompt train --config`, and stop."),
    ] = None,
) -> None:
    """Compare methods on tasks and seeds: one JSON line per cell; what is done is skipped when it is called again.

    Progress goes to the terminal, or as plain lines to stdout where that is none; the last line of stdout is one JSON
    document with counts. Exit code 0 when every chosen cell is done, 1 when some failed, 2 when the suite is wrong.
    """
    quiet()
    logging.getLogger("softprompt").setLevel(logging.WARNING)  # choices of every single run would drown the progress
    from ..experiments import read_suite, run_suite
    from ..experiments.cell import flat_yaml
    from ..experiments.executors import make_executor
    from ..experiments.progress import Watch
    from ..training import parse_setting

    chosen = make_executor(
        executor,
        workers=workers,
        threads=threads,
        address=address,
        cpus_per_cell=cpus_per_cell,
        gpus_per_cell=gpus_per_cell,
        retries=retries,
    )
    whole = read_suite(suite, data, dict(parse_setting(text) for text in settings or []), task or ())
    cells = whole.cells()
    folder = output or Path("bench-output") / whole.name
    if print_cell is not None:
        if not 0 <= print_cell < len(cells):
            raise SoftPromptError(
                f"--print-cell {print_cell}: expected a number from 0 to {len(cells) - 1}; see --list."
            )
        sys.stdout.write(flat_yaml(cells[print_cell], folder / "cells" / str(print_cell)))
        return
    for name in method or []:
        check_choice("method of the suite", name, list(whole.methods))
    numbered = _numbered(cells, method or (), only or (), skip or ())
    if listing:
        for number, cell in numbered:
            print(f"{number} {cell.name}")
        return
    with Watch(err) as watch:
        document = run_suite(whole, folder, chosen, [cell for _, cell in numbered], retry_failed, watch)
    print(to_json(document))
    if document["failed"]:
        raise typer.Exit(1)


def _numbered(
    cells: Sequence[Cell], methods: Sequence[str], only: Sequence[str], skip: Sequence[str]
) -> list[tuple[int, Cell]]:
    """Return the cells that are meant, each with its number in the whole suite."""
    from ..experiments.suite import selected

    numbered = [(number, cell) for number, cell in enumerate(cells) if selected(vars(cell), methods, only, skip)]
    if not numbered:
        raise SoftPromptError(f"--method, --only and --skip leave no cell of {len(cells)}; see --list for their names.")
    return numbered


def compare(
    cells: Annotated[Path, typer.Argument(help="Folder that `softprompt bench` wrote, or its cells.jsonl.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for tables and figures. [default: 'comparison' beside the cells]")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Method that the others are compared with; the first without it.")
    ] = None,
    method: Method = None,
    only: Only = None,
    skip: Skip = None,
    html: Annotated[
        bool, typer.Option("--html", help="One page with all tables and the curves, too: comparison.html.")
    ] = False,
) -> None:
    """Tables (Markdown, LaTeX, CSV) and figures of a suite: means, paired differences, ranks, cost, steps."""
    quiet()
    from ..experiments import write_comparison

    folder = output or (cells if cells.is_dir() else cells.parent) / "comparison"
    written = write_comparison(cells, folder, reference, method or (), only or (), skip or (), html)
    print(to_json({"output": str(folder), "files": [path.name for path in written]}))
