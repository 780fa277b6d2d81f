"""A prompt of a causal language model as rows of embeddings, which servers take beside token ids."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from ..._types import SoftPromptError
from ...tuner import active_prompt, input_rows, prompts_of
from ...tuner.calls.request import virtual_per_layer

RESCALED = ("gemma", "gemma2")  # of which llama.cpp, and vLLM by its source of 2025, scale what they are given


def rows_of_causal(model: PeftModel, form: str) -> tuple[Tensor, dict[str, Any]]:
    """The rows [P, H] of the active prompt, and what whoever places them must know.

    Raises:
        SoftPromptError: no causal language model, or the prompt is more than rows.
    """
    _, config = active_prompt(model)
    backbone = prompts_of(model).backbone
    if not backbone.generates:
        raise SoftPromptError(
            f"{form} serves causal language models, and this adapter's backbone ({backbone.model_type}) is none; expected an adapter of a model that writes text."
        )
    rows = input_rows(model, form)
    if backbone.model_type in RESCALED:
        raise SoftPromptError(
            f"{form} multiplies embeddings that it is given for {backbone.model_type} by the square root of their width, as it does those of tokens, so the prompt would be another one; use --to peft."
        )
    if virtual_per_layer(backbone, 1):
        raise SoftPromptError(
            f"layers of {backbone.model_type} look tokens up by id, and virtual tokens have none there; {form} would look up another token's. Use --to peft."
        )
    marker = config.marker_token_id
    return rows, {
        "backbone": config.base_model_name_or_path,
        "num_virtual_tokens": len(rows),
        "hidden_size": rows.shape[1],
        "marker_token_id": marker,
    }


def copy_script(name: str, folder: Path) -> None:
    """Put a script of this package into the folder, where it runs without softprompt."""
    text = files(__package__).joinpath("scripts", name).read_text(encoding="utf-8")
    (folder / name).write_text(text, encoding="utf-8")
