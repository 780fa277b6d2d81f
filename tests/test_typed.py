"""Types of options and of documents: in words, and those of others pass."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import pytest

from softprompt import SoftPromptError
from softprompt.typed import check_fields, conform, describe


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Nested:
    """Settings of PEFT, which takes any number here."""

    rho: int = 1


def test_conform_lets_types_of_others_through() -> None:
    marker = object()
    assert conform("x", marker, object) is marker


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (list[str] | None, "a list of texts"),
        (int | list[int | None], "a whole number or a list whose items are each a whole number or null"),
        (set[bool], "a list whose items are each true or false"),
        (list[tuple[int, int]], "a list whose items are each a list of 2 whole numbers"),
        (tuple[float, ...], "a list of numbers"),
        (dict, "a mapping"),
        (dict[str, Any], "a mapping"),
        (dict[str, float], "a mapping of numbers"),
        (list[dict[str, Any]], "a list of mappings"),
        (dict[str, str | list[str]], "a mapping whose values are each a text or a list of texts"),
        (Literal["a", 1] | None, "one of a, 1"),
        (Colour, "one of red, blue"),
        (Colour | str, "a text or one of red, blue"),
        (Any, "Any"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert describe(hint) == words


@pytest.mark.parametrize(
    ("hint", "fitting", "other", "words"),
    [
        (int, [3, 10**30], [3.0, True, "3", None], "a whole number"),
        (float, [3, 2.5], ["2.5", True, float("nan")], "a number"),
        (bool, [False], [0, "no"], "true or false"),
        (str | None, ["", None], [1], "a text or null"),
        (set[str] | None, [[], ["a"], None], ["a", ["a", 1]], "a list of texts or null"),
        (tuple[int, ...], [[], [1, 2]], [[1.5]], "a list of whole numbers"),
        (dict[str, int], [{}, {"a": 1}], [{"a": "1"}, []], "a mapping of whole numbers"),
        (bool | Literal["gaussian", "niter_[number]"], [True, "gaussian", "niter_4"], [3], "true or false or one of gaussian, niter_[number]"),
        (Literal[1, 2], [1], [3, "1"], "one of 1, 2"),
        (Colour, ["red"], ["green", None], "one of red, blue"),
        (Nested | None, [{"rho": -1}, {"foreign": []}, None], [[], "a"], "a mapping or null"),
        (tuple[int, int], [[1, 2]], [[1], [1, 2, 3]], "a list of 2 whole numbers"),
        (object, [3, None, {"a": []}], [], ""),
    ],
)  # fmt: skip
def test_a_field_of_a_document_is_of_its_type(hint: Any, fitting: list, other: list, words: str) -> None:
    for value in fitting:
        check_fields("a.json", {"x": value, "foreign": 1}, {"x": hint})
    for value in other:
        with pytest.raises(SoftPromptError) as refused:
            check_fields("a.json", {"x": value}, {"x": hint})
        assert str(refused.value).startswith(f"a.json: x: expected {words}, got ")
