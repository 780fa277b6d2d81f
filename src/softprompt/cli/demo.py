"""``softprompt demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .voice import err, quiet

SEEDS = [13, 21, 42]


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the demo's runs and table.")] = Path("demo-output"),
    label: Annotated[list[str] | None, typer.Option(help="queue or tone; give it twice for both.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of few-shot runs, repeatable; the first is that of the full run.")
    ] = None,
) -> None:
    """Tune on the embedded messages with the embedded encoder, and compare: probe, PEFT, ours."""
    quiet()
    from .arms import run_demo

    run_demo(output, label or ["tone"], seed or SEEDS, err)
