"""Training rows of a given number, drawn from a task: by class, by seed, and never from the test rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from .._files import write_text
from .._types import SoftPromptError, did_you_mean
from ..data import load_task, stratified
from ..training.prepare import READING, reading_of

DEV_ROWS = 128  # other training rows that choose the checkpoint
SCORED_ROWS = 500  # further ones that are scored in place of the test rows
TEST, TRAIN = "test", "train"
SCORED_ON = (TEST, TRAIN)


def without_reading(options: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the flat options that say how rows are read: rows of `draw_rows` have the columns that all tasks have."""
    return {key: value for key, value in options.items() if key not in READING}


def rows_beside(scored_on: str) -> dict[str, int]:
    """How many training rows a draw takes beside those that train: to choose by, and to score where these are training rows."""
    return {"validation": DEV_ROWS, **({TEST: SCORED_ROWS} if scored_on == TRAIN else {})}


def draw_rows(
    source: str | Path, folder: str | Path, rows: int, seed: int, options: Mapping[str, Any], scored_on: str = TEST
) -> Path:
    """Write a task with ``rows`` of its training rows, drawn by class, and `DEV_ROWS` others that choose the checkpoint.

    Args:
        source: what `softprompt.load_task` reads.
        folder: a new folder for ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` and ``info.json``.
        rows: number of training rows in all.
        seed: seed of the draw.
        options: flat options that say how rows are read.
        scored_on: what stands in ``test.jsonl``: "test" for the task's own test rows, or its validation rows where it has no
            labelled test; "train" for `SCORED_ROWS` further training rows, drawn by class, so that a study can look at many
            scores without one look at the test rows. The rows that train and choose are the same for both.

    Raises:
        SoftPromptError: there are too few rows, or rows have no labels.
    """
    task = load_task(source, **{**reading_of(options), "dev_fraction": 0, "seed": seed})
    if task.kind != "classification" or task.test is None:
        raise SoftPromptError(f"{source}: expected labelled texts and test rows, got a {task.kind} task.")
    # classes in the order of their names: the draw does not depend on the order in which a file lists them
    order = {c: i for i, c in enumerate(sorted(range(len(task.label_names)), key=task.label_names.__getitem__))}
    labels = [order[label] for label in task.train["label"]]
    drawn = stratified(labels, rows + DEV_ROWS, seed)
    kept = set(stratified([labels[i] for i in drawn], rows, seed))
    rest = sorted(set(range(len(labels))) - set(drawn))
    beside = rows_beside(scored_on)
    scored = [rest[i] for i in stratified([labels[i] for i in rest], beside.get(TEST, 0), seed)]
    got = {"validation": len(drawn) - len(kept), **({TEST: len(scored)} if scored_on == TRAIN else {})}
    if len(kept) < rows or got != beside:
        raise SoftPromptError(
            f"{source}: expected {rows} training rows and {_and(beside)} others, but {len(task.train)} rows with {len(order)} classes give {len(kept)} and {_and(got)}; lower rows."
        )
    parts = {
        "train": task.train.select([i for n, i in enumerate(drawn) if n in kept]),
        "validation": task.train.select([i for n, i in enumerate(drawn) if n not in kept]),
        "test": task.test if scored_on == TEST else task.train.select(scored),
    }
    for name, part in parts.items():
        _write(Path(folder) / f"{name}.jsonl", part, task.label_names)
    info = {"name": task.name, "labels": task.label_names}
    write_text(Path(folder) / "info.json", json.dumps(info, ensure_ascii=False) + "\n")
    return Path(folder)


def check_draws(scored_on: str, rows: Sequence[int | None], where: str) -> None:
    """Check that training rows are left to score on: they are only where a number of rows is drawn.

    Args:
        scored_on: one of `SCORED_ON`.
        rows: training rows of each setting, None where they are not drawn here.
        where: what an error calls the suite.

    Raises:
        SoftPromptError: another word, or a setting without a number of rows.
    """
    if scored_on not in SCORED_ON:
        raise SoftPromptError(
            f"{where}: scored_on: expected one of {', '.join(SCORED_ON)}, got {scored_on!r}.{did_you_mean(scored_on, SCORED_ON)}"
        )
    if scored_on == TRAIN and None in rows:
        raise SoftPromptError(
            f"{where}: scored_on: train scores training rows that are not drawn; expected rows with numbers alone, got shots or 'all'."
        )


def _and(counts: Mapping[str, int]) -> str:
    return " and ".join(map(str, counts.values()))


def _write(path: Path, rows: datasets.Dataset, names: list[str]) -> None:
    named = ({**row, "label": names[row["label"]]} for row in rows.to_list())
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named))
