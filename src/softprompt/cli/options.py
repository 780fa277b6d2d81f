"""``softprompt options``: every key that a run takes, with type, default and meaning."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from .._files import to_json
from ..catalog import CATALOG, find_entry
from .voice import table


def method_names(incomplete: str) -> list[str]:
    """List the names that begin with ``incomplete``, for the shell."""
    return [name for name in CATALOG if name.startswith(incomplete)]


def options(
    method: Annotated[
        str | None, typer.Argument(help="Also the keys of this method.", autocompletion=method_names)
    ] = None,
    all_keys: Annotated[
        bool, typer.Option("--all", help="Every field of TrainingArguments, not the main ones.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the keys of `softprompt train` (--set key=value, or lines of --config): type, default, meaning."""
    if method is not None:
        find_entry(method)  # before anything heavy is imported
    from ..training.keys.describe import method_keys, run_keys, training_keys

    groups = {"run": run_keys()}
    if method is not None:
        groups[f"method {method}"] = method_keys(method)
    groups["TrainingArguments"] = training_keys(all_keys)
    if as_json:
        print(to_json({name: [vars(key) for key in keys] for name, keys in groups.items()}, indent=2))
        return
    for name, keys in groups.items():
        lines = [(key.name, key.type, key.default, key.meaning) for key in keys]
        Console().print(table(name, ("key", "type", "default", "meaning"), lines))
