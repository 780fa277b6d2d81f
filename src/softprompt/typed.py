"""A value that a person gave under a key: of the type that the key declares and inside its bounds, or one clear message."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from ._types import SoftPromptError

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}
LARGEST = 2**63  # no library below takes a larger whole number


def conform(key: str, value: Any, hint: Any, least: float | None = None, above: float | None = None) -> Any:
    """Return ``value`` as ``hint`` has it: 3.0 or "3" for an int is 3, "yes" for a bool is True.

    Args:
        key: what errors call it.
        value: what was given.
        hint: a type, as in a signature.
        least: the least number that is allowed.
        above: a number that must be exceeded.

    Raises:
        SoftPromptError: another type, a number that is not finite, or one outside its bounds.
    """
    expected = describe(hint)
    if least is not None:
        expected += f" of at least {least:g}"
    if above is not None:
        expected = expected.replace("a ", "a positive ", 1) if above == 0 else f"{expected} above {above:g}"
    refusal = SoftPromptError(f"{key}: expected {expected}, got {value!r:.200}.")
    kinds = _kinds(hint)
    if kinds is None or (value is None and type(None) in kinds):
        return value
    if isinstance(value, bool) and not kinds & {bool, Any, object}:  # Python takes True for 1
        raise refusal
    adapter = _adapter(hint)
    if adapter is None:
        return value
    try:
        found = adapter.validate_python(value)
    except (ValidationError, RecursionError) as error:
        raise refusal from error
    if isinstance(found, float) and not math.isfinite(found):
        raise refusal
    if isinstance(found, int) and abs(found) >= LARGEST:
        raise refusal
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if number and ((least is not None and found < least) or (above is not None and found <= above)):
        raise refusal
    return found


def describe(hint: Any) -> str:
    """A type in words: "a whole number", "a list of texts"."""
    parts = [part for part in _parts(hint) if part is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    names = []
    for part in parts:
        origin, inside = typing.get_origin(part) or part, typing.get_args(part)
        if origin in (list, Sequence) and inside:
            names.append(f"a list of {describe(inside[0]).removeprefix('a ').removesuffix('s')}s")
        elif origin in (dict, Mapping):
            names.append(WORDS[dict])
        else:
            names.append(WORDS.get(origin, getattr(origin, "__name__", str(origin))))
    return " or ".join(dict.fromkeys(names)) or "nothing"


def _parts(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _kinds(hint: Any) -> set[Any] | None:
    """The plain types that a hint names; None where one of them is none that a person could write."""
    kinds = set()
    for part in _parts(hint):
        origin = typing.get_origin(part) or part
        if origin is Any:
            return None
        kinds.add({Sequence: list, Mapping: dict}.get(origin, origin))
    known = {bool, int, float, str, list, dict, tuple, type(None), typing.Literal}
    return kinds if kinds <= known else None


@cache
def _cached(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    try:
        return _cached(hint)
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError):  # a type of somebody's own
        return None
