"""Run a suite: what is done is skipped, what ends is written at once, what fails is noted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from .._types import SoftPromptError
from ..training.output.folder import only_run
from .checks import check_contenders, check_data
from .executors import CELL_WORK, Executor, InProcess, Work
from .records import CELLS, append_line, read_cells
from .suite import Cell, Suite


class Watcher(Protocol):
    """A suite, or a search, tells it how it gets on."""

    def begin(self, suite: str, todo: int, skipped: Counter[str]) -> None: ...

    def started(self, job: Any) -> None: ...

    def ended(self, line: dict[str, Any]) -> None: ...


def run_suite(
    suite: Suite,
    output: str | Path,
    executor: Executor | None = None,
    cells: Sequence[Cell] | None = None,
    retry_failed: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Run the cells of a suite that ``output`` does not hold yet, and append one line for each to ``output/cells.jsonl``.

    Args:
        suite: see `read_suite`.
        output: folder of the results; a stopped suite goes on there.
        executor: where cells run; in this process by default.
        cells: a part of the suite's cells; None runs all.
        retry_failed: whether cells that failed run again.
        watcher: the suite tells it of every cell.

    Returns:
        Counts and the path of the results: suite, cells, done, failed, ran, skipped, results. ``done`` and ``failed`` count the
        chosen cells, whenever they ran.

    Raises:
        SoftPromptError: the data hold a mistake, or do not fit a backbone, its head or a prompt, a package is missing, the folder cannot be written to, or another run
            holds it.
    """
    check_one_process()
    chosen = suite.cells() if cells is None else list(cells)
    path = Path(output) / CELLS
    with only_run(Path(output)):
        known = {key: line["status"] for key, line in read_cells(path).items()}
        todo = unfinished(chosen, known, retry_failed)
        if todo:
            check_contenders(todo)
            check_data(todo)
        skipped = Counter(known[cell.key] for cell in chosen if cell.key in known)
        skipped -= Counter(known[cell.key] for cell in todo if cell.key in known)
        if watcher is not None:
            watcher.begin(suite.name, len(todo), skipped)
        ran = run_jobs(todo, path, executor or InProcess(), watcher)
    return {
        "suite": suite.name,
        "cells": len(chosen),
        "done": skipped["done"] + ran["done"],
        "failed": skipped["failed"] + ran["failed"],
        "ran": ran.total(),
        "skipped": skipped.total(),
        "results": str(path),
    }


def check_one_process() -> None:
    """Refuse several processes of one launcher, each of which would run all jobs."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SoftPromptError(
            "a suite or a search runs in processes of its own: expected one process, got a launcher's; start it without accelerate or torchrun, with --workers."
        )


def run_jobs(
    jobs: Iterable[Any], path: Path, executor: Executor, watcher: Watcher | None, work: Work = CELL_WORK
) -> Counter[str]:
    """Run jobs, append the line of each to ``path`` as soon as it ends, and count them by status."""
    ran: Counter[str] = Counter()
    for line in executor.run(jobs, watcher.started if watcher else _unwatched, work):
        append_line(path, line)
        ran[line["status"]] += 1
        if watcher is not None:
            watcher.ended(line)
    return ran


def unfinished(cells: Sequence[Cell], known: dict[str, str], retry_failed: bool) -> list[Cell]:
    """Return the cells that are still to run, by the status that is known of each key."""
    over = {"done"} if retry_failed else {"done", "failed"}
    return [cell for cell in cells if known.get(cell.key) not in over]


def _unwatched(job: Any) -> None: ...
