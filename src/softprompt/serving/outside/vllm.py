"""A prompt for vLLM: its rows, and a script that builds requests with them."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file

from ..._files import write_json
from ..._types import announce
from ...models import TaskCard
from ...tuner import PEFT_ROWS, prompts_of
from .rows import copy_script, rows_of_causal

BLOCK = 16  # positions of a page of vLLM's cache
SCRIPT = "vllm_requests.py"


def export_vllm(model: PeftModel, folder: Path, card: TaskCard | None) -> str:
    """Write the active prompt as ``prompt.safetensors`` ([P, H], float32), ``prompt.json`` and ``vllm_requests.py``.

    The script builds a mixed ``EmbedsPrompt``, a body of the completions endpoint and a part of a chat message; it needs torch and
    safetensors alone. For a prompt at a marker the file has the marker's own embedding, too: in a chat no token stands for it.

    Raises:
        SoftPromptError: no causal language model, or the prompt is more than rows of embeddings.
    """
    rows, facts = rows_of_causal(model, "vLLM")
    tensors = {PEFT_ROWS: rows}
    if (marker := facts["marker_token_id"]) is not None:
        embed = prompts_of(model).backbone.embed
        with torch.no_grad():
            row = embed(torch.tensor([marker], device=embed.weight.device))
        tensors["marker_embedding"] = row.float().cpu()
    length = len(rows) + (marker is not None)
    if length % BLOCK:
        announce(
            f"{length} positions are no multiple of {BLOCK}",
            f"vLLM shares whole pages of {BLOCK} between requests, so the last {length % BLOCK} are made for each anew; the next length without loss is {length + -length % BLOCK}",
        )
    folder.mkdir(parents=True)
    save_file(tensors, folder / "prompt.safetensors", metadata={"format": "pt"})
    write_json(folder / "prompt.json", facts)
    copy_script(SCRIPT, folder)
    return f"{len(rows)} rows of {rows.shape[1]} and {SCRIPT}, for vllm>=0.26"
