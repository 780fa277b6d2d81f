"""Results on disk: one JSON line per cell, appended whole; a line that a kill cut short is dropped and repaired."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._types import SoftPromptError
from .suite import key_of

CELLS = "cells.jsonl"
ACCURACY = "accuracy"


def _text(value: object) -> bool:
    return isinstance(value, str)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return _number(value) and math.isfinite(value)


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(_number, value))


def _mapping(value: object) -> bool:
    return isinstance(value, dict)


def _points(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(point, list) and len(point) == 2 and _finite(point[0]) and _or_none(_number)(point[1])
        for point in value
    )


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


SCORE = (_or_none(_number), "a number or null")
CELL: dict[str, tuple[Callable[[Any], bool], str]] = {  # of a line, what is read: whether it fits, and what would
    "method": (_text, "a name"),
    "task": (_text, "a name"),
    "options": (_mapping, "options by name"),
    "status": (_text, "done or failed"),
    "seed": (_whole, "a whole number"),
    "shots": (_or_none(_whole), "a whole number or null"),
    "rows": (_or_none(_whole), "a whole number or null"),
    "dev": SCORE,
    "test": SCORE,
    "parameters": (_or_none(_finite), "a number or null"),
    "steps": (_or_none(_finite), "a number or null"),
    "trials": (_or_none(lambda value: isinstance(value, list)), "a list"),
    "curve": (_or_none(_points), "pairs [step, score] of numbers"),
    "time": (
        _or_none(lambda value: _mapping(value) and all(map(_or_none(_number), value.values()))),
        "seconds by name",
    ),
    "extra": (_or_none(_mapping), "figures by name"),
}
EXTRA: dict[str, tuple[Callable[[Any], bool], str]] = {  # the same of ``extra``
    "best_step": (_or_none(_finite), "a number"),
    "last": (_or_none(lambda value: _mapping(value) and _number(value.get("test"))), "scores by name, test among them"),
    "layers": (_or_none(lambda value: isinstance(value, list) and all(map(_whole, value))), "a list of layers"),
    "layer_scores": (_or_none(_numbers), "a list of numbers"),
    "gates": (_or_none(_numbers), "a list of numbers"),
}


class Unlike(ValueError):
    """A line of JSON holds something that nothing can be computed with; the text says what, and what was expected."""


def check_cell(line: dict[str, Any]) -> None:
    """Check what tells a cell from others, and all that statistics read of it.

    Raises:
        Unlike: a value is of another kind, or an accuracy is outside 0 to 1.
        KeyError, TypeError: the line is no cell.
    """
    key_of(line), line["status"]
    for name, (fits, expected) in CELL.items():
        if not fits(line.get(name)):
            raise Unlike(f"{name} is {line.get(name)!r:.60}: expected {expected}")
    extra = line.get("extra") or {}
    for name, (fits, expected) in EXTRA.items():
        if not fits(extra.get(name)):
            raise Unlike(f"extra.{name} is {extra[name]!r:.60}: expected {expected}")
    if line.get("metric", ACCURACY) == ACCURACY:
        last = (extra.get("last") or {}).get("test")
        for name, value in (("dev", line.get("dev")), ("test", line.get("test")), ("extra.last.test", last)):
            if value is not None and math.isfinite(value) and not 0 <= value <= 1:
                raise Unlike(f"{name} is {value!r}: expected an accuracy from 0 to 1")


def check_score(line: dict[str, Any], name: str) -> None:
    """Check that a line's score, where it has one, is a number.

    Raises:
        Unlike: it is something else.
    """
    fits, expected = SCORE
    if not fits(line.get(name)):
        raise Unlike(f"{name} is {line.get(name)!r:.60}: expected {expected}")


def read_lines(
    path: str | Path,
    check: Callable[[dict[str, Any]], object] = check_cell,
    what: str = "a cell as softprompt bench writes it",
) -> list[dict[str, Any]]:
    """Read every whole line of a results file, in order, without blank ones; none where there is no file.

    Args:
        path: of the file.
        check: raises `Unlike`, KeyError or TypeError for a line of another kind.
        what: a line is, in words.

    Raises:
        SoftPromptError: a line is no JSON object of a cell, and is not a torn last line.
    """
    path = Path(path)
    data = path.read_bytes() if path.is_file() else b""
    whole = data[: data.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.splitlines(), 1):
        if not line.strip():
            continue
        try:
            cell = json.loads(line)
            cell["status"], check(cell)
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, Unlike) as error:
            got = f"but {error}" if isinstance(error, Unlike) else f"got {line[:60].decode(errors='replace')}"
            raise SoftPromptError(
                f"{path}, line {number}: expected {what}, {got}; repair or remove the line."
            ) from error
        lines.append(cell)
    return lines


def read_cells(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read the newest line of each cell, by `key_of`: a cell that failed and was tried again has several lines."""
    return {key_of(line): line for line in read_lines(path)}


def append_line(path: str | Path, line: dict[str, Any]) -> None:
    """Append one cell, after cutting off a last line that an earlier kill has torn. Callers hold the folder by `only_run`."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
    with Path(path).open("ab+") as file:
        file.seek(0)
        data = file.read()
        if not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
