"""What is checked of a suite's cells before the first one starts, beside the suite file: rows, backbone, head and packages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .._types import SoftPromptError
from ..data import Task, load_task
from ..training.keys.options import ARGUMENTS
from ..training.prepare import gather, reading_of
from .contenders import find_contender
from .draws import TEST, rows_beside
from .suite import Cell


def check_data(cells: Sequence[Cell]) -> None:
    """Read the rows of every task and setting once, and put one through what its method gathers, so that a mistake is found before the first cell starts.

    Raises:
        SoftPromptError: rows cannot be read, a task is no classification, a setting has too few rows, or rows, backbone, head, label words
            and prompt do not fit together.
    """
    tasks: dict[tuple[object, ...], Task] = {}
    gathered = set()
    for cell in cells:
        setting = (cell.task, cell.shots, cell.rows, cell.scored_on)
        if setting not in tasks:
            tasks[setting] = _read(cell)
        task = tasks[setting]
        own = {key: value for key, value in cell.options.items() if key not in ARGUMENTS}
        # of a task label words need its classes, other heads its columns alone
        about = cell.task if own.get("head") == "verbalizer" else task.train.column_names
        if (what := json.dumps([about, own], sort_keys=True)) not in gathered:
            gathered.add(what)
            _gather(cell, own, task)


def check_contenders(cells: Sequence[Cell]) -> None:
    """Check that what the cells' methods need is installed.

    Raises:
        SoftPromptError: a package is missing; the message says how to install it.
    """
    for name in sorted({cell.options["method"] for cell in cells}):
        find_contender(name).ready()


def _read(cell: Cell) -> Task:
    """The task of a cell, which is one that the bench can compare on."""
    keywords = reading_of(cell.options)
    try:
        task = load_task(cell.source, **keywords, shots=cell.shots, seed=cell.seed)
        whole = task if cell.rows is None else load_task(cell.source, **{**keywords, "dev_fraction": 0})
    except SoftPromptError as error:
        raise SoftPromptError(f"task {cell.task!r}: {error}") from error
    _check_task(cell, task, len(whole.train))
    return task


def _check_task(cell: Cell, task: Task, there: int) -> None:
    if task.kind != "classification":
        raise SoftPromptError(
            f"task {cell.task!r}: expected texts with labels, got a {task.kind} task; the bench compares classifiers, use softprompt train."
        )
    beside = sum(rows_beside(cell.scored_on).values())
    if cell.rows is not None and there < cell.rows + beside + len(task.label_names):
        what = "to choose by" if cell.scored_on == TEST else "to choose by and to score"
        raise SoftPromptError(
            f"task {cell.task!r}: rows: {cell.rows} takes {cell.rows} training rows and {beside} others {what}, but there are {there}; lower rows."
        )


def _gather(cell: Cell, own: dict[str, Any], task: Task) -> None:
    """Put one row of the task through what the cell's method gathers, without the backbone's weights."""
    as_run = find_contender(cell.options["method"]).gathered
    if as_run is None:
        return
    row = replace(task, train=task.train.select(range(1)), dev=None, test=None)
    try:
        gather(as_run({**own, "dtype": "float32"}), weights=False, task=row)
    except SoftPromptError as error:
        raise SoftPromptError(f"task {cell.task!r}, method {cell.method!r}: {error}") from error
