"""The user's data for a trained adapter: its columns, which are those of training and what ``--set`` changes, and its labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._types import SoftPromptError, announce, check_choice

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data import Task

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="text_column=NAME and the like: where the column has another name than in training."),
]
Split = Annotated[
    str | None,
    typer.Option(help="train, dev or test of a folder or hub name; a single file is used whole. test without it."),
]


def columns_set(settings: Sequence[str] | None, names: Sequence[str]) -> dict[str, str]:
    """Read ``--set text_column=review`` as {"text_column": "review"}.

    Raises:
        SoftPromptError: the key is no column of ``names``, or the value is no name.
    """
    from ..training import parse_setting

    columns = {}
    for setting in settings or ():
        key, value = parse_setting(setting)
        check_choice("key of --set", key, [f"{name}_column" for name in names])
        if not isinstance(value, str) or not value:
            raise SoftPromptError(f"--set {setting}: expected the name of a column, got {value!r}.")
        columns[key] = value
    return columns


def labelled_rows(
    folder: Path, data: str, split: str | None = None, settings: Sequence[str] | None = None
) -> tuple[Dataset, str]:
    """Read labelled rows for the adapter in ``folder``, and say of which split they are: "all" of a file, else ``split``, or the test rows.

    Of the data that the run in ``folder`` was trained on they are the rows that it has drawn; a prompt that was trained beside others
    gets the rows of its task.

    Raises:
        SoftPromptError: a file has no splits, or there is none of that name; or the rows cannot be read, or are of another kind.
    """
    from ..data import load_rows, load_task, read_rows, rows_of_task, source_of_task
    from ..models import KINDS, TaskCard
    from ..training.prepare import rows_of_run, task_of_run

    card = TaskCard.read(folder)
    names = card.label_names or None
    columns: dict[str, Any] = {**(card.columns or {}), **columns_set(settings, KINDS[card.kind].columns)}
    of_task = task_of_run(folder)
    if Path(data).is_file():
        if split is not None:
            raise SoftPromptError(f"--split {split}: {data} is one file, which is used whole; leave --split out.")
        rows = read_rows(data)
        rows = rows if of_task is None else rows_of_task(rows, *of_task)
        return load_rows(rows, label_names=names, kind=card.kind, **columns), "all"
    split = split or "test"
    task = rows_of_run(folder, data, **columns)
    if task is None:
        source = data if of_task is None else source_of_task(data, *of_task)
        task = load_task(source, label_names=names, kind=card.kind, **columns)
        _doubt_drawn(task, split)
    splits = {"train": task.train, "dev": task.dev, "test": task.test}
    there = {name: rows for name, rows in splits.items() if rows is not None}
    check_choice("split", split, tuple(there))
    return there[split], split


def _doubt_drawn(task: Task, split: str) -> None:
    """Say where rows are drawn from a file of which the adapter may have seen others."""
    files = task.origin["files"]
    if split != "train" and files.get(split) is not None and files[split] == files["train"]:
        announce(
            f"{split} rows drawn from {files[split]}",
            "no run beside the adapter says that it was trained on this data and how its rows were drawn; if it was, some of these have trained it",
        )
