"""``softprompt compile`` and ``softprompt export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .predict import Adapter, Backbone
from .voice import quiet

Output = Annotated[Path, typer.Option("--output", "-o", help="A new folder.")]


def compile_(adapter: Adapter, output: Output, backbone: Backbone = None) -> None:
    """Write an adapter's prompt as keys and values: it then costs nothing to make and no position to run.

    For prompts that read no input: in causal models any that enters at layer 0, in BERT and its relatives deep_prompts. Loads
    as any adapter, on the same weights in the same dtype.
    """
    quiet()
    from ..serving import compile_adapter

    config = compile_adapter(adapter, output, backbone)
    layers = f"{config.num_layers} layers of {config.kv_heads} heads"
    print(f"{output}: keys and values of {config.num_virtual_tokens} virtual tokens, {layers}")


def export(
    adapter: Adapter,
    output: Output,
    to: Annotated[
        str,
        typer.Option(
            help="peft (an adapter of its own), vllm (rows and a builder of requests), onnx (a classifier) or gguf (rows, for llama.cpp)."
        ),
    ] = "peft",
    backbone: Backbone = None,
) -> None:
    """Write an adapter in a format that needs no softprompt to load."""
    quiet()
    from ..serving import export_adapter

    print(f"{output}: {export_adapter(adapter, output, to, backbone)}")
