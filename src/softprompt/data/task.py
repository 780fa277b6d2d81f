"""Load a task: rows of text with labels, completions or tags, in three splits, and where each split came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from .._types import SoftPromptError, announce, check_choice
from .columns import OF_TEXTS, WITHOUT_CLASSES, Classes, Columns, Form, classes_of, form_of, no_classes
from .doubts import (
    Say,
    doubt_contradictions,
    doubt_names,
    doubt_one_class,
    doubt_overlap,
    doubt_single_rows,
    doubt_sizes,
)
from .find import EMBEDDED_DATA, Files, Source, find_source
from .labels import check_names
from .read import Rows, read_rows, shown
from .split import Draw, Split, Splits, drawn, limited

BLANK_ROWS = ("refuse", "drop")


@dataclass(frozen=True)
class Task:
    """What is learned, and from which rows.

    Attributes:
        name: name of the task.
        kind: "classification" (columns text, text_pair where there are pairs, label), "multilabel" (the same, with a list of
            class indices as label), "regression" (the same, with a number), "completion" (prompt, completion), "tokens"
            (tokens, tags: the words of a row and the index of each word's tag) or "chat" (messages).
        train: rows to learn from.
        dev: rows to choose by, or None.
        test: rows to report on, or None.
        label_names: names of the C classes, in the order of the class indices; empty for completions and numbers.
        origin: where the rows come from: source, path, files of each split, columns, shots, seed, reasons of automatic
            choices, and overlap, the number of rows of the second split whose input stands in the first, too (by exact
            comparison). JSON-serialisable.
    """

    name: str
    kind: str
    train: datasets.Dataset
    dev: datasets.Dataset | None
    test: datasets.Dataset | None
    label_names: list[str]
    origin: dict[str, Any]

    def with_test_rows(self, limit: int | None) -> Task:
        """The task with at most ``limit`` test rows, see `limited`; ``origin`` counts these."""
        if self.test is None:
            return self
        test = limited(self.test, limit)
        return replace(self, test=test, origin={**self.origin, "rows": {**self.origin["rows"], "test": len(test)}})


class _Reasons:
    """Announces automatic choices and keeps them for the record."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, choice: str, reason: str) -> None:
        announce(choice, reason)
        self.said.append(f"{choice}: {reason}")


def load_task(
    source: str | Path | Source,
    *,
    text_column: str = "text",
    text_pair_column: str = "text_pair",
    label_column: str = "label",
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    tokens_column: str = "tokens",
    tags_column: str = "tags",
    messages_column: str = "messages",
    label_names: Sequence[str] | None = None,
    shots: int | None = None,
    seed: int = 42,
    dev_fraction: float = 0.1,
    train_file: str | None = None,
    dev_file: str | None = None,
    test_file: str | None = None,
    hub_config: str | None = None,
    kind: str | None = None,
    blank_rows: str = "refuse",
) -> Task:
    """Load a task from a folder, a file, the embedded data ("messages") or a Hugging Face dataset name.

    A folder holds ``train``, ``validation`` (or ``dev``) and ``test`` files (.jsonl, .json, .csv, .tsv or .parquet) and
    may hold an ``info.json`` with ``labels``. Missing splits are carved from train by class and by ``seed``, and share
    no row with it. The same seed gives the same rows everywhere.

    Args:
        source: where the rows are; or rows that are read already, of which no published split is taken.
        text_column: column of the text to classify.
        text_pair_column: column of a second text; used where it exists.
        label_column: column of the label, a class name, an index into the class names, or true/false; a list of them where rows
            have several labels or none (or of a 0 or 1 for each class); a number with ``kind="regression"``.
        prompt_column: column of the prompt of a completion task.
        completion_column: column of the text to generate.
        tokens_column: column of the words to tag, a list of strings.
        tags_column: column of their tags, a list of as many tag names or indices into the class names.
        messages_column: column of a conversation, a list of ``{"role", "content"}`` that ends with the assistant's message.
        label_names: class or tag names in order; None takes those of info.json or of the hub, else the sorted labels in
            train.
        shots: K rows per class for train and K for dev (rows that do not have one class each are one class). Where the
            folder has a published split in ``kshot/K-SEED/{train,dev}.jsonl``, this is used. None uses all rows.
        seed: seed of every draw.
        dev_fraction: share of the train rows that becomes dev when no file holds dev; 0 leaves dev None.
        train_file: file of the train split, relative to the folder; for a hub dataset the name of the split.
        dev_file: the same for dev.
        test_file: the same for test.
        hub_config: configuration of the hub dataset.
        kind: the kind that the task must be of; None takes the kind that the columns show, where labels are no numbers to learn.
        blank_rows: "refuse" raises at a row without text, label or completion; "drop" leaves such rows out and
            announces their number.

    Raises:
        SoftPromptError: an argument, a file or a row is not what it should be; the message names file and line.
    """
    columns = Columns(
        text_column,
        text_pair_column,
        label_column,
        prompt_column,
        completion_column,
        tokens_column,
        tags_column,
        messages_column,
    )
    draw = Draw(shots, seed, dev_fraction)
    check_choice("blank_rows", blank_rows, BLANK_ROWS)
    files = Files(train_file, dev_file, test_file)
    choose = _Reasons()
    if isinstance(source, Source):
        raw = source
    else:
        _check_source(source)
        if str(source) == EMBEDDED_DATA:
            columns = _embedded_columns(columns, choose)
        raw = find_source(source, files, hub_config, choose)
    reader, given = _read(raw, columns, kind, label_names, blank_rows == "drop", choose)
    _doubt_classes(reader, given.train, draw, choose)
    kept = _with_test(given, choose)
    whole = not (files.train or files.dev or isinstance(source, Source))
    published = draw.published(raw.path) if whole else None
    if published is not None:
        splits = _published(published, kept.test, reader, draw, choose)
    else:
        splits = drawn(kept, draw, reader.drawn_by, choose)
    overlap = _overlap(splits)
    _doubt_splits(splits, overlap, reader.form.kind, reader.classes, draw, choose)
    return Task(
        name=f"{raw.name}-{reader.form.label}" if isinstance(raw.info.get("labels"), dict) else raw.name,
        kind=reader.form.kind,
        train=_dataset(splits.train),
        dev=None if splits.dev is None else _dataset(splits.dev),
        test=None if splits.test is None else _dataset(splits.test),
        label_names=reader.classes.names,
        origin=_origin(_called(source), raw, reader.form, splits, draw) | {"overlap": overlap, "reasons": choose.said},
    )


def load_rows(
    path: str | Path | Rows,
    *,
    label_names: Sequence[str] | None = None,
    text_column: str = "text",
    text_pair_column: str = "text_pair",
    label_column: str = "label",
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    tokens_column: str = "tokens",
    tags_column: str = "tags",
    messages_column: str = "messages",
    kind: str | None = None,
    blank_rows: str = "refuse",
) -> datasets.Dataset:
    """Load all rows of one file to evaluate on, with the class names of another run.

    Args:
        path: a file of one of the formats, or what `read_rows` makes of it.
        label_names: class or tag names in order; None for completions and numbers.
        *_column, kind: as for `load_task`.
        blank_rows: as for `load_task`.

    Raises:
        SoftPromptError: as for `load_task`.
    """
    columns = Columns(
        text_column,
        text_pair_column,
        label_column,
        prompt_column,
        completion_column,
        tokens_column,
        tags_column,
        messages_column,
    )
    check_choice("blank_rows", blank_rows, BLANK_ROWS)
    rows = path if isinstance(path, Rows) else read_rows(path)
    form = form_of(rows, columns, kind)
    if form.kind in WITHOUT_CLASSES and label_names:
        raise no_classes(rows, form.kind)
    if form.kind not in WITHOUT_CLASSES and not label_names:
        raise SoftPromptError(
            f"{rows.name}: has labels, but the class names are not known, as for prompts and completions; expected columns "
            f"{columns.prompt!r} and {columns.completion!r} (Python: or load_rows(path, label_names=[...]))."
        )
    classes = Classes(check_names(label_names) if label_names else [], may_index=True)
    filled = form.without_blanks(rows, announce) if blank_rows == "drop" else rows
    return _dataset(Split(form.uniform(filled, classes, announce), rows.name))


def _called(source: str | Path | Source) -> str | Path:
    return (source.path or source.name) if isinstance(source, Source) else source


def _check_source(source: object) -> None:
    if not isinstance(source, str | Path) or not str(source).strip():
        raise SoftPromptError(f"data source: expected a path or the name of a hub dataset, got {shown(source)}.")


def _embedded_columns(columns: Columns, choose: Say) -> Columns:
    if columns.label == "label":
        choose("label_column = queue", f"the embedded {EMBEDDED_DATA} have two sets of labels, queue and tone")
        return replace(columns, label="queue")
    check_choice("label_column", columns.label, ["queue", "tone"])
    return columns


# Reading the rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    """How the rows of every file of a task are read."""

    form: Form
    classes: Classes
    drop_blanks: bool
    folder: Path | None
    choose: Say

    @property
    def drawn_by(self) -> list[str]:
        """The classes that shots count; rows of other kinds are one class."""
        return self.classes.names if self.form.kind == "classification" else [self.form.kind]

    def split(self, rows: Rows) -> Split:
        """The rows with uniform columns; blank ones are refused here."""
        return Split(self.form.uniform(rows, self.classes, self.choose), _short(rows.name, self.folder))

    def file(self, path: Path) -> Split:
        rows = read_rows(path)
        return self.split(self.form.without_blanks(rows, self.choose) if self.drop_blanks else rows)


def _read(
    raw: Source, columns: Columns, kind: str | None, label_names: Sequence[str] | None, drop_blanks: bool, choose: Say
) -> tuple[_Reader, Splits]:
    """The splits that the files hold, and how they were read."""
    form = form_of(raw.train, columns, kind)
    _check_pairs(raw.train, form, choose)
    filled = _without_hidden_labels(raw, form, choose)
    if drop_blanks:
        filled = filled.each(lambda rows: form.without_blanks(rows, choose))
    classes = classes_of(filled, form, label_names, choose)
    reader = _Reader(form, classes, drop_blanks, raw.folder, choose)
    train = reader.split(filled.train)
    dev, test = (None if rows is None else reader.split(rows) for rows in (filled.dev, filled.test))
    return reader, Splits(train, dev, test)


def _check_pairs(train: Rows, form: Form, choose: Say) -> None:
    column = form.columns.text_pair
    if form.pairs:
        choose("texts come in pairs", f"there is a column {column!r}")
    elif form.kind in OF_TEXTS and column != "text_pair":  # asked for by name
        train.column(column, "text_pair_column")


def _without_hidden_labels(raw: Source, form: Form, choose: Say) -> Source:
    if form.kind != "classification" or raw.test is None:
        return raw
    if all(str(row.get(form.label)) in ("-1", "-1.0") for row in raw.test.rows):
        choose("the test split is left out", "its labels are all -1, which stands for hidden labels")
        return replace(raw, test=None)
    return raw


def _short(file: str, folder: Path | None) -> str:
    """The name of a file inside the folder of the source, so that records are the same on every machine."""
    return Path(file).relative_to(folder).as_posix() if folder and Path(file).is_relative_to(folder) else file


# Making the splits ---------------------------------------------------------------------------------------------------


def _with_test(given: Splits, choose: Say) -> Splits:
    if given.test is not None or given.dev is None:
        return given
    choose(
        f"test = {given.dev.file}",
        "there is no test split, so the validation split is kept for the report and dev comes from train",
    )
    return Splits(given.train, None, given.dev)


def _published(folder: Path, test: Split | None, reader: _Reader, draw: Draw, choose: Say) -> Splits:
    choose(
        f"train and dev = the published split kshot/{folder.name}",
        f"the folder has one for {draw.shots} shots and seed {draw.seed}",
    )
    train, dev = (reader.file(folder / f"{name}.jsonl") for name in ("train", "dev"))
    if test is None:
        choose(
            "test = none",
            "there is no test or validation split, and the published split does not say which rows it used",
        )
    return Splits(train, dev, test)


def _doubt_classes(reader: _Reader, train: Split, draw: Draw, choose: Say) -> None:
    names, counts = reader.classes.names, train.counts
    if not reader.classes.may_index:  # the names come from the rows
        doubt_names(names, counts, choose)
    if reader.form.kind == "regression" and len({row["label"] for row in train.rows}) == 1:
        choose(
            f"every number of train ({train.file}) is {train.rows[0]['label']:g}",
            "there is nothing to tell apart, and a correlation is given as 0",
        )
    if reader.form.kind == "classification" and draw.shots is None:
        doubt_single_rows(names, counts, choose)


def _doubt_splits(
    splits: Splits, overlap: Mapping[str, int], kind: str, classes: Classes, draw: Draw, choose: Say
) -> None:
    learned = splits.train.counts
    for c, name in enumerate(classes.names):
        if c not in learned:
            choose(f"class {name!r} cannot be learned", f"train ({splits.train.file}) has no row of it")
    few_by_wish = () if draw.shots is None else ("train", "dev")
    sizes = {name: len(split.rows) for name, split in splits.by_name.items() if split and name not in few_by_wish}
    doubt_sizes(sizes, choose)
    doubt_overlap(overlap, {name: len(split.rows) for name, split in splits.by_name.items() if split}, choose)
    if kind == "classification":
        measured = {name: splits.by_name[name] for name in ("dev", "test")}
        doubt_one_class(classes.names, {name: split.counts for name, split in measured.items() if split}, choose)
        doubt_contradictions(((_input_of(row), row["label"]) for row in splits.train.rows), choose)


# The task ------------------------------------------------------------------------------------------------------------


def _origin(source: str | Path, raw: Source, form: Form, splits: Splits, draw: Draw) -> dict[str, Any]:
    return {
        "source": str(source),
        "path": None if raw.path is None or str(source) == EMBEDDED_DATA else str(raw.path),
        "files": {name: split and split.file for name, split in splits.by_name.items()},
        "rows": {name: split and len(split.rows) for name, split in splits.by_name.items()},
        "columns": form.record,
        "shots": draw.shots,
        "seed": draw.seed,
    }


def _overlap(splits: Splits) -> dict[str, int]:
    """Rows of the second split whose input also stands in the first."""
    inputs = {
        name: [_input_of(row) for row in split.rows] for name, split in splits.by_name.items() if split is not None
    }
    return {
        f"{a}/{b}": sum(row in set_a for row in inputs[b])
        for a, b in (("train", "dev"), ("train", "test"), ("dev", "test"))
        if a in inputs and b in inputs
        for set_a in [set(inputs[a])]
    }


def _input_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row gives to read, without what it gives to learn."""
    return row.get("text", row.get("prompt")), row.get("text_pair"), repr(row.get("tokens", row.get("messages")))


def _dataset(split: Split) -> datasets.Dataset:
    text, index = datasets.Value("string"), datasets.Value("int64")
    labels = {int: index, float: datasets.Value("float64"), list: datasets.List(index)}
    message = {"role": text, "content": text}
    special = {"tokens": datasets.List(text), "tags": datasets.List(index), "messages": datasets.List(message)}
    if "label" in split.rows[0]:
        special["label"] = labels[type(split.rows[0]["label"])]
    kinds = {name: special.get(name, text) for name in split.rows[0]}
    return datasets.Dataset.from_dict(
        {name: [row[name] for row in split.rows] for name in kinds}, features=datasets.Features(kinds)
    )
