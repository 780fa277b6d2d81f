"""From the labels that people write (names, numbers, true/false) to class indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._types import SoftPromptError, did_you_mean
from .read import Rows

MANY = 20  # more classes than this, and than half the rows: the column holds something else than classes


def check_names(names: object, what: str) -> list[str]:
    """Return ``names`` as a list of at least two different class names.

    Raises:
        SoftPromptError: they are no such list; ``what`` says where they come from.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise SoftPromptError(f"{what}: expected a list of class names, got {names!r:.200}.")
    if len(names) < 2 or len(set(names)) < len(names):
        raise SoftPromptError(f"{what}: expected at least two different class names, got {list(names)}.")
    return list(names)


def names_in(rows: Rows, column: str) -> list[str]:
    """Return the sorted distinct labels of ``column``, numbers in the order of their value.

    Raises:
        SoftPromptError: labels are floats or missing, all the same, or as many as in a column of texts.
    """
    keys = [_key(value, rows.where(i), column) for i, value in enumerate(rows.column(column, "label_column"))]
    names = sorted(set(keys))
    if all(_is_int(name) for name in names):
        names.sort(key=int)
    else:
        for i, key in enumerate(keys):
            if _is_float(key):
                raise _regression(rows.where(i), column, key)
    if len(names) < 2:
        raise SoftPromptError(
            f"{rows.name}: expected at least two classes in column {column!r}, got only {names[0]!r}."
        )
    if len(names) > max(MANY, len(rows) // 2):
        raise SoftPromptError(
            f"{rows.name}: column {column!r} has {len(names)} different values in {len(rows)} rows, too many for classes "
            f"(for example {keys[0]!r:.60}). Set label_column, or give label_names."
        )
    return names


def class_indices(rows: Rows, column: str, names: Sequence[str], may_index: bool) -> list[int]:
    """Return the class index of each row.

    Args:
        rows: the rows.
        column: the column of labels.
        names: the class names.
        may_index: whether an integer that is no class name is an index into ``names``.

    Raises:
        SoftPromptError: a label is unknown, missing or a float.
    """
    index = {name: i for i, name in enumerate(names)}
    found = []
    for i, value in enumerate(rows.column(column, "label_column")):
        key = _key(value, rows.where(i), column)
        if key in index:
            found.append(index[key])
        elif may_index and (isinstance(value, bool) or _is_int(key)) and 0 <= int(value) < len(names):
            found.append(int(value))
        elif _is_float(key):
            raise _regression(rows.where(i), column, key)
        else:
            known = ", ".join(names) + (f" (or 0 to {len(names) - 1})" if may_index else "")
            raise SoftPromptError(
                f"{rows.where(i)}: unknown label {value!r}; known labels: {known}.{did_you_mean(key, names)}"
            )
    return found


def _key(value: Any, where: str, column: str) -> str:
    if value is None or value == "":
        raise SoftPromptError(f"{where}: the label in column {column!r} is missing.")
    if isinstance(value, float):
        raise _regression(where, column, value)
    if not isinstance(value, bool | int | str):
        raise SoftPromptError(
            f"{where}: expected a class name or number in column {column!r}, got {type(value).__name__} {value!r:.60}."
        )
    return str(value).lower() if isinstance(value, bool) else str(value)


def _regression(where: str, column: str, value: object) -> SoftPromptError:
    return SoftPromptError(
        f"{where}: the label {value!s} in column {column!r} is a float; expected class names or whole numbers. "
        "Regression is not supported."
    )


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii()


def _is_float(text: str) -> bool:
    if _is_int(text):
        return False
    try:
        float(text)
    except ValueError:
        return False
    return any(ch.isdigit() for ch in text)  # "nan" and "inf" may well be class names
