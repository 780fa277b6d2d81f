"""Read rows of words with a tag each: two lists of one length."""

from __future__ import annotations

from typing import Any

from .._types import SoftPromptError
from .read import Rows, shown


def check_words(words: Any, where: str) -> list[str]:
    """Return ``words``, a list of strings of which at least one holds text; an error begins with ``where``.

    Raises:
        SoftPromptError: ``words`` is no such list.
    """
    _check_list(words, "words", where)
    for number, word in enumerate(words, 1):
        if not isinstance(word, str):
            raise SoftPromptError(f"{where}: expected words, got {type(word).__name__} {shown(word)} as word {number}.")
    if not any(word.strip() for word in words):
        raise SoftPromptError(f"{where}: there are no words; add some or remove the row.")
    return list(words)


def tagged_words(rows: Rows, tokens_column: str, tags_column: str) -> tuple[list[list[str]], Rows]:
    """Return the words of each row, and every tag as a row of its own with the line it comes from.

    Raises:
        SoftPromptError: a row lacks a column, holds no list there, no words, or not as many tags as words.
    """
    texts, tags, numbers = [], [], []
    columns = rows.column(tokens_column, "tokens_column"), rows.column(tags_column, "tags_column")
    for i, (words, own) in enumerate(zip(*columns, strict=True)):
        texts.append(check_words(words, f"{rows.where(i)}, column {tokens_column!r}"))
        _check_list(own, "tags", f"{rows.where(i)}, column {tags_column!r}")
        if len(own) != len(words):
            raise SoftPromptError(
                f"{rows.where(i)}: expected a tag for each word, "
                f"got {len(words)} words in column {tokens_column!r} and {len(own)} tags in column {tags_column!r}."
            )
        tags += [{tags_column: tag} for tag in own]
        numbers += [rows.numbers[i]] * len(own)
    return texts, Rows(rows.name, tags, numbers, rows.unit)


def _check_list(value: Any, what: str, where: str) -> None:
    if not isinstance(value, list):
        raise SoftPromptError(
            f"{where}: expected a list of {what}, got {type(value).__name__} {shown(value)}"
            + "; lists stand in .jsonl, .json and .parquet files, .csv and .tsv cannot hold them"
            * isinstance(value, str)
            + "."
        )
