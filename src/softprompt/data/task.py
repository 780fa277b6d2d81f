"""A task: rows of text with labels, completions or tags, in three splits, and where each split came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from .._types import SoftPromptError, announce, check_choice, did_you_mean
from .doubts import Say, doubt_names, doubt_single_rows, doubt_sizes
from .find import EMBEDDED, Source, find_source
from .labels import NAMES, check_names, class_indices, names_in
from .read import Rows, listed, read_rows, shown
from .split import sample_shots, stratified
from .words import tagged_words

BLANK_ROWS = ("refuse", "drop")
TEST_FRACTION = 0.1  # of the rows, when no file holds a test split


@dataclass(frozen=True)
class Task:
    """What is learned and from which rows.

    Attributes:
        name: name of the task.
        kind: "classification" (columns text, text_pair where there are pairs, label), "completion" (prompt, completion)
            or "tokens" (tokens, tags: the words of a row and the index of each word's tag).
        train: rows to learn from.
        dev: rows to choose by, or None.
        test: rows to report on, or None.
        label_names: names of the C classes, in the order of the class indices; empty for a completion task.
        origin: source, path, files of each split, columns, shots, seed, reasons of automatic choices, overlap (rows of the
            second split whose input also stands in the first, by exact comparison). JSON-serialisable.
    """

    name: str
    kind: str
    train: datasets.Dataset
    dev: datasets.Dataset | None
    test: datasets.Dataset | None
    label_names: list[str]
    origin: dict[str, Any]


@dataclass(frozen=True)
class _Columns:
    text: str
    text_pair: str
    label: str
    prompt: str
    completion: str
    tokens: str
    tags: str

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(name := getattr(self, field.name), str) or not name:
                raise SoftPromptError(f"{field.name}_column: expected the name of a column, got {shown(name)}.")


@dataclass(frozen=True)
class _Split:
    """Rows with uniform columns, and the file they come from."""

    rows: list[dict[str, Any]]
    file: str

    def pick(self, indices: Sequence[int]) -> _Split:
        return _Split([self.rows[i] for i in indices], self.file)

    def without(self, indices: Sequence[int]) -> _Split:
        gone = set(indices)
        return self.pick([i for i in range(len(self.rows)) if i not in gone])

    @property
    def labels(self) -> list[int]:
        return [row.get("label", 0) for row in self.rows]  # rows of other kinds are one class

    @property
    def counts(self) -> Counter[int]:
        """How often each class, or tag, is there."""
        return (
            Counter(tag for row in self.rows for tag in row["tags"]) if "tags" in self.rows[0] else Counter(self.labels)
        )


class _Reasons:
    """Announces automatic choices and keeps them for the record."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, choice: str, reason: str) -> None:
        announce(choice, reason)
        self.said.append(f"{choice}: {reason}")


def load_task(
    source: str | Path,
    *,
    text_column: str = "text",
    text_pair_column: str = "text_pair",
    label_column: str = "label",
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    tokens_column: str = "tokens",
    tags_column: str = "tags",
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
    may hold an ``info.json`` with ``labels``. Missing splits are carved from train by class and by ``seed``, never
    sharing a row with it. The same seed gives the same rows everywhere.

    Args:
        source: where the rows are.
        text_column: column of the text to classify.
        text_pair_column: column of a second text; used where it exists.
        label_column: column of the label, a class name, an index into the class names, or true/false.
        prompt_column: column of the prompt of a completion task.
        completion_column: column of the text to generate.
        tokens_column: column of the words to tag, a list of strings.
        tags_column: column of their tags, a list of as many tag names or indices into the class names.
        label_names: class or tag names in order; else those of info.json or of the hub, else the sorted labels in train.
        shots: K rows per class for train and K for dev (completions and rows of tagged words are one class). A published
            split in ``kshot/K-SEED/{train,dev}.jsonl`` is used where the folder has it. None uses all rows.
        seed: seed of every draw.
        dev_fraction: share of the train rows that becomes dev when no file does; 0 leaves dev None.
        train_file: file of the train split, relative to the folder; for a hub dataset the name of the split.
        dev_file: the same for dev.
        test_file: the same for test.
        hub_config: configuration of the hub dataset.
        kind: what the rows must be; None takes what their columns say.
        blank_rows: "refuse" a row without text, label or completion, or "drop" such rows; their number is announced.

    Raises:
        SoftPromptError: anything that keeps the rows from being what they are said to be; the message names file and line.
    """
    columns = _Columns(
        text_column, text_pair_column, label_column, prompt_column, completion_column, tokens_column, tags_column
    )
    _check_numbers(shots, seed, dev_fraction)
    check_choice("blank_rows", blank_rows, BLANK_ROWS)
    choose = _Reasons()
    chosen_files = {"train": train_file, "dev": dev_file, "test": test_file}
    _check_files(source, chosen_files)
    if str(source) == EMBEDDED:
        columns = _embedded_columns(columns, choose)
    found = find_source(source, chosen_files, hub_config, choose)
    folder = found.path if found.path is None or found.path.is_dir() else found.path.parent

    kind = _kind(found.train, columns, kind)
    label = columns.tags if kind == "tokens" else columns.label
    pairs = kind == "classification" and _has_pairs(found.train, columns.text_pair, choose)

    def filled(rows: Rows) -> Rows:
        return _without_blanks(rows, _needed(kind, columns, pairs), choose) if blank_rows == "drop" else rows

    if kind == "classification":
        found = _drop_unlabelled_test(found, label, choose)
    found = found.each(filled)
    if kind == "classification":
        names, may_index = _names(found, found.train, label, label_names, choose)
    elif kind == "tokens":
        names, may_index = _names(
            found, tagged_words(found.train, columns.tokens, label)[1], label, label_names, choose
        )
    elif label_names is not None:
        raise _no_classes(found.train)
    else:
        names, may_index = [], False

    def uniform(rows: Rows) -> _Split:
        return _Split(_uniform(rows, kind, columns, names, may_index, pairs, choose), _short(rows.name, folder))

    train = uniform(found.train)
    dev = None if found.dev is None else uniform(found.dev)
    test = None if found.test is None else uniform(found.test)
    counts = train.counts
    if not may_index:  # the names come from the rows
        doubt_names(names, counts, choose)
    if kind == "classification" and shots is None:
        doubt_single_rows(names, counts, choose)
    if test is None and dev is not None:
        choose(
            f"test = {dev.file}",
            "there is no test split, so the validation split is kept for the report and dev comes from train",
        )
        dev, test = None, dev
    published = None if train_file or dev_file else _published(found.path, shots, seed)
    if published is not None:
        choose(
            f"train and dev = the published split kshot/{published.name}",
            f"the folder has one for {shots} shots and seed {seed}",
        )
        train, dev = (uniform(filled(read_rows(published / f"{part}.jsonl"))) for part in ("train", "dev"))
        if test is None:
            choose(
                "test = none",
                "there is no test or validation split, and the published split does not say which rows it used",
            )
    else:
        total = len(train.rows)
        if test is None:
            test, train = _carve("test", train, round(total * TEST_FRACTION), TEST_FRACTION, seed, choose)
        if shots is not None:
            train, dev = _few_shots(train, dev, names if kind == "classification" else [kind], shots, seed, choose)
        elif dev is None and dev_fraction:
            dev, train = _carve("dev", train, round(total * dev_fraction), dev_fraction, seed, choose)
        elif dev is None:
            choose("dev = none", "dev_fraction is 0 and no file is left for it")
    splits = {"train": train, "dev": dev, "test": test}
    for c, name in enumerate(names):
        if c not in train.counts:
            choose(f"class {name!r} cannot be learned", f"train ({train.file}) has no row of it")
    asked_few = () if shots is None else ("train", "dev")
    doubt_sizes({split: len(p.rows) for split, p in splits.items() if p and split not in asked_few}, choose)
    return Task(
        name=f"{found.name}-{label}" if isinstance(found.info.get("labels"), dict) else found.name,
        kind=kind,
        train=_dataset(train),
        dev=None if dev is None else _dataset(dev),
        test=None if test is None else _dataset(test),
        label_names=names,
        origin={
            "source": str(source),
            "path": None if found.path is None or str(source) == EMBEDDED else str(found.path),
            "files": {split: part and part.file for split, part in splits.items()},
            "rows": {split: part and len(part.rows) for split, part in splits.items()},
            "columns": {
                "classification": {
                    "text": columns.text,
                    "text_pair": columns.text_pair if pairs else None,
                    "label": label,
                },
                "completion": {"prompt": columns.prompt, "completion": columns.completion},
                "tokens": {"tokens": columns.tokens, "tags": label},
            }[kind],
            "shots": shots,
            "seed": seed,
            "overlap": _overlap(splits),
            "reasons": choose.said,
        },
    )


def load_rows(
    path: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    text_column: str = "text",
    text_pair_column: str = "text_pair",
    label_column: str = "label",
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    tokens_column: str = "tokens",
    tags_column: str = "tags",
    kind: str | None = None,
    blank_rows: str = "refuse",
) -> datasets.Dataset:
    """Load one file whole, with the class names of another run: rows to evaluate on.

    Args:
        path: a file of one of the formats.
        label_names: class or tag names in order; None for a completion task.
        *_column, kind: as for `load_task`.
        blank_rows: as for `load_task`.

    Raises:
        SoftPromptError: as for `load_task`.
    """
    columns = _Columns(
        text_column, text_pair_column, label_column, prompt_column, completion_column, tokens_column, tags_column
    )
    check_choice("blank_rows", blank_rows, BLANK_ROWS)
    rows = read_rows(path)
    kind = _kind(rows, columns, kind)
    if kind == "completion" and label_names:
        raise _no_classes(rows)
    if kind != "completion" and not label_names:
        raise SoftPromptError(
            f"{path}: has labels, but the class names are not known, as for prompts and completions; expected columns "
            f"{columns.prompt!r} and {columns.completion!r} (Python: or load_rows(path, label_names=[...]))."
        )
    names = check_names(label_names) if label_names else []
    pairs = kind == "classification" and text_pair_column in rows.rows[0]
    if blank_rows == "drop":
        rows = _without_blanks(rows, _needed(kind, columns, pairs), announce)
    return _dataset(_Split(_uniform(rows, kind, columns, names, True, pairs, announce), str(path)))


def _needed(kind: str, columns: _Columns, pairs: bool) -> list[str]:
    """The columns that every row of a kind needs."""
    if kind == "completion":
        return [columns.prompt, columns.completion]
    if kind == "tokens":
        return [columns.tokens, columns.tags]
    return [columns.text, *[columns.text_pair] * pairs, columns.label]


def _without_blanks(rows: Rows, needed: Sequence[str], say: Say) -> Rows:
    blank = rows.blank(needed)
    if len(blank) == len(rows):
        raise SoftPromptError(f"{rows.name}: no row has all of {', '.join(needed)}; blank_rows=drop would leave none.")
    if blank:
        first = f"{Path(rows.name).name}, {rows.unit} {rows.numbers[blank[0]]}"
        say(
            f"left out {len(blank)} of {len(rows)} rows, the first at {first}",
            f"blank_rows=drop, and they hold nothing as {' or '.join(needed)}",
        )
    return rows.without(blank)


def _no_classes(rows: Rows) -> SoftPromptError:
    return SoftPromptError(
        f"{rows.name}: holds prompts and completions, which have no classes, but class names are given; "
        "expected texts with labels, or words with tags."
    )


def _uniform(
    rows: Rows, kind: str, columns: _Columns, names: Sequence[str], may_index: bool, pairs: bool, say: Say
) -> list[dict[str, Any]]:
    """Rows with the columns that every task of a kind has: text, text_pair, label; prompt, completion; tokens, tags."""
    if kind == "completion":
        prompts = rows.texts(columns.prompt, "prompt_column")
        completions = rows.texts(columns.completion, "completion_column")
        return [{"prompt": p, "completion": c} for p, c in zip(prompts, completions, strict=True)]
    if kind == "tokens":
        words, tags = tagged_words(rows, columns.tokens, columns.tags)
        indices = iter(class_indices(tags, columns.tags, names, may_index, say))
        return [{"tokens": own, "tags": list(islice(indices, len(own)))} for own in words]
    made: list[dict[str, Any]] = [{"text": text} for text in rows.texts(columns.text, "text_column")]
    if pairs:
        for row, second in zip(made, rows.texts(columns.text_pair, "text_pair_column"), strict=True):
            row["text_pair"] = second
    for row, label in zip(made, class_indices(rows, columns.label, names, may_index, say), strict=True):
        row["label"] = label
    return made


def _check_numbers(shots: int | None, seed: int, dev_fraction: float) -> None:
    if shots is not None and (isinstance(shots, bool) or not isinstance(shots, int) or shots < 1):
        raise SoftPromptError(f"shots: expected a whole number from 1, or None for all rows, got {shots!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise SoftPromptError(f"seed: expected a whole number, got {seed!r}.")
    if isinstance(dev_fraction, bool) or not isinstance(dev_fraction, int | float) or not 0 <= dev_fraction <= 0.5:
        raise SoftPromptError(f"dev_fraction: expected a share from 0 to 0.5, got {dev_fraction!r}.")


def _check_files(source: object, chosen: dict[str, str | None]) -> None:
    if not isinstance(source, str | Path) or not str(source).strip():
        raise SoftPromptError(f"data source: expected a path or the name of a hub dataset, got {shown(source)}.")
    for split, name in chosen.items():
        if name is not None and (not isinstance(name, str | Path) or not str(name)):
            raise SoftPromptError(f"{split}_file: expected the name of a file, got {shown(name)}.")


def _embedded_columns(columns: _Columns, choose: _Reasons) -> _Columns:
    if columns.label == "label":
        choose("label_column = queue", f"the embedded {EMBEDDED} have two sets of labels, queue and tone")
        return replace(columns, label="queue")
    check_choice("label_column", columns.label, ["queue", "tone"])
    return columns


# Reading the columns -------------------------------------------------------------------------------------------------


def _kind(train: Rows, columns: _Columns, expected: str | None = None) -> str:
    there = set(train.rows[0])
    wanted = {
        "classification": (columns.text, columns.label),
        "completion": (columns.prompt, columns.completion),
        "tokens": (columns.tokens, columns.tags),
    }
    words = {"classification": "text and label", "completion": "prompt and completion", "tokens": "tokens and tags"}
    found = {kind: [name for name in names if name in there] for kind, names in wanted.items()}
    whole = [kind for kind, names in found.items() if len(names) == 2]
    if expected is not None and whole:
        if expected not in whole:
            raise SoftPromptError(
                f"{train.where(0)}: expected the columns of {words[expected]} ({', '.join(wanted[expected])}), found those of "
                f"{words[whole[0]]} ({', '.join(found[whole[0]])})."
            )
        whole = [expected]
    if len(whole) > 1:
        both = " as well as ".join(f"{words[kind]} ({', '.join(found[kind])})" for kind in whole)
        raise SoftPromptError(
            f"{train.where(0)}: found {both}; set the columns that are not meant to another name, or remove them."
        )
    if whole:
        return whole[0]
    nearest = wanted[max(found, key=lambda kind: len(found[kind]))]
    raise SoftPromptError(
        f"{train.where(0)}: expected columns text_column={columns.text!r} and label_column={columns.label!r} to classify, "
        f"prompt_column={columns.prompt!r} and completion_column={columns.completion!r} to complete, or "
        f"tokens_column={columns.tokens!r} and tags_column={columns.tags!r} to tag words; columns there: "
        f"{listed(sorted(there))}. Set these options to the columns that are meant."
        + "".join(dict.fromkeys(did_you_mean(name, there - {*nearest}) for name in nearest if name not in there))
    )


def _has_pairs(train: Rows, column: str, choose: _Reasons) -> bool:
    if column in train.rows[0]:
        choose("texts come in pairs", f"there is a column {column!r}")
        return True
    if column != "text_pair":  # asked for by name
        train.column(column, "text_pair_column")
    return False


def _names(
    found: Source, labelled: Rows, column: str, given: Sequence[str] | None, choose: _Reasons
) -> tuple[list[str], bool]:
    """The class names, and whether integers index into them; ``labelled`` are the rows of train, or of its words."""
    if given is not None:
        return check_names(given), True
    labels = found.info.get("labels")
    if isinstance(labels, dict):
        labels = labels.get(column)
    if labels is not None:
        return check_names(labels, f"labels in {found.path}/info.json"), True
    if column in found.class_names:
        return check_names(found.class_names[column], f"classes of column {column!r}"), True
    names = names_in(labelled, column)
    some = [f"{name:.60}" for name in names[:10]] + ["..."] * (len(names) > 10)
    choose(f"classes = {', '.join(some)}", f"the {len(names)} different labels of train, sorted; no {NAMES} were given")
    return names, False


def _drop_unlabelled_test(found: Source, column: str, choose: _Reasons) -> Source:
    if found.test is not None and all(str(row.get(column)) in ("-1", "-1.0") for row in found.test.rows):
        choose("the test split is left out", "its labels are all -1, which stands for hidden labels")
        return replace(found, test=None)
    return found


# Making the splits ---------------------------------------------------------------------------------------------------


def _published(path: Path | None, shots: int | None, seed: int) -> Path | None:
    if path is None or shots is None:
        return None
    split = path / "kshot" / f"{shots}-{seed}"
    return split if split.is_dir() else None


def _carve(name: str, train: _Split, count: int, fraction: float, seed: int, choose: _Reasons) -> tuple[_Split, _Split]:
    taken = stratified(train.labels, max(1, count), seed)
    if not taken:
        raise SoftPromptError(
            f"{train.file}: {len(train.rows)} rows are too few to carve a {name} split from; give a {name} file or more rows. "
            "Train keeps a row of every class."
        )
    choose(
        f"{name} = {len(taken)} rows of {train.file}",
        f"no file is left for it; {fraction:.0%} drawn by class with seed {seed}",
    )
    return train.pick(taken), train.without(taken)


def _few_shots(
    train: _Split, validation: _Split | None, names: list[str], shots: int, seed: int, choose: _Reasons
) -> tuple[_Split, _Split]:
    taken = sample_shots(train.labels, names, shots, seed, train.file)
    rest = train.without(taken)
    choose(f"train = {shots} rows per class of {train.file}", f"shots={shots}, drawn with seed {seed}")
    left = [rest.labels.count(c) for c in range(len(names))]
    pool = rest
    if min(left) < shots and validation is not None:
        pool = validation
        choose(
            f"dev from {validation.file}",
            f"class {names[left.index(min(left))]!r} has only {min(left)} rows left in {train.file}",
        )
    where = f"dev, from {'the rest of ' if pool is rest else ''}{pool.file}"
    dev = pool.pick(sample_shots(pool.labels, names, shots, seed, where))
    if pool is rest:
        choose(f"dev = {shots} other rows per class of {train.file}", f"shots={shots}, drawn with seed {seed}")
    return train.pick(taken), dev


def _short(file: str, folder: Path | None) -> str:
    """The name of a file inside the folder of the source, so that records are the same on every machine."""
    return Path(file).relative_to(folder).as_posix() if folder and Path(file).is_relative_to(folder) else file


def _overlap(splits: dict[str, _Split | None]) -> dict[str, int]:
    """Rows of the second split whose input also stands in the first."""
    inputs = {
        name: [
            (row.get("text", row.get("prompt")), row.get("text_pair"), tuple(row.get("tokens", ())))
            for row in part.rows
        ]
        for name, part in splits.items()
        if part is not None
    }
    return {
        f"{a}/{b}": sum(row in set_a for row in inputs[b])
        for a, b in (("train", "dev"), ("train", "test"), ("dev", "test"))
        if a in inputs and b in inputs
        for set_a in [set(inputs[a])]
    }


def _dataset(split: _Split) -> datasets.Dataset:
    text, index = datasets.Value("string"), datasets.Value("int64")
    special = {"label": index, "tokens": datasets.List(text), "tags": datasets.List(index)}
    kinds = {name: special.get(name, text) for name in split.rows[0]}
    return datasets.Dataset.from_dict(
        {name: [row[name] for row in split.rows] for name in kinds}, features=datasets.Features(kinds)
    )
