"""Numbers below zero would make a method work against itself."""

from __future__ import annotations

from typing import Any

from .._types import SoftPromptError


def check_at_least_zero(**values: Any) -> None:
    """Raise `SoftPromptError` where a number is below 0; what is no number is left to whoever reads it."""
    for name, value in values.items():
        if isinstance(value, int | float) and value < 0:
            raise SoftPromptError(
                f"{name}: expected a number of at least 0, got {value}; below 0 the term is driven the other way, which an entry of objectives may ask for."
            )
