"""Texts of a row that the model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..._types import SoftPromptError, did_you_mean
from ._base import Adapted, check_encodable


def read_texts(
    adapted: Adapted, row: Mapping[str, Any], where: str, needed: Sequence[str], columns: Mapping[str, str]
) -> dict[str, str]:
    """The ``needed`` texts of a row.

    Args:
        columns: name of a text -> the name of its column in the row, where it is another one.

    Raises:
        SoftPromptError: a text is missing, empty, no string, or cannot be encoded.
    """
    asked = {name: columns.get(name, name) for name in needed}
    return {name: _text(adapted, row, where, column, {*asked.values()}) for name, column in asked.items()}


def _text(adapted: Adapted, row: Mapping[str, Any], where: str, column: str, asked: set[str]) -> str:
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        there = sorted(map(str, row))
        near = "" if column in row else did_you_mean(column, sorted({*there} - asked))
        raise SoftPromptError(f"{where}: expected a non-empty {column!r}, got {text!r:.60}; columns are {there}.{near}")
    check_encodable(text, where)
    if adapted.verbalizer is not None and adapted.tokenizer.mask_token in text:
        raise SoftPromptError(
            f"{where}: the text holds the mask token {adapted.tokenizer.mask_token!r}; remove it there."
        )
    return text
