"""Check the value that a person gave under a key: its type and bounds are those of the key, or one message says so."""

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
    """Return ``value`` in the type ``hint``: as an int, 3.0 and "3" are 3; as a bool, "yes" is True.

    Args:
        key: what errors call the value.
        value: what the person gave.
        hint: a type, as in a signature.
        least: the least number that is allowed.
        above: a number that the value must exceed.

    Raises:
        SoftPromptError: the value is of another type, is a number that is not finite, or lies outside its bounds.
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
        converted = adapter.validate_python(value)
    except (ValidationError, RecursionError) as error:
        raise refusal from error
    if isinstance(converted, float) and not math.isfinite(converted):
        raise refusal
    if isinstance(converted, int) and abs(converted) >= LARGEST:
        raise refusal
    number = isinstance(converted, int | float) and not isinstance(converted, bool)
    if number and ((least is not None and converted < least) or (above is not None and converted <= above)):
        raise refusal
    return converted


def describe(hint: Any) -> str:
    """Describe a type in words: "a whole number", "a list of texts"."""
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
    """The plain types that a hint names; None where a person could not write one of them."""
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
