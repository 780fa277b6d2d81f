"""``softprompt push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._files import to_json
from .voice import quiet


def push(
    run: Annotated[Path, typer.Argument(help="Folder that `softprompt train` wrote.")],
    name: Annotated[str, typer.Argument(help="Name on the Hugging Face hub, owner/name; made where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Only the owner may read it.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made where there is none.")] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    include_run: Annotated[
        bool,
        typer.Option(
            "--include-run",
            help="Also push run.json and what the run recorded (the prompt's shape, the search of layers); checkpoints stay here.",
        ),
    ] = False,
    backbone: Annotated[
        str | None, typer.Option(help="Name of the backbone on the hub, where the run was given a folder.")
    ] = None,
) -> None:
    """Push a trained adapter to the Hugging Face hub: weights, config, task.json, model card and result.json; prints one JSON line.

    The token is that of huggingface_hub (HF_TOKEN, or hf auth login). Paths of this machine are not pushed. Afterwards the name
    stands wherever a run's folder does: softprompt predict owner/name.
    """
    quiet()
    from ..training.output.share import push_run

    print(to_json(push_run(run, name, private, revision, message, include_run, backbone)))
