"""Several tasks in one data set: a column says of which task a row is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._types import SoftPromptError, announce
from .find import Files, Source, find_source
from .read import Rows, is_blank, shown
from .task import Task, load_task

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")  # a task's results lie in a folder of its name


def load_tasks(
    source: str | Path,
    task_column: str,
    *,
    train_file: str | None = None,
    dev_file: str | None = None,
    test_file: str | None = None,
    hub_config: str | None = None,
    **asked: Any,
) -> dict[str, Task]:
    """Load the tasks of one data set, by their names, in the order in which the training rows name them.

    Each task is what `load_task` makes of its rows alone: classes of its own, and splits that are drawn from its own rows by the
    same seed. A published split of few shots (``kshot/``) is of a whole folder, and is not taken.

    Args:
        source: as for `load_task`.
        task_column: the column that names the task of each row.
        train_file, dev_file, test_file, hub_config: as for `load_task`.
        **asked: what else `load_task` takes.

    Raises:
        SoftPromptError: as for `load_task`; or a row names no task, a name is no name of a folder, or rows to test name a task
            that no training row is of.
    """
    raw = find_source(source, Files(train_file, dev_file, test_file), hub_config, announce)
    named = {split: names_in(rows, task_column) for split, rows in _splits(raw).items()}
    names = list(dict.fromkeys(named["train"]))
    _check_names(names, task_column)
    for split, found in named.items():
        if unknown := [name for name in found if name not in names]:
            raise SoftPromptError(
                f"{_splits(raw)[split].name}: rows of task {unknown[0]!r}, of which the training rows have none; they have {', '.join(names)}."
            )
    if raw.path is not None and asked.get("shots") and (raw.path / "kshot").is_dir():
        announce(
            "the published splits in kshot are not taken", "they do not tell tasks apart; shots are drawn by the seed"
        )
    return {name: _one(source, raw, task_column, name, asked) for name in names}


def source_of_task(source: str | Path, task_column: str, task: str) -> Source:
    """Find the rows of one task in a data set, to score a prompt that was trained beside others; arguments as for `load_tasks`.

    Where no row has the column, all rows are taken for the task's.

    Raises:
        SoftPromptError: as for `load_tasks`; or a split has no row of the task.
    """
    raw = find_source(source, Files(None, None, None), None, announce)
    own = {split: rows_of_task(rows, task_column, task) for split, rows in _splits(raw).items()}
    return replace(raw, train=own["train"], dev=own.get("dev"), test=own.get("test"))


def rows_of_task(rows: Rows, task_column: str, task: str) -> Rows:
    """The rows of one task; arguments and errors as for `source_of_task`."""
    if not any(task_column in row for row in rows.rows):
        return rows
    own = _of_task(rows, task_column, task)
    if not own:
        raise SoftPromptError(
            f"{rows.name}: no row of task {task!r}, which the prompt was trained on; expected {task!r} in column {task_column!r} of its rows, or rows without that column."
        )
    if len(own) < len(rows):
        announce(
            f"{len(own)} of {len(rows)} rows of {rows.name}",
            f"{task_column!r} says of the others that they are not {task!r}",
        )
    return own


def names_in(rows: Rows, column: str) -> list[str]:
    """The task of each row.

    Raises:
        SoftPromptError: a row lacks the column, or has nothing in it.
    """
    values = rows.column(column, "task_column")
    for i, value in enumerate(values):
        if is_blank(value) or not isinstance(value, str | int):
            raise SoftPromptError(
                f"{rows.where(i)}: expected the name of a task in column {column!r}, got {shown(value)}."
            )
    return [str(value) for value in values]


def _check_names(names: Sequence[str], column: str) -> None:
    for name in names:
        if not NAME.fullmatch(name):
            raise SoftPromptError(
                f"task {shown(name)} (column {column!r}): expected up to 64 letters, digits, '_', '-' and '.' of ASCII, as a folder is made of the name; rename it in the data."
            )
    small = [name.lower() for name in names]
    if twice := [name for name in names if small.count(name.lower()) > 1]:
        raise SoftPromptError(
            f"tasks {', '.join(twice)} (column {column!r}) differ in capitals alone, which some file systems do not tell apart; rename one."
        )


def _splits(raw: Source) -> dict[str, Rows]:
    found = {"train": raw.train, "dev": raw.dev, "test": raw.test}
    return {split: rows for split, rows in found.items() if rows is not None}


def _one(source: str | Path, raw: Source, column: str, name: str, asked: dict[str, Any]) -> Task:
    announce(f"task {name}", f"the rows whose {column!r} says so")
    dev, test = (None if rows is None else _of_task(rows, column, name) for rows in (raw.dev, raw.test))
    own = replace(raw, name=name, train=_of_task(raw.train, column, name), dev=dev or None, test=test or None)
    task = load_task(own, **asked)
    about = {"source": str(source), "task_column": column, "task": name}
    return replace(task, name=name, origin={**task.origin, **about})


def _of_task(rows: Rows, column: str, name: str) -> Rows:
    return rows.without([i for i, own in enumerate(names_in(rows, column)) if own != name])
