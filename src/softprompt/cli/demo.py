"""``softprompt demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .voice import err, quiet


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the demo's runs and table.")] = Path("demo-output"),
    label: Annotated[list[str] | None, typer.Option(help="queue or tone; give it twice for both.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every run.")] = 13,
) -> None:
    """Tune on the embedded messages with the embedded encoder, and compare: probe, PEFT, ours."""
    quiet()
    from .arms import run_demo

    run_demo(output, label or ["tone"], seed, err)
