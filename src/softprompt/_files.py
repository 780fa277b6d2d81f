"""Files that are written whole or not at all, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def to_json(document: Any, **options: Any) -> str:
    """``json.dumps`` of what every reader of JSON takes: NaN and infinity, which JSON has not, become null."""
    return json.dumps(_finite(document), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def write_json(path: str | Path, document: dict[str, Any]) -> None:
    """Write ``document`` so that a reader, or a kill, never sees half of it."""
    write_text(path, to_json(document, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` atomically: into a neighbour file first, then renamed."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` atomically: into a neighbour file first, then renamed; nothing is left of a write that fails."""
    with written_whole(Path(path)) as partial:
        partial.write_bytes(data)


def append_bytes(path: str | Path, data: bytes) -> None:
    """Append ``data``; who removes the folder meanwhile ends no run."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Inside, a file to write to; it takes its place at ``path`` when all went well, so nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
