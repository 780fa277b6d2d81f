"""Check values by the types that signatures name: those that a person gave under a key, and those of a JSON document."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from ._types import SoftPromptError, shown

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}
CHOICES = "one of "
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


def check_fields(where: str | Path, document: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Check a JSON object that somebody may have edited; nothing is converted.

    Raises:
        SoftPromptError: the value of a field is not of the type that ``hints`` names for it.
    """
    for name, value in document.items():
        if name in hints and not _fits(value, hint := _as_document(hints[name])):
            raise SoftPromptError(f"{where}: {name}: expected {describe(hint, null=True)}, got {shown(value)}.")


def _as_document(hint: Any) -> Any:
    """The hint with a mapping in the place of settings of a class of their own, which checks them when it is built."""
    parts = [dict if isinstance(part, type) and is_dataclass(part) else part for part in _parts(hint)]
    return typing.Union[tuple(parts)]  # noqa: UP007 - of parts that are known here alone


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, str) and any(isinstance(one, str) for part in _parts(hint) for one in typing.get_args(part)):
        return True  # PEFT has patterns among its choices
    adapter = _adapter(hint)
    try:
        if adapter is not None:
            adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


def describe(hint: Any, null: bool = False) -> str:
    """Describe a type in words: "a whole number", "a list of texts"; with ``null`` None is one of the words, too."""
    origin, inside = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        words = [describe(part, null) for part in inside if null or part is not type(None)]
        return " or ".join(dict.fromkeys(sorted(words, key=lambda word: word.startswith(CHOICES))))
    if isinstance(origin, type) and issubclass(origin, Enum):
        return CHOICES + ", ".join(str(member.value) for member in origin)
    if inside and origin is Literal:
        return CHOICES + ", ".join(map(str, inside))
    if origin is tuple and inside and len(set(inside)) == 1:
        return WORDS[list] + _inside("items", inside[:1]).replace(" of ", f" of {len(inside)} ", 1)
    if origin in (list, Sequence, tuple, set, frozenset):
        return WORDS[list] + _inside("items", inside[:1])
    if origin in (dict, Mapping):
        return WORDS[dict] + _inside("values", inside[1:])
    return WORDS.get(origin, getattr(origin, "__name__", str(origin)))


def _inside(what: str, hints: tuple[Any, ...]) -> str:
    if not hints or hints[0] is Any:
        return ""
    words = describe(hints[0], null=True)
    plain = words in WORDS.values() and words.startswith("a ")
    return f" of {words.removeprefix('a ')}s" if plain else f" whose {what} are each {words}"


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
    known = {bool, int, float, str, list, dict, tuple, type(None), Literal}
    return kinds if kinds <= known else None


@cache
def _cached(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    try:
        return _cached(hint)
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError):  # a type of somebody's own
        return None
