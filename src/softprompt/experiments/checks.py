"""What is checked of a suite's cells before the first one starts, beside the suite file: rows, label words and packages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from .._types import SoftPromptError
from ..data import Task, Verbalizer, load_task
from ..models.places import load_tokenizer, read_config
from ..models.verbalized import word_place
from ..training import RunOptions
from ..training.prepare import reading_of
from .contenders import find_contender
from .draws import TEST, rows_beside
from .suite import Cell


def check_data(cells: Sequence[Cell]) -> None:
    """Read the rows of every task and setting once, and put its label words into its template, so that a mistake is found before the first cell starts.

    Raises:
        SoftPromptError: rows cannot be read, a task is no classification, a setting has too few rows, or a backbone cannot be
            asked by a template and label words.
    """
    tasks: dict[tuple[object, ...], Task] = {}
    asked = set()
    for cell in cells:
        setting = (cell.task, cell.shots, cell.rows, cell.scored_on)
        if setting not in tasks:
            tasks[setting] = _read(cell)
        if cell.options.get("head") != "verbalizer":
            continue
        given = {name: cell.options[name] for name in WORDED if name in cell.options}
        if (words := json.dumps([cell.task, given], sort_keys=True)) not in asked:
            asked.add(words)
            _check_words(cell, tasks[setting])


WORDED = ("backbone", "template", "label_words", "label_pieces", "max_length")  # options on which label words depend


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


def _check_words(cell: Cell, task: Task) -> None:
    """Make the cell's verbalizer, and encode a row by it."""
    options = RunOptions.from_flat({key: value for key, value in cell.options.items() if key in WORDED})
    words, pieces, place = options.label_words or {}, options.label_pieces, word_place(read_config(options.backbone))
    try:
        verbalizer = Verbalizer(
            _tokenizer(options.backbone), str(options.template), words, task.label_names, pieces, place
        )
        verbalizer.encode(task.train.select(range(1)), options.max_length)
    except SoftPromptError as error:
        raise SoftPromptError(f"task {cell.task!r}, method {cell.method!r}: {error}") from error


@lru_cache(maxsize=8)
def _tokenizer(backbone: str) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer, once for all tasks of a suite."""
    return load_tokenizer(backbone)
