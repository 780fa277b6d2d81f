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
    lm: Annotated[
        bool,
        typer.Option(
            "--lm", help="Label words on the embedded masked language model, in place of a head on the encoder."
        ),
    ] = False,
) -> None:
    """Tune on the embedded messages with an embedded backbone, and compare: probe or template, PEFT, ours."""
    quiet()
    from .arms import ENCODER, LANGUAGE_MODEL, run_demo

    run_demo(output, label or ["tone"], seed or SEEDS, err, LANGUAGE_MODEL if lm else ENCODER)
