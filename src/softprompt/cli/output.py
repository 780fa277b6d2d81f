"""Predicted rows on their way out: JSON lines at once, a table in csv, tsv or parquet at the end."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from .._files import to_json, written_whole
from .._types import SoftPromptError, announce, did_you_mean
from .voice import err

FORMATS = (".jsonl", ".csv", ".tsv", ".parquet")
CHUNK = 4096  # rows of a parquet file that are converted together


def check_path(output: str, source: str) -> None:
    """Raise `SoftPromptError` unless ``output`` is "-" or a file that may be written, of a known format, and not ``source``."""
    path = Path(output)
    if output == "-":
        return
    if path.is_dir():
        raise SoftPromptError(f"--output {output}: expected a file, got a folder.")
    if path.suffix.lower() not in FORMATS:
        got = repr(path.suffix) if path.suffix else "no ending"
        raise SoftPromptError(
            f"--output {output}: expected a name that ends in one of {', '.join(FORMATS)}, or '-' for stdout, got {got}."
            f"{did_you_mean(path.suffix, FORMATS)}"
        )
    if source != "-" and path.exists() and Path(source).exists() and path.samefile(source):
        raise SoftPromptError(f"--output {output}: it is the input; give the predictions a file of their own.")


def json_line(row: Mapping[str, Any], where: str) -> str:
    """Return ``row`` as a line of JSON that any reader takes; a float that is no number is null there.

    Raises:
        SoftPromptError: a value cannot stand in JSON.
    """

    def plain(value: Any) -> str:
        if isinstance(value, date | time):
            return value.isoformat()
        if isinstance(value, Decimal):
            return str(value)
        raise SoftPromptError(
            f"{where}: a column holds {type(value).__name__}, which no line of JSON can hold; leave it out with --columns."
        )

    return to_json(row, ensure_ascii=False, default=plain)


def counted(rows: int) -> str:
    """Say "1 row", or "2 rows"."""
    return f"{rows} row{'' if rows == 1 else 's'}"


class Output:
    """Where predicted rows go: "-" is stdout, anything else a file that is there only when it is whole.

    Until then its rows are JSON lines in a hidden neighbour, ``.NAME.partial``. When something stops the work, the neighbour
    stays, and a message names its place.

    Args:
        path: what `check_path` let pass.
        added: the names of the predicted columns of a table, in order.
        types: columns of the user -> their Arrow types, where they are known.

    Raises:
        SoftPromptError: the file cannot be written.
    """

    def __init__(self, path: str, added: Iterable[str], types: Mapping[str, Any] | None = None):
        self.path = None if path == "-" else Path(path)
        self.added, self.types = list(added), dict(types or {})
        self.rows = 0
        self.columns: dict[str, None] = {}  # the user's, in the order in which they appear
        self.file: TextIO = sys.stdout
        if self.path is None:
            return
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # a line is out when it is made
            self.file = self.partial.open("w", encoding="utf-8", newline="\n", buffering=1)

    def write(self, kept: Mapping[str, Any], predicted: Mapping[str, Any], where: str) -> None:
        """Write the columns that the user keeps, and what was predicted."""
        line = json_line({**kept, **predicted}, where)
        self.columns |= dict.fromkeys(kept)
        if self.path is None:
            print(line, flush=True)
        else:
            with self._writing():
                self.file.write(line + "\n")
        self.rows += 1

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.path is None:
            return
        if kind is not None:
            self._stop()
            return
        try:
            with self._writing():
                self.file.close()
                self._finish()
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        with contextlib.suppress(OSError):  # a full disk fails again
            self.file.close()
        if self.rows:
            told = f"what was predicted before ({counted(self.rows)}) is in {self.partial}, as JSON lines."
        else:
            self.partial.unlink(missing_ok=True)
            told = f"nothing was written to {self.path}."
        err.print(told, markup=False, soft_wrap=True)

    def _finish(self) -> None:
        assert self.path is not None
        suffix = self.path.suffix.lower()
        if suffix == ".jsonl":
            os.replace(self.partial, self.path)
            return
        with written_whole(self.path) as table:
            if suffix == ".parquet":
                _write_parquet(table, self.partial, self.columns, self.added, self.types)
            else:
                _write_fields(table, self.partial, [*self.columns, *self.added], "," if suffix == ".csv" else "\t")
        self.partial.unlink()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SoftPromptError(
                f"--output {self.path}: it cannot be written ({error.strerror or error}); free space, or give another place."
            ) from error


def _flat(lines: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of JSON lines, with one column per class in place of the scores."""
    with lines.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            scores = row.pop("predicted_scores", {})
            yield {**row, **{f"predicted_score_{name}": score for name, score in scores.items()}}


def _write_fields(path: Path, lines: Path, columns: list[str], delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in _flat(lines))


def _cell(value: Any) -> Any:
    """Keep numbers and texts as they are, leave None empty, and write all else (lists, objects, true and false) as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | dict) else value


def _write_parquet(path: Path, lines: Path, own: Iterable[str], added: list[str], types: Mapping[str, Any]) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    schema = {name: types.get(name, pa.null()) for name in own}
    mixed: set[str] = set()
    for chunk in _chunks(_flat(lines)):
        for name in schema.keys() - types.keys() - mixed:
            try:
                more = pa.schema([(name, pa.array([row.get(name) for row in chunk]).type)])
                both = [pa.schema([(name, schema[name])]), more]
                schema[name] = pa.unify_schemas(both, promote_options="permissive").field(name).type
            except (pa.ArrowException, OverflowError):
                mixed.add(name)
                schema[name] = pa.string()
    if mixed:
        announce(
            f"{', '.join(sorted(mixed))} as JSON texts",
            "a column of parquet has one type, and these hold values of several",
        )
    entity = pa.struct([("type", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("text", pa.string())])
    special = {"predicted_tags": pa.list_(pa.string()), "predicted_entities": pa.list_(entity)}
    for name in added:
        schema[name] = special.get(name, pa.float64() if name.startswith("predicted_score") else pa.string())
    whole = pa.schema(list(schema.items()))
    try:
        with parquet.ParquetWriter(path, whole) as writer:
            for chunk in _chunks(_flat(lines)):
                writer.write_table(
                    pa.table([_array(chunk, name, kind, name in mixed) for name, kind in schema.items()], whole)
                )
    except (pa.ArrowException, OverflowError) as error:  # parquet has no objects without fields, for example
        raise SoftPromptError(
            f"the columns {', '.join(schema)} cannot be written as parquet ({error}); leave some out with --columns, or write "
            ".jsonl."
        ) from error


def _array(rows: list[dict[str, Any]], name: str, kind: Any, as_json: bool) -> Any:
    import pyarrow as pa

    values = [row.get(name) for row in rows]
    if as_json:
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    try:
        return pa.array(values, kind)
    except pa.ArrowException:
        return pa.array(values).cast(kind)  # dates and decimals are texts in JSON


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk
