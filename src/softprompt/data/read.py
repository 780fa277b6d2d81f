"""Read the rows of a file, each with the place it came from, so that an error can name the line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import reprlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet  # type: ignore[import-untyped]

from .._types import SoftPromptError, did_you_mean

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
MANY_LETTERS = 500
LONE = re.compile("[\ud800-\udfff]")  # half of a pair of UTF-16: no character, and no encoder takes it
ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")  # a half as JSON may write it, of a whole pair, too

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
shown = _short.repr  # of a value in a message: never long, whatever is nested in it


@dataclass(frozen=True)
class Rows:
    """The rows of one file or split.

    Attributes:
        name: what errors call the file.
        rows: one dict per row, column -> value.
        numbers: the number of each row, counted from 1: its line in a text format, else its place in the list.
        unit: "line" or "row", which ``numbers`` count.
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
                strange = row if name not in self.rows[0] else [key for key in row if key not in self.rows[0]]
                raise SoftPromptError(
                    f"{self.where(i)}: no column {name!r}; columns there: {listed(sorted(row))}."
                    f"{did_you_mean(name, strange)} Set {option} to the column that is meant."
                )
        return [row[name] for row in self.rows]

    def texts(self, name: str, option: str) -> list[str]:
        """Return the texts of column ``name`` as they stand in the file.

        Raises:
            SoftPromptError: a row lacks the column, or its text is empty or no string.
        """
        values = self.column(name, option)
        for i, value in enumerate(values):
            if is_blank(value):
                more = sum(map(is_blank, values[i + 1 :]))
                also = f" ({more} more such rows)" if more else ""
                raise SoftPromptError(
                    f"{self.where(i)}: empty text in column {name!r}{also}; fill it or remove the row. "
                    "In training blank_rows=drop leaves such rows out."
                )
            if not isinstance(value, str):
                raise SoftPromptError(
                    f"{self.where(i)}: expected a text in column {name!r}, got {type(value).__name__} {shown(value)}."
                )
        return values

    def blank(self, columns: Sequence[str]) -> list[int]:
        """Return the indices of the rows that hold nothing in one of ``columns``."""
        return [i for i, row in enumerate(self.rows) if any(is_blank(row.get(name, ...)) for name in columns)]

    def without(self, indices: Sequence[int]) -> Rows:
        """Return the rows at all other indices, each with its place."""
        gone = set(indices)
        kept = [i for i in range(len(self)) if i not in gone]
        return Rows(self.name, [self.rows[i] for i in kept], [self.numbers[i] for i in kept], self.unit)


def listed(names: Iterable[str]) -> str:
    """Join names for a message, as many as a reader takes in."""
    text = ", ".join(names) or "none"
    return text if len(text) <= MANY_LETTERS else f"{text[:MANY_LETTERS]}..."


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN (as pandas writes None), white space, or a list of nothing."""
    if isinstance(value, list):
        return all(item is None or (isinstance(item, str) and not item.strip()) for item in value)
    if isinstance(value, float):
        return value != value
    return value is None or (isinstance(value, str) and not value.strip())


def check_unicode(text: str, where: str) -> str:
    """Return ``text``; raise `SoftPromptError` where it holds a lone surrogate."""
    if LONE.search(text):
        raise SoftPromptError(
            f"{where}: the text holds a lone surrogate, {LONE.findall(text)[0]!r}, "
            "which is not valid Unicode; remove it."
        )
    return text


def read_rows(path: str | Path) -> Rows:
    """Read a ``.jsonl``, ``.json`` (a list of objects), ``.csv``, ``.tsv`` (both with a header) or ``.parquet`` file.

    Raises:
        SoftPromptError: the file is missing, empty, of another format or not UTF-8, or a row (named by its line) is
            malformed.
    """
    path = Path(path)
    name, suffix = str(path), path.suffix.lower()
    if not os.path.isfile(path):  # unlike Path.is_file it takes names that are too long for any file
        raise SoftPromptError(f"{name}: expected a file, got {_instead(path)}")
    if suffix not in FORMATS:
        raise SoftPromptError(f"{name}: expected one of the formats {', '.join(FORMATS)}, got {suffix!r}.")
    if path.stat().st_size == 0:
        raise SoftPromptError(f"{name}: the file is empty.")
    if suffix == ".parquet":
        table = _parquet(path)
    elif suffix == ".json":
        table = _json(name, _decode(path))
    elif suffix == ".jsonl":
        table = parse_jsonl(name, _decode(path))
    else:
        table = _numbered(name, _fields(name, _decode(path), "," if suffix == ".csv" else "\t"))
    if not table.rows:
        raise SoftPromptError(f"{name}: the file has no rows.")
    return table


def read_object(path: Path) -> dict[str, Any]:
    """Read a ``.json`` file of one object.

    Raises:
        SoftPromptError: the file cannot be read, or holds no object.
    """
    if not os.path.isfile(path):
        raise SoftPromptError(f"{path}: expected a file, got {_instead(path)}")
    text = _decode(path)
    document = _load(text, str(path))
    if not isinstance(document, dict):
        raise SoftPromptError(f"{path}: expected an object, got {type(document).__name__}.")
    return _object(document, str(path), _may_be_lone(text))


def names_beside(path: Path) -> list[str]:
    """Return the other names in the folder that should hold ``path``, sorted; none where that folder is missing."""
    return [name for name in _names_in(path.parent) if name != path.name]


def data_files(folder: Path) -> list[str]:
    """Return the sorted names of the files in ``folder`` that are of one of the formats."""
    there = [name for name in _names_in(folder) if Path(name).suffix.lower() in FORMATS]
    return [name for name in there if os.path.isfile(folder / name)]


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _instead(path: Path) -> str:
    """What is where a file should be."""
    if os.path.isdir(path):
        return f"a folder. Data files in it: {', '.join(data_files(path)) or 'none'}."
    if os.path.islink(path):
        return f"a link to {os.readlink(path)!r}, where nothing is."
    if os.path.exists(path):
        return "something else (a device or a pipe)."
    near = [name for name in data_files(path.parent) if name != path.name]
    return f"no such file.{did_you_mean(path.name, near)}"


def parse_jsonl(name: str, text: str, first: int = 1) -> Rows:
    """Read JSON lines from a string; ``name`` is what errors call it, ``first`` the number of its first line.

    Raises:
        SoftPromptError: a line is not a JSON object.
    """
    return _numbered(name, _json_lines(name, text, first))


def _numbered(name: str, pairs: Iterable[tuple[int, dict[str, Any]]]) -> Rows:
    numbered = list(pairs)
    return Rows(name, [row for _, row in numbered], [number for number, _ in numbered], "line")


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SoftPromptError(f"{path}: cannot be read ({error.strerror}).") from error
    if data.count(0) > len(data) // 4:
        raise SoftPromptError(f"{path}: many bytes are 0, as in UTF-16 or a damaged file; save it as UTF-8.")
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
        row = _load(line.rstrip(), name, number)  # a line break would count as a line of its own
        yield number, _object(row, f"{name}, line {number}", _may_be_lone(line))


def _json(name: str, text: str) -> Rows:
    hint = " One object per line is the format .jsonl: rename the file."
    rows = _load(text, name, if_more_follows=hint)
    if not isinstance(rows, list):
        raise SoftPromptError(f"{name}: expected a list of objects, got {type(rows).__name__}.")
    numbers, unsure = list(range(1, len(rows) + 1)), _may_be_lone(text)
    objects = [_object(row, f"{name}, row {n}", unsure) for n, row in zip(numbers, rows, strict=True)]
    return Rows(name, objects, numbers, "row")


class _Twice(dict[str, Any]):
    """A JSON object that names a key more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.keys_named_twice = sorted({key for key in keys if keys.count(key) > 1})


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Twice(pairs)


def _load(text: str, name: str, line: int = 1, if_more_follows: str = "") -> Any:
    """Parse JSON that begins at ``line`` of the file ``name``; the hint is for JSON with something behind it."""
    hint = ""
    try:
        return json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        at, what = error.pos, f"{error.msg}, column {error.colno}"
        hint = if_more_follows if error.msg == "Extra data" else ""
    except RecursionError:
        at, what = _deepest(text), "lists or objects are nested too deeply"
    except ValueError:
        digits = re.search(rf"[0-9]{{{sys.get_int_max_str_digits()},}}", text)
        at, what = digits.start() if digits else 0, "a number of too many digits"
    line += text.count("\n", 0, at)
    raise SoftPromptError(f"{name}, line {line}: invalid JSON ({what}).{hint}")


def _deepest(text: str) -> int:
    """Where the brackets of ``text`` are nested most."""
    depth, most, where = 0, 0, 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{\]}]', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > most:
            most, where = depth, match.start()
    return where


def _object(row: object, where: str, unsure: bool) -> dict[str, Any]:
    """Return ``row`` if it is an object; its texts are looked at where ``unsure`` that all of them are Unicode."""
    if not isinstance(row, dict):
        raise SoftPromptError(
            f'{where}: expected an object like {{"text": ...}}, got {type(row).__name__} {shown(row)}.'
        )
    if isinstance(row, _Twice):
        raise SoftPromptError(
            f"{where}: the object names {', '.join(map(repr, row.keys_named_twice))} more than once; keep one."
        )
    if unsure:
        for column, value in row.items():
            for text in _strings([column, value]):
                check_unicode(text, f"{where}, column {column!r}")
    return row


def _may_be_lone(text: str) -> bool:
    return bool(ESCAPED.search(text) or LONE.search(text))


def _strings(value: Any) -> Iterator[str]:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict | list):
            todo += [*item, *item.values()] if isinstance(item, dict) else item


def _fields(name: str, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    _check_delimiter(name, text, delimiter)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    again: list[str] = []
    line = 1  # where the row begins; a quoted field may hold line breaks
    try:
        with _cells_up_to(len(text)):
            for fields in reader:
                if not fields:  # a blank line
                    pass
                elif header is None:
                    header, again = _header(name, line, fields), fields
                elif len(fields) != len(header):
                    raise SoftPromptError(
                        f"{name}, line {line}: expected {len(header)} fields ({listed(header)}), got {len(fields)}. "
                        f"Quote fields that contain {DELIMITERS[delimiter]} or a line break."
                    )
                elif fields == again:
                    raise SoftPromptError(f"{name}, line {line}: the header stands here once more; remove this line.")
                else:
                    yield line, dict(zip(header, fields, strict=True))
                line = reader.line_num + 1
    except csv.Error as error:
        raise SoftPromptError(
            f'{name}, line {line}: {error}. Put fields that contain " into quotes and write it there twice ("").'
        ) from error


def _check_delimiter(name: str, text: str, delimiter: str) -> None:
    """Raise `SoftPromptError` where the header is parted by something else than ``delimiter``."""
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "").strip("\n")
    other = max(DELIMITERS, key=first.count)
    if delimiter not in first and other in first:
        advice = {",": "rename the file to .csv", "\t": "rename the file to .tsv"}.get(
            other,
            f"write it with commas (pandas: pd.read_csv(path, sep={other!r}).to_csv(path, index=False))",
        )
        raise SoftPromptError(
            f"{name}: expected {DELIMITERS[delimiter]} between the names of the header, got {first!r:.100}; "
            f"the delimiter seems to be {DELIMITERS[other]}: {advice}."
        )


@contextmanager
def _cells_up_to(length: int) -> Iterator[None]:
    """Let csv read cells of ``length`` characters; the limit is one of the whole process, so it is put back."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, min(length, 2**31 - 1)))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _header(name: str, line: int, fields: Iterable[str]) -> list[str]:
    header = [field.strip() for field in fields]
    twice = sorted({field for field in header if header.count(field) > 1})
    if twice:
        raise SoftPromptError(f"{name}, line {line}: the header names {', '.join(map(repr, twice))} more than once.")
    return header


def _parquet(path: Path) -> Rows:
    try:
        # no partitioning: a folder named a=b would become a column
        rows = parquet.read_table(path, partitioning=None).to_pylist()
    except Exception as error:  # pyarrow raises many types for a broken file
        raise SoftPromptError(f"{path}: cannot be read as parquet ({' '.join(str(error).split()):.300}).") from error
    return Rows(str(path), rows, list(range(1, len(rows) + 1)), "row")
