"""``softprompt predict`` and ``softprompt eval``: a trained adapter on rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .._types import SoftPromptError, check_choice
from .voice import err, quiet


def evaluate(
    adapter: Annotated[Path, typer.Argument(help="Folder that `softprompt train` wrote.")],
    data: Annotated[str, typer.Option(help="File, folder or hub name with labelled rows.")],
    split: Annotated[str, typer.Option(help="train, dev or test; a single file is used whole.")] = "test",
    backbone: Annotated[str | None, typer.Option(help="Another place where the same backbone lies.")] = None,
) -> None:
    """Evaluate a trained adapter on labelled rows; prints one JSON line."""
    quiet()
    from ..data import load_rows, load_task
    from ..training import Predictor

    predictor = Predictor(adapter, backbone)
    columns: dict[str, Any] = predictor.card.columns or {}
    names = predictor.card.label_names or None
    if Path(data).is_file():
        rows, split = load_rows(data, label_names=names, **columns), "all"
    else:
        task = load_task(data, label_names=names, **columns)
        splits = {"train": task.train, "dev": task.dev, "test": task.test}
        check_choice("split", split, [name for name, found in splits.items() if found is not None])
        rows = splits[split]
    print(json.dumps({"data": data, "split": split, **predictor.evaluate(rows)}))


def predict(
    adapter: Annotated[Path, typer.Argument(help="Folder that `softprompt train` wrote.")],
    input: Annotated[
        str, typer.Option(help="jsonl, json, csv, tsv or parquet file; '-' reads jsonl from stdin.")
    ] = "-",
    output: Annotated[str, typer.Option(help="jsonl file to write; '-' writes to stdout.")] = "-",
    plain: Annotated[bool, typer.Option("--plain", help="Input lines are plain texts, not JSON.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a completion.")] = 64,
    backbone: Annotated[str | None, typer.Option(help="Another place where the same backbone lies.")] = None,
) -> None:
    """Predict rows: file or stdin in, one JSON line per row out, in the same order."""
    quiet()
    from ..results import write_text
    from ..training import Predictor

    predictor = Predictor(adapter, backbone)
    columns = predictor.card.columns or {}
    kinds = {"classification": ("text", "text_pair"), "completion": ("prompt",), "tokens": ("text", "tokens")}
    wanted = {name: columns.get(f"{name}_column", name) for name in kinds[predictor.card.kind]}
    rows = []
    for row in _read_input(input, plain, next(iter(wanted))):
        rows.append({**row, **{name: row[column] for name, column in wanted.items() if column in row}})
    found = predictor.predict(rows, max_new_tokens)
    true_ones = ("label", "completion", "tags", "entities")  # the row may hold them
    named = (
        {f"predicted_{key}" if key in true_ones else key: value for key, value in prediction.items()}
        for prediction in found
    )
    lines = "".join(
        json.dumps({**row, **prediction}, ensure_ascii=False) + "\n"
        for row, prediction in zip(rows, named, strict=True)
    )
    if output == "-":
        sys.stdout.write(lines)
    else:
        write_text(output, lines)
        err.print(f"{len(found)} rows written to {output}", markup=False)


def _read_input(source: str, plain: bool, text_column: str) -> list[dict[str, Any]]:
    from ..data import parse_jsonl, read_rows

    if plain:
        text = sys.stdin.read() if source == "-" else _read_text(source)
        return [{text_column: line} for line in text.splitlines() if line.strip()]
    if source == "-":
        return parse_jsonl("stdin", sys.stdin.read()).rows
    return read_rows(source).rows


def _read_text(source: str) -> str:
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SoftPromptError(f"{source}: cannot be read as UTF-8 text ({error}).") from error
