"""Read JSON documents that somebody may have damaged or edited, and check their fields; a fault is one message."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from ._types import SoftPromptError


def read_object(path: Path, what: str, advice: str = "") -> dict[str, Any]:
    """Read the JSON object that the file ``path`` holds.

    Args:
        path: the file.
        what: the file's content in words, such as "task card".
        advice: what to do when it is damaged; the message ends with it.

    Raises:
        SoftPromptError: the file is missing, is not UTF-8 text or not JSON, or its JSON is no object.
    """
    end = f"; {advice}." if advice else "."
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SoftPromptError(f"{path}: not a {what}: cannot be read ({error.strerror}){end}") from error
    except UnicodeDecodeError as error:
        raise SoftPromptError(f"{path}: not a {what}: not UTF-8 text ({error}){end}") from error
    except ValueError as error:  # also a number of more digits than Python reads
        raise SoftPromptError(f"{path}: not a {what}: not valid JSON ({error}){end}") from error
    except RecursionError as error:
        raise SoftPromptError(f"{path}: not a {what}: its JSON is nested too deep{end}") from error
    if not isinstance(document, dict):
        raise SoftPromptError(f"{path}: not a {what}: expected a JSON object {{...}}, got {shown(document)}{end}")
    return document


def check_fields(where: str | Path, document: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise `SoftPromptError` at the first field whose value is not of the type that ``hints`` names for it."""
    for name, value in document.items():
        if name in hints and not _fits(value, hints[name]):
            raise SoftPromptError(f"{where}: {name}: expected {_words(hints[name])}, got {shown(value)}.")


def shown(value: Any) -> str:
    """Return a value as JSON writes it, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON may stand where ``hint`` is; what JSON cannot express is let through."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:  # a choice of strings may have patterns among them: whoever owns the field knows them
        return value in inner or (isinstance(value, str) and any(isinstance(one, str) for one in inner))
    if hint is None or hint is type(None):
        return value is None
    if isinstance(hint, type) and issubclass(hint, Enum):
        return any(value == member.value for member in hint)
    container = origin or hint
    if container in (list, set, tuple, frozenset):
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value if inner)
    if container is dict:
        return isinstance(value, dict) and (not inner or all(_fits(item, inner[1]) for item in value.values()))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (str, bool) else True


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(one) for one in inner))
    if origin is Literal:
        return " or ".join(shown(one) for one in inner)
    if hint is None or hint is type(None):
        return "null"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(str(member.value) for member in hint)}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", dict: "an object"}
    if origin is dict:
        return f"an object whose values are each {_words(inner[1])}" if inner[1] is not Any else "an object"
    if (origin or hint) in (list, set, tuple, frozenset):
        return f"a list whose items are each {_words(inner[0])}" if inner else "a list"
    return names.get(hint, getattr(hint, "__name__", str(hint)))
