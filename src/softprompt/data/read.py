"""Rows of a file on disk, each with the place it came from, so that an error can name the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet  # type: ignore[import-untyped]

from .._types import SoftPromptError, did_you_mean

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Rows:
    """The rows of one file or split.

    Attributes:
        name: what errors call the file.
        rows: one dict per row, column -> value.
        numbers: for each row its line (text formats, from 1) or its place in the list (``unit`` "row").
        unit: "line" or "row".
    """

    name: str
    rows: list[dict[str, Any]]
    numbers: list[int]
    unit: str

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        """Say where row ``index`` stands, as in ``train.csv, line 12``."""
        return f"{self.name}, {self.unit} {self.numbers[index]}"

    def column(self, name: str, option: str) -> list[Any]:
        """Return the values of column ``name``; ``option`` is the argument that chooses the column.

        Raises:
            SoftPromptError: a row lacks the column.
        """
        for i, row in enumerate(self.rows):
            if name not in row:
                there = ", ".join(sorted(row)) or "none"
                raise SoftPromptError(
                    f"{self.where(i)}: no column {name!r}; columns there: {there}.{did_you_mean(name, row)} "
                    f"Set {option} to the column that is meant."
                )
        return [row[name] for row in self.rows]

    def texts(self, name: str, option: str) -> list[str]:
        """Return the texts of column ``name`` as they stand in the file.

        Raises:
            SoftPromptError: a row lacks the column, or its text is empty or no string.
        """
        values = self.column(name, option)
        for i, value in enumerate(values):
            if value is None or (isinstance(value, str) and not value.strip()):
                more = sum(v is None or (isinstance(v, str) and not v.strip()) for v in values[i + 1 :])
                also = f" ({more} more such rows)" if more else ""
                raise SoftPromptError(
                    f"{self.where(i)}: empty text in column {name!r}{also}; fill it or remove the row."
                )
            if not isinstance(value, str):
                raise SoftPromptError(
                    f"{self.where(i)}: expected a text in column {name!r}, got {type(value).__name__} {value!r}."
                )
        return values


def read_rows(path: str | Path) -> Rows:
    """Read a ``.jsonl``, ``.json`` (a list of objects), ``.csv``, ``.tsv`` (both with a header) or ``.parquet`` file.

    Raises:
        SoftPromptError: the file is missing, empty, of another format, not UTF-8, or a row is malformed (with its line).
    """
    path = Path(path)
    name, suffix = str(path), path.suffix.lower()
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise SoftPromptError(f"{name}: expected a file, got {got}.{did_you_mean(path.name, names_beside(path))}")
    if suffix not in FORMATS:
        raise SoftPromptError(f"{name}: expected one of the formats {', '.join(FORMATS)}, got {suffix!r}.")
    if path.stat().st_size == 0:
        raise SoftPromptError(f"{name}: the file is empty.")
    if suffix == ".parquet":
        table = _parquet(path)
    elif suffix == ".json":
        table = _json(name, _decode(path))
    else:
        text = _decode(path)
        pairs = (
            _json_lines(name, text) if suffix == ".jsonl" else _fields(name, text, "," if suffix == ".csv" else "\t")
        )
        numbered = list(pairs)
        table = Rows(name, [row for _, row in numbered], [number for number, _ in numbered], "line")
    if not table.rows:
        raise SoftPromptError(f"{name}: the file has no rows.")
    return table


def names_beside(path: Path) -> list[str]:
    """Return the sorted names in the folder that should hold ``path``; none where that folder is missing."""
    return sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []


def parse_jsonl(name: str, text: str, first: int = 1) -> Rows:
    """Read JSON lines from a string; ``name`` is what errors call it, ``first`` the number of its first line.

    Raises:
        SoftPromptError: a line is not a JSON object.
    """
    numbered = list(_json_lines(name, text, first))
    return Rows(name, [row for _, row in numbered], [number for number, _ in numbered], "line")


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SoftPromptError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8."
        ) from error


def _json_lines(name: str, text: str, first: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not str.splitlines: it also splits at characters that JSON allows inside a string.
    for number, line in enumerate(io.StringIO(text, newline=None), first):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip())  # a line break would count as a line of its own
        except json.JSONDecodeError as error:
            raise SoftPromptError(
                f"{name}, line {number}: invalid JSON ({error.msg}, column {error.colno})."
            ) from error
        yield number, _object(row, f"{name}, line {number}")


def _json(name: str, text: str) -> Rows:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " One object per line is the format .jsonl: rename the file." if error.msg == "Extra data" else ""
        raise SoftPromptError(
            f"{name}, line {error.lineno}: invalid JSON ({error.msg}, column {error.colno}).{hint}"
        ) from error
    if not isinstance(rows, list):
        raise SoftPromptError(f"{name}: expected a list of objects, got {type(rows).__name__}.")
    numbers = list(range(1, len(rows) + 1))
    return Rows(name, [_object(row, f"{name}, row {n}") for n, row in zip(numbers, rows, strict=True)], numbers, "row")


def _object(row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SoftPromptError(
            f'{where}: expected an object like {{"text": ...}}, got {type(row).__name__} {row!r:.60}.'
        )
    return row


def _fields(name: str, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1  # where the row begins; a quoted field may hold line breaks
    try:
        for fields in reader:
            if header is None:
                header = _header(name, fields)
            elif fields:  # a blank line has none
                if len(fields) != len(header):
                    raise SoftPromptError(
                        f"{name}, line {line}: expected {len(header)} fields ({', '.join(header)}), got {len(fields)}. "
                        f"Quote fields that contain {'a comma' if delimiter == ',' else 'a tab'} or a line break."
                    )
                yield line, dict(zip(header, fields, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise SoftPromptError(
            f'{name}, line {line}: {error}. Put fields that contain " into quotes and write it there twice ("").'
        ) from error


def _header(name: str, fields: Iterable[str]) -> list[str]:
    header = [field.strip() for field in fields]
    twice = sorted({field for field in header if header.count(field) > 1})
    if twice:
        raise SoftPromptError(f"{name}, line 1: the header names {', '.join(map(repr, twice))} more than once.")
    return header


def _parquet(path: Path) -> Rows:
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow raises many types for a broken file
        raise SoftPromptError(f"{path}: cannot be read as parquet ({error}).") from error
    return Rows(str(path), rows, list(range(1, len(rows) + 1)), "row")
