"""Turn the columns of a file into the columns that every task of a kind has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from .._types import SoftPromptError, check_choice, did_you_mean
from .chat import conversations
from .doubts import Say
from .find import Source
from .labels import NAMES, LabelSets, check_names, class_indices, names_in, numbers_of
from .read import Rows, listed, shown
from .words import tagged_words

NEEDED = {  # the columns that make rows rows of a kind
    "classification": ("text", "label"),
    "completion": ("prompt", "completion"),
    "tokens": ("tokens", "tags"),
    "chat": ("messages",),
}
WITHOUT_CLASSES = {"completion": "prompts and completions", "chat": "conversations", "regression": "texts with numbers"}
OF_TEXTS = ("classification", "multilabel", "regression")  # texts with a label: a class, a list of classes, or a number
KINDS = (*OF_TEXTS, "completion", "tokens", "chat")


@dataclass(frozen=True)
class Columns:
    """The names of a task's columns in its files.

    Raises:
        SoftPromptError: a name is empty or no text.
    """

    text: str
    text_pair: str
    label: str
    prompt: str
    completion: str
    tokens: str
    tags: str
    messages: str

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(name := getattr(self, field.name), str) or not name:
                raise SoftPromptError(f"{field.name}_column: expected the name of a column, got {shown(name)}.")

    def needed(self, kind: str) -> list[str]:
        """Return the names of the columns that make rows rows of ``kind``."""
        return [getattr(self, field) for field in NEEDED[columns_of(kind)]]


def columns_of(kind: str) -> str:
    """The kind under which the columns of ``kind`` are listed in `NEEDED`."""
    return "classification" if kind in OF_TEXTS else kind


@dataclass(frozen=True)
class Classes:
    """The names of a task's classes, none for completions and numbers.

    Attributes:
        names: in the order of the class indices.
        may_index: whether an integer label is an index into ``names``; never where the names were read off the labels.
        flags: whether lists of labels say of each class whether it is there; None where no training rows have told it yet.
    """

    names: list[str]
    may_index: bool
    flags: bool | None = None


@dataclass(frozen=True)
class Form:
    """What the rows of a task hold.

    Attributes:
        kind: one of `KINDS`.
        columns: what the columns are called in the files.
        pairs: whether a row has two texts.
    """

    kind: str
    columns: Columns
    pairs: bool

    @property
    def label(self) -> str:
        """The column of the labels, or of the tags."""
        return self.columns.tags if self.kind == "tokens" else self.columns.label

    @property
    def record(self) -> dict[str, str | None]:
        """The task's columns, each with its name in the files; None where the files do not have it."""
        if self.kind in OF_TEXTS:
            second = self.columns.text_pair if self.pairs else None
            return {"text": self.columns.text, "text_pair": second, "label": self.columns.label}
        return dict(zip(NEEDED[self.kind], self.columns.needed(self.kind), strict=True))

    def _blank(self, rows: Rows) -> list[int]:
        """The rows that hold nothing in a column of the task; where rows have several classes, an empty list says that none fits."""
        texts = [name for key, name in self.record.items() if name is not None and key != "label"]
        blank = {*rows.blank(texts)}
        if "label" in self.record:
            several = self.kind == "multilabel"
            blank |= {i for i in rows.blank([self.label]) if not (several and rows.rows[i].get(self.label) == [])}
        return sorted(blank)

    def without_blanks(self, rows: Rows, say: Say) -> Rows:
        """Return the rows that hold something in every column of the task; their number is said.

        Raises:
            SoftPromptError: no row does.
        """
        needed = [name for name in self.record.values() if name is not None]
        blank = self._blank(rows)
        if len(blank) == len(rows):
            raise SoftPromptError(
                f"{rows.name}: no row has all of {', '.join(needed)}; blank_rows=drop would leave none."
            )
        if blank:
            first = f"{Path(rows.name).name}, {rows.unit} {rows.numbers[blank[0]]}"
            say(
                f"left out {len(blank)} of {len(rows)} rows, the first at {first}",
                f"blank_rows=drop, and they hold nothing as {' or '.join(needed)}",
            )
        return rows.without(blank)

    def uniform(self, rows: Rows, classes: Classes, say: Say) -> list[dict[str, Any]]:
        """Return the rows with the columns that every task of the kind has.

        These are text, text_pair (where there are pairs) and label (an index, several, or a number); prompt and completion; tokens
        and tags; or messages.

        Raises:
            SoftPromptError: a row lacks a column, or holds something else there.
        """
        if self.kind == "completion":
            prompts = rows.texts(self.columns.prompt, "prompt_column")
            completions = rows.texts(self.columns.completion, "completion_column")
            return [{"prompt": p, "completion": c} for p, c in zip(prompts, completions, strict=True)]
        if self.kind == "chat":
            return [{"messages": messages} for messages in conversations(rows, self.columns.messages)]
        if self.kind == "tokens":
            words, tags = tagged_words(rows, self.columns.tokens, self.columns.tags)
            indices = iter(class_indices(tags, self.columns.tags, classes.names, classes.may_index, say))
            return [{"tokens": own, "tags": list(islice(indices, len(own)))} for own in words]
        columns: dict[str, Sequence[Any]] = {"text": rows.texts(self.columns.text, "text_column")}
        if self.pairs:
            columns["text_pair"] = rows.texts(self.columns.text_pair, "text_pair_column")
        columns["label"] = self._labels(rows, classes, say)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _labels(self, rows: Rows, classes: Classes, say: Say) -> Sequence[Any]:
        if self.kind == "regression":
            return numbers_of(rows, self.label)
        if self.kind == "multilabel":
            sets = LabelSets.of(rows, self.label, len(classes.names), classes.flags, say)
            return sets.indices(classes.names, classes.may_index, say)
        return class_indices(rows, self.label, classes.names, classes.may_index, say)


def form_of(rows: Rows, columns: Columns, expected: str | None = None) -> Form:
    """Return the form that the columns of ``rows`` say; ``expected`` is the kind that they must be, None for any.

    Raises:
        SoftPromptError: the rows are of another kind, of several, or of none.
    """
    if expected is not None:
        check_choice("kind", expected, KINDS)
    kind = _kind(rows, columns, expected)
    if kind == "classification" and expected is None and isinstance(rows.rows[0][columns.label], list):
        kind = "multilabel"
    return Form(kind, columns, pairs=kind in OF_TEXTS and columns.text_pair in rows.rows[0])


def classes_of(source: Source, form: Form, given: Sequence[str] | None, say: Say) -> Classes:
    """Return the classes that were given, else those of info.json or of the hub, else the labels in train.

    Raises:
        SoftPromptError: the names are no class names, the labels in train are none, or a task without classes was given
            names.
    """
    if form.kind in WITHOUT_CLASSES:
        if given is not None:
            raise no_classes(source.train, form.kind)
        return Classes([], may_index=False)
    known = _known_names(source, form.label, given)
    sets = None
    if form.kind == "multilabel":
        count = None if known is None else len(known)
        sets = LabelSets.of(source.train, form.label, count, None, lambda what, why: None)
    flags = None if sets is None else sets.flags is not None
    if known is not None:
        return Classes(known, may_index=True, flags=flags)
    names = _names_in(source.train, form) if sets is None else sets.names()
    some = [f"{name:.60}" for name in names[:10]] + ["..."] * (len(names) > 10)
    whence = "places in the lists of flags" if flags else "different labels of train, sorted"
    say(f"classes = {', '.join(some)}", f"the {len(names)} {whence}; no {NAMES} were given")
    return Classes(names, may_index=False, flags=flags)


def _names_in(train: Rows, form: Form) -> list[str]:
    if form.kind == "tokens":
        _, train = tagged_words(train, form.columns.tokens, form.label)
    return names_in(train, form.label)


def no_classes(rows: Rows, kind: str) -> SoftPromptError:
    """The error of class names that are given for rows of a kind without classes."""
    return SoftPromptError(
        f"{rows.name}: holds {WITHOUT_CLASSES[kind]}, which have no classes, but class names are given; "
        "expected texts with labels, or words with tags."
    )


def _known_names(source: Source, column: str, given: Sequence[str] | None) -> list[str] | None:
    """The class names that are written down somewhere; None where only the labels tell them."""
    if given is not None:
        return check_names(given)
    labels = source.info.get("labels")
    if isinstance(labels, dict):
        labels = labels.get(column)
    if labels is not None:
        return check_names(labels, f"labels in {source.path}/info.json")
    if column in source.class_names:
        return check_names(source.class_names[column], f"classes of column {column!r}")
    return None


def _kind(rows: Rows, columns: Columns, expected: str | None) -> str:
    there = set(rows.rows[0])
    present = {kind: [name for name in columns.needed(kind) if name in there] for kind in NEEDED}
    whole = [kind for kind, names in present.items() if len(names) == len(NEEDED[kind])]
    if expected is not None and whole:
        if columns_of(expected) not in whole:
            raise _another_kind(rows, columns, expected, whole[0])
        return expected
    if len(whole) > 1:
        raise _several_kinds(rows, columns, whole)
    if whole:
        return whole[0]
    raise _no_kind(rows, columns, nearest=max(present, key=lambda kind: len(present[kind])))


def _in_words(kind: str, columns: Columns) -> str:
    return f"{' and '.join(NEEDED[columns_of(kind)])} ({', '.join(columns.needed(kind))})"


def _another_kind(rows: Rows, columns: Columns, expected: str, kind: str) -> SoftPromptError:
    return SoftPromptError(
        f"{rows.where(0)}: expected the columns of {_in_words(expected, columns)}, "
        f"found those of {_in_words(kind, columns)}."
    )


def _several_kinds(rows: Rows, columns: Columns, kinds: Sequence[str]) -> SoftPromptError:
    several = " as well as ".join(_in_words(kind, columns) for kind in kinds)
    return SoftPromptError(
        f"{rows.where(0)}: found {several}; set the columns that are not meant to another name, or remove them."
    )


def _no_kind(rows: Rows, columns: Columns, nearest: str) -> SoftPromptError:
    there = set(rows.rows[0])
    near = columns.needed(nearest)
    hints = (did_you_mean(name, there - {*near}) for name in near if name not in there)
    return SoftPromptError(
        f"{rows.where(0)}: expected columns "
        f"text_column={columns.text!r} and label_column={columns.label!r} to classify, "
        f"prompt_column={columns.prompt!r} and completion_column={columns.completion!r} to complete, "
        f"tokens_column={columns.tokens!r} and tags_column={columns.tags!r} to tag words, or "
        f"messages_column={columns.messages!r} to chat; "
        f"columns there: {listed(sorted(there))}. Set these options to the columns that are meant."
        + "".join(dict.fromkeys(hints))
    )
