"""``softprompt demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..voice import err, quiet

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
            "--lm",
            help="Label words on the embedded masked language model, in place of a head on the encoder; and prompts that make the causal one write in a tone.",
        ),
    ] = False,
) -> None:
    """Tune on the embedded messages with an embedded backbone, and compare: probe or template, PEFT, ours."""
    quiet()
    from .arms import ENCODER, LANGUAGE_MODEL, folder_of, run_demo
    from .tones import run_tones

    labels, seeds = label or ["tone"], seed or SEEDS
    run_demo(output, labels, seeds, err, LANGUAGE_MODEL if lm else ENCODER)
    if lm and "tone" in labels:
        run_tones(output, seeds[0], err, folder_of(output, LANGUAGE_MODEL, "tone", LANGUAGE_MODEL.arms[-1], seeds[0]))
