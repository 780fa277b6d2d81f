"""Turn the labels that people write (names, numbers, true/false, lists of them) into class indices, or into numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .._types import SoftPromptError, announce, did_you_mean
from .read import Rows, check_unicode, is_blank, listed, shown

SLIP = 0.6  # how near a class must be to a label of another name to be what was meant
MANY = 20  # more classes than this, and than half the rows: the column holds no classes
NAMES = "class_names (Python: label_names)"  # the key of a run, and the argument of the functions here


def check_names(names: object, what: str = NAMES) -> list[str]:
    """Return ``names`` as a list of at least two different class names; whole numbers are names, too.

    Raises:
        SoftPromptError: ``names`` is no such list; the message begins with ``what``.
    """
    if not isinstance(names, list | tuple):
        example = ", like class_names=[neg, pos]" * (what == NAMES)
        raise SoftPromptError(f"{what}: expected a list of class names{example}, got {shown(names)}.")
    if any(isinstance(name, bool) for name in names):
        raise SoftPromptError(
            f"{what}: expected a list of class names, got {shown(list(names))}. true and false without quotes are truth values: "
            'put such names into quotes, as in class_names=["false", "true"].'
        )
    if not all(isinstance(name, int) or (isinstance(name, str) and name.strip()) for name in names):
        raise SoftPromptError(f"{what}: expected a list of class names, got {shown(list(names))}.")
    texts = [check_unicode(str(name), what) for name in names]
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise SoftPromptError(f"{what}: expected at least two different class names, got {shown(texts)}.")
    return texts


def as_text(value: object, key: str, what: str = "class name") -> str:
    """Return a class name or a word as text; YAML reads 0 as a number, and true as no text at all.

    Raises:
        SoftPromptError: the value is neither a text nor a whole number; the message begins with ``key``.
    """
    if isinstance(value, bool):
        raise SoftPromptError(
            f"{key}: got {value} as a {what}. true and false without quotes are truth values: put such a text into quotes, "
            'as in {"false": no, "true": yes}.'
        )
    if not isinstance(value, str | int):
        raise SoftPromptError(f"{key}: expected a text as {what}, got {type(value).__name__} {shown(value)}.")
    return check_unicode(str(value), f"{key}, {what}")


def names_in(rows: Rows, column: str) -> list[str]:
    """Return the distinct labels of ``column``, sorted, numbers by their value; 1.0 is returned as 1.

    Raises:
        SoftPromptError: a label is a float or missing, all labels are the same, or there are as many as in a column of
            texts.
    """
    keys = _keys(rows, column)
    names = sorted({_whole(key) or key for key in keys})
    if all(map(_is_int, names)):
        names.sort(key=int)
    else:
        floats = [i for i, key in enumerate(keys) if _is_float(key)]
        gap = next((i for i, key in enumerate(keys) if key.lower() == "nan"), None)
        if gap is not None and len(names) > 2 and all(_is_int(name) or name.lower() == "nan" for name in names):
            raise SoftPromptError(
                f"{rows.where(gap)}: the label in column {column!r} is {keys[gap]!r} among numbers, so it is missing; "
                "fill it or remove the row."
            )
        if floats:
            i = next((i for i in floats if _whole(keys[i]) is None), floats[0])
            raise _regression(rows.where(i), column, keys[i])
    if len(names) < 2:
        raise SoftPromptError(
            f"{rows.name}: expected at least two classes in column {column!r}, got only {shown(names[0])}."
        )
    if len(names) > max(MANY, len(rows) // 2):
        raise SoftPromptError(
            f"{rows.name}: column {column!r} has {len(names)} different values in {len(rows)} rows, "
            f"too many for classes (for example {keys[0]!r:.60}). Set label_column, or give {NAMES}."
        )
    return names


def class_indices(
    rows: Rows, column: str, names: Sequence[str], may_index: bool, say: Callable[[str, str], None] = announce
) -> list[int]:
    """Return the class index of each row.

    Args:
        rows: the rows.
        column: the column of labels.
        names: the class names.
        may_index: whether an integer that is no class name is an index into ``names``. Where a name is an integer it
            never is, for some labels would then be names and others places.
        say: is told that floats were read as whole numbers.

    Raises:
        SoftPromptError: a label is unknown, missing or a float with a fraction.
    """
    index = {name: i for i, name in enumerate(names)}
    may_index = may_index and not any(map(_is_int, names))
    indices, as_whole = [], 0
    for i, (key, row) in enumerate(zip(_keys(rows, column), rows.rows, strict=True)):
        whole = _whole(key) if key not in index else None
        as_whole += whole is not None
        key = whole or key
        value = row[column]
        place = int(value) if isinstance(value, bool) else int(key) if _is_place(key) else -1
        if key in index:
            indices.append(index[key])
        elif may_index and 0 <= place < len(names):
            indices.append(place)
        elif _is_float(key):
            raise _regression(rows.where(i), column, key)
        else:
            known = listed(names) + (f" (or 0 to {len(names) - 1})" if may_index else "")
            raise SoftPromptError(
                f"{rows.where(i)}: unknown label {shown(value)}; known labels: {known}.{did_you_mean(key, names, SLIP)} Correct the row, or name every class in {NAMES}."
            )
    if as_whole:
        say(
            f"{as_whole} labels of {Path(rows.name).name} are read as whole numbers",
            f"column {column!r} has floats like 1.0, as pandas writes whole numbers when one is missing",
        )
    return indices


def numbers_of(rows: Rows, column: str) -> list[float]:
    """Return the number of each row.

    Raises:
        SoftPromptError: a label is missing, no number, or not finite.
    """
    numbers = []
    for i, value in enumerate(rows.column(column, "label_column")):
        if not isinstance(value, list) and is_blank(value):
            raise _missing(rows.where(i), column)
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise SoftPromptError(
                f"{rows.where(i)}: expected a finite number in column {column!r} (kind=regression), got {shown(value)}."
            )
        numbers.append(number)
    return numbers


@dataclass(frozen=True)
class LabelSets:
    """The labels of rows that have any number of them.

    Attributes:
        each: every label as a row of its own, with the line it comes from.
        sizes: how many labels each row has.
        column: the column that they stand in.
        flags: the number of classes, where lists of 0 and 1 say of each class in turn whether it is there; None where labels are
            named.
    """

    each: Rows
    sizes: list[int]
    column: str
    flags: int | None

    @classmethod
    def of(
        cls,
        rows: Rows,
        column: str,
        classes: int | None,
        flags: bool | None = None,
        say: Callable[[str, str], None] = announce,
    ) -> LabelSets:
        """Read a column of lists of labels; or of flags, as many as there are ``classes``, where that is known.

        Args:
            flags: whether the training rows hold flags: two classes that a whole file names in each row look like them.

        Raises:
            SoftPromptError: a row lacks the column, or holds no list there; flags are expected, and it holds others.
        """
        lists = rows.column(column, "label_column")
        for i, labels in enumerate(lists):
            if not isinstance(labels, list) and is_blank(labels):
                raise _missing(rows.where(i), column)
            if not isinstance(labels, list):
                raise SoftPromptError(
                    f"{rows.where(i)}: expected a list of labels in column {column!r}, got {shown(labels)}; write one label "
                    "as a list of one. Lists stand in .jsonl, .json and .parquet files."
                )
        _check_alike(rows, column, lists)
        width = None if flags is False else _flags(lists)
        if flags and width != classes:
            raise SoftPromptError(
                f"{rows.name}: expected lists of {classes} flags, 0 or 1, in column {column!r}, as in the training rows, got {shown(lists[0])} and others."
            )
        if width is not None and classes in (None, width):
            say(
                f"the labels of {Path(rows.name).name} are read as flags",
                f"each list in column {column!r} has {width} entries, all of them 0 or 1",
            )
            lists = [[c for c, flag in enumerate(own) if flag] for own in lists]
        else:
            width = None
        each = [{column: label} for labels in lists for label in labels]
        numbers = [rows.numbers[i] for i, labels in enumerate(lists) for _ in labels]
        return cls(Rows(rows.name, each, numbers, rows.unit), [*map(len, lists)], column, width)

    def names(self) -> list[str]:
        """Return the class names that the labels tell: see `names_in`."""
        if self.flags is not None:
            return [str(c) for c in range(self.flags)]
        if not self.each.rows:
            raise SoftPromptError(f"{self.each.name}: no row has a label in column {self.column!r}; give {NAMES}.")
        return names_in(self.each, self.column)

    def indices(self, names: Sequence[str], may_index: bool, say: Callable[[str, str], None]) -> list[list[int]]:
        """Return the class indices of each row, in ascending order.

        Raises:
            SoftPromptError: a label is unknown, or stands twice in a row.
        """
        if self.flags is not None:
            found = [row[self.column] for row in self.each.rows]
        else:
            found = class_indices(self.each, self.column, names, may_index, say)
        places, sets = iter(range(len(found))), []
        for size in self.sizes:
            own = [*islice(places, size)]
            labels = [found[i] for i in own]
            if len({*labels}) < size:
                twice = next(label for label in labels if labels.count(label) > 1)
                raise SoftPromptError(
                    f"{self.each.where(own[0])}: the label {names[twice]!r} stands twice in column {self.column!r}; keep one."
                )
            sets.append(sorted(labels))
        return sets


def _check_alike(rows: Rows, column: str, lists: Sequence[list[Any]]) -> None:
    """Refuse lists of which some can only be flags, as indices would stand twice in them, and others none."""
    many = [own for own in lists if _are_flags(own) and len(own) > len(set(own))]
    if not many:
        return
    width = Counter(map(len, many)).most_common(1)[0][0]
    odd = next((i for i, own in enumerate(lists) if not _are_flags(own) or len(own) != width), None)
    if odd is not None:
        raise SoftPromptError(
            f"{rows.where(odd)}: got {shown(lists[odd])} in column {column!r}, where other rows have {width} flags, 0 or 1, one for each class; write all rows alike."
        )


def _are_flags(own: Sequence[Any]) -> bool:
    return all(isinstance(flag, int | float) and flag in (0, 1) for flag in own)


def _flags(lists: Sequence[list[Any]]) -> int | None:
    """The length of lists of 0 and 1 that are no indices: those would name both classes in every row, or one twice."""
    width = len(lists[0]) if lists else 0
    alike = all(len(own) == width and _are_flags(own) for own in lists)
    return width if width > 1 and alike else None


def _keys(rows: Rows, column: str) -> list[str]:
    """The labels as text, true and false in lower case."""
    return [_key(value, rows.where(i), column) for i, value in enumerate(rows.column(column, "label_column"))]


def _key(value: Any, where: str, column: str) -> str:
    if not isinstance(value, list) and is_blank(value):
        raise _missing(where, column)
    if isinstance(value, float) and math.isinf(value):  # the word "inf" may well be a class name, the number is none
        raise _regression(where, column, value)
    if isinstance(value, float) and value.is_integer():
        return f"{int(value)}.0"  # not 1e+16
    if not isinstance(value, bool | int | float | str):
        raise SoftPromptError(
            f"{where}: expected a class name or number in column {column!r}, got {type(value).__name__} {shown(value)}."
        )
    return str(value).lower() if isinstance(value, bool) else str(value)


def _missing(where: str, column: str) -> SoftPromptError:
    return SoftPromptError(
        f"{where}: the label in column {column!r} is missing. Fill it or remove the row; "
        "in training blank_rows=drop leaves such rows out."
    )


def _regression(where: str, column: str, value: object) -> SoftPromptError:
    return SoftPromptError(
        f"{where}: the label {value!s:.60} in column {column!r} is a float; expected class names or whole numbers. "
        "To learn the numbers themselves, set kind=regression."
    )


def _is_int(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,4000}", text) is not None  # Python reads no more digits


def _whole(text: str) -> str | None:
    """The whole number that a float like 1.0 is; None of other texts."""
    match = re.fullmatch(r"(-?[0-9]{1,4000})\.0*", text)
    return str(int(match[1])) if match else None


def _is_place(text: str) -> bool:
    """Whether a text counts from 0 as people write it: "1", not "01" or "-0"."""
    return _is_int(text) and str(int(text)) == text


def _is_float(text: str) -> bool:
    """Whether the text is a number with a point or an exponent; "nan" and "inf" may well be class names."""
    written = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text.strip())
    return written is not None and not _is_int(text)
