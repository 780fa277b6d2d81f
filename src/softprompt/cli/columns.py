"""Names of the columns in the user's data: those of training, and what ``--set`` changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .._types import SoftPromptError, check_choice

if TYPE_CHECKING:
    from ..models import TaskCard

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="text_column=NAME and the like: where the column has another name than in training."),
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


def labelled_columns(card: TaskCard, settings: Sequence[str] | None) -> dict[str, str]:
    """Return the ``*_column`` arguments of `load_rows` and `load_task` for rows of the adapter's kind."""
    from ..models import KINDS

    return {**(card.columns or {}), **columns_set(settings, KINDS[card.kind].columns)}
