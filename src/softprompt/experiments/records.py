"""Results on disk: one JSON line per cell, appended whole; a line that a kill cut short is dropped and repaired."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .._types import SoftPromptError
from .suite import key_of

CELLS = "cells.jsonl"
LOCK = ".lock"


def read_lines(
    path: str | Path,
    key_of: Callable[[dict[str, Any]], str] = key_of,
    what: str = "a cell as softprompt bench writes it",
) -> list[dict[str, Any]]:
    """Read every whole line of a results file, in order; none where there is no file.

    Args:
        path: of the file.
        key_of: gives what tells a line from others, or raises KeyError or TypeError for one of another kind.
        what: a line is, in words.

    Raises:
        SoftPromptError: a line is no JSON object of a cell, and is not a torn last line.
    """
    path = Path(path)
    data = path.read_bytes() if path.is_file() else b""
    whole = data[: data.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            cell = json.loads(line)
            key_of(cell), cell["status"]
            _check_types(cell)
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
            raise SoftPromptError(
                f"{path}, line {number}: expected {what}, got {line[:60]!r}; repair or remove the line."
            ) from error
        lines.append(cell)
    return lines


def _check_types(line: dict[str, Any]) -> None:
    """Raise TypeError where what statistics compute with is of another type."""
    numbers = (line.get("dev"), line.get("test"))
    if not isinstance(line.get("extra") or {}, dict) or any(
        isinstance(number, str | list | dict) for number in numbers
    ):
        raise TypeError


def read_cells(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read the newest line of each cell, by `key_of`: a cell that failed and was tried again has several lines."""
    return {key_of(line): line for line in read_lines(path)}


def append_line(path: str | Path, line: dict[str, Any]) -> None:
    """Append one cell, after cutting off a last line that an earlier kill has torn. Callers hold `only_writer`."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
    with Path(path).open("ab+") as file:
        file.seek(0)
        data = file.read()
        if not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder against a second run; the lock ends with the process that holds it.

    Raises:
        SoftPromptError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SoftPromptError(
            f"{folder}: another softprompt bench writes there; wait for it, or give another --output."
        ) from error
    try:
        yield
    finally:
        lock.release()
