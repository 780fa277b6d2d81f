"""A prompt for llama.cpp: its rows in a GGUF file, and a script that reads them in front of a text."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from ..._types import SoftPromptError
from ...models import TaskCard
from ...tuner import PEFT_ROWS
from .rows import copy_script, rows_of_causal

FILE, SCRIPT = "prompt.gguf", "llama_cpp_prompt.py"


def export_gguf(model: PeftModel, folder: Path, card: TaskCard | None) -> str:
    """Write the active prompt as ``prompt.gguf`` (one F32 tensor [P, H]) and ``llama_cpp_prompt.py``.

    Raises:
        SoftPromptError: the package gguf is missing, no causal language model, the prompt is more than rows of embeddings, or it stands
            at a marker.
    """
    try:
        import gguf
    except ImportError as error:
        raise SoftPromptError(
            "--to gguf needs the package gguf; install it with pip install 'softprompt[export]'."
        ) from error
    rows, facts = rows_of_causal(model, "GGUF")
    if facts["marker_token_id"] is not None:
        raise SoftPromptError(
            "the script for llama.cpp reads a prompt in front of the text; this one stands at a marker inside it. Use --to vllm."
        )
    folder.mkdir(parents=True)
    writer = gguf.GGUFWriter(folder / FILE, "softprompt")
    writer.add_name(str(facts["backbone"] or "softprompt"))
    writer.add_uint32("softprompt.num_virtual_tokens", len(rows))
    writer.add_uint32("softprompt.hidden_size", rows.shape[1])
    writer.add_tensor(PEFT_ROWS, rows.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    copy_script(SCRIPT, folder)
    return f"{len(rows)} rows of {rows.shape[1]} and {SCRIPT}"
