"""Stream rows one by one, each with the place it came from: files and pipes may be too long to hold in memory."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as parquet  # type: ignore[import-untyped]

from .._types import SoftPromptError
from .read import parse_jsonl, read_rows

# The place ("train.csv, line 12"), and the row or what is wrong with it.
Placed = tuple[str, dict[str, Any] | SoftPromptError]


def stream_rows(path: str | Path) -> Iterator[Placed]:
    """Yield the rows of a file in order; ``.jsonl`` and ``.parquet`` are read as they are needed, other formats whole.

    Where a line of ``.jsonl`` is no JSON object, its error is yielded in place of a row, so that a reader can go on.

    Raises:
        SoftPromptError: as `read_rows`.
    """
    path = Path(path)
    suffix = path.suffix.lower() if path.is_file() and path.stat().st_size else ""
    if suffix == ".jsonl":
        seen = False
        with open_text(path) as file:
            for placed in stream_jsonl(str(path), file):
                seen = True
                yield placed
        if not seen:
            raise SoftPromptError(f"{path}: the file has no rows.")
    elif suffix == ".parquet":
        yield from _parquet(path)
    else:
        table = read_rows(path)
        yield from ((table.where(i), row) for i, row in enumerate(table.rows))


def stream_jsonl(name: str, lines: Iterable[str]) -> Iterator[Placed]:
    """Yield the JSON objects of ``lines``, as `open_text` reads them; ``name`` is what errors call their source."""
    for number, (where, line) in enumerate(_lines(name, lines), 1):
        if isinstance(line, SoftPromptError):
            yield where, line
            continue
        try:
            rows = parse_jsonl(name, line, number).rows
        except SoftPromptError as error:
            yield where, error
        else:
            yield from ((where, row) for row in rows)


def stream_texts(name: str, lines: Iterable[str], column: str) -> Iterator[Placed]:
    """Yield each of ``lines`` that is not blank as a row with the one column ``column``."""
    for where, line in _lines(name, lines):
        if isinstance(line, SoftPromptError):
            yield where, line
        elif line.strip():
            yield where, {column: line}


def _lines(name: str, lines: Iterable[str]) -> Iterator[tuple[str, str | SoftPromptError]]:
    for number, line in enumerate(lines, 1):
        where = f"{name}, line {number}"
        try:
            line.encode()
        except UnicodeEncodeError as error:  # `open_text` keeps a byte that is no UTF-8 as half of a surrogate pair
            byte = ord(line[error.start]) & 0xFF
            yield where, SoftPromptError(f"{where}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8.")
        else:
            yield where, line.rstrip("\r\n")


def open_text(source: str | Path | TextIO) -> TextIO:
    """Open a file, or set up an open stream such as stdin, so that an error can name the line of a byte that is no UTF-8.

    Such bytes become halves of surrogate pairs.
    """
    # spreadsheets write a byte order mark
    decode: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape"}
    if isinstance(source, str | Path):
        return open(source, **decode)
    if isinstance(source, io.TextIOWrapper):
        source.reconfigure(**decode)
    return source


def _parquet(path: Path) -> Iterator[Placed]:
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except Exception as error:  # pyarrow raises many types for a broken file
        raise SoftPromptError(f"{path}: cannot be read as parquet ({error}).") from error
    if not number:
        raise SoftPromptError(f"{path}: the file has no rows.")
