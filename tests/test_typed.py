"""Types of options: those of others pass."""

from __future__ import annotations

from softprompt.typed import conform, describe


def test_conform_lets_types_of_others_through() -> None:
    marker = object()
    assert conform("x", marker, object) is marker
    assert describe(list[str] | None) == "a list of texts" and describe(dict[str, int]) == "a mapping"
