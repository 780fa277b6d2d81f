"""Prompts as PEFT's own adapters, which load without softprompt, and PEFT's as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor

from ..._types import SoftPromptError
from ...prompts import CompiledPrompt
from ..config import SoftPromptConfig
from ..saved.strict import PREFIX, PROMPTS, read_adapter_config, read_weights
from ..state import prompts_of
from .collapse import active_prompt
from .compiled import made_alone

PEFT_ROWS = "prompt_embeddings"  # what PEFT calls the one tensor of its prompts
THEIRS = ("PROMPT_TUNING", "PREFIX_TUNING", "CARTRIDGE")


def input_rows(model: PeftModel, form: str) -> Tensor:
    """The active prompt as rows of embeddings [P, H], float32, for a ``form`` that holds nothing else.

    Raises:
        SoftPromptError: the prompt is more than that: it reads its input, is keys and values, enters layers, or keeps an input delta.
    """
    prompt, config = active_prompt(model)
    if prompt.depends_on_input:
        raise SoftPromptError("a prompt that depends on the input cannot be exported as a constant prefix.")
    if isinstance(prompt, CompiledPrompt):
        raise SoftPromptError(
            f"{form} holds virtual tokens, not keys and values; export the adapter that this one was compiled from, or use --to peft (export_prefix_tuning)."
        )
    with torch.no_grad():
        parts = prompt()
    if config.placement != "input":
        raise SoftPromptError(
            f"{form} holds one [P, H] matrix at the input; this prompt enters {len(parts.prefix)} layers. Train one with placement='input'."
        )
    if parts.input_delta is not None and bool(parts.input_delta.any()):
        raise SoftPromptError(
            f"{form} cannot hold an input delta; this prompt changes the input embeddings too (DePT, EPT). Keep it in the softprompt format."
        )
    return parts.prefix[0].detach().float().cpu().contiguous()


def export_prompt_tuning(model: PeftModel, folder: str | Path) -> Path:
    """Write the active prompt as PEFT's own PROMPT_TUNING adapter, which loads without softprompt, with equal outputs.

    Raises:
        SoftPromptError: the prompt has more than an input prefix (it is deep, or keeps an input delta), or the task's head
            reads positions that PEFT's prompt tuning moves (classification, token and question tasks).
    """
    prompt, config = active_prompt(model)
    task = str(getattr(config.task_type, "value", config.task_type))
    if task not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        raise SoftPromptError(
            f"export needs task_type CAUSAL_LM or SEQ_2_SEQ_LM, got {task}: PEFT's prompt tuning keeps virtual tokens in the output, so other heads would read different positions."
        )
    if prompt.marker is not None:
        raise SoftPromptError("PROMPT_TUNING stands in front of the input; this prompt stands at a marker inside it.")
    rows = input_rows(model, "PROMPT_TUNING")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if task == "SEQ_2_SEQ_LM":  # PEFT stores a second block for the decoder, which it never reads in prompt tuning
        rows = torch.cat([rows, rows])
    save_file({PEFT_ROWS: rows}, folder / WEIGHTS, metadata={"format": "pt"})
    PromptTuningConfig(
        task_type=task,
        num_virtual_tokens=prompt.num_virtual_tokens,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    ).save_pretrained(str(folder))
    return folder


def export_prefix_tuning(model: PeftModel, folder: str | Path) -> Path:
    """Write the active prompt as PEFT's own PREFIX_TUNING adapter, its keys and values; it loads without softprompt.

    Outputs are equal on rows without padding on the left. With it PEFT counts padding as positions: pass
    ``position_ids = attention_mask.cumsum(1) - 1``, as ``generate`` does by itself; in sliding windows padding then stands between prompt
    and text.

    Raises:
        SoftPromptError: no compiled form exists (see `softprompt.compile`), or the prompt changes the embeddings.
    """
    prompt, config = active_prompt(model)
    task = None if config.task_type is None else str(getattr(config.task_type, "value", config.task_type))
    if task is None:
        raise SoftPromptError("PREFIX_TUNING needs a task_type, which PEFT has none of for this head; export another.")
    if (delta := prompt.input_delta()) is not None and bool(delta.any()):
        raise SoftPromptError(
            "PREFIX_TUNING cannot hold an input delta; this prompt changes the input embeddings too (DePT, EPT). Keep it in the softprompt format."
        )
    state = prompts_of(model)
    if isinstance(prompt, CompiledPrompt):
        keys, values = (part.detach().float() for part in prompt.keys_and_values())
    else:
        keys, values = made_alone(state, prompt)
    layers, heads, length, width = keys.shape
    pairs = torch.stack([keys, values], 1)  # PEFT's order: layer l has its key at 2 l and its value at 2 l + 1
    rows = pairs.permute(3, 0, 1, 2, 4).reshape(length, layers * 2 * heads * width)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PEFT_ROWS: rows.cpu().contiguous(), **_heads(model)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    PrefixTuningConfig(
        task_type=task,
        num_virtual_tokens=length,
        num_layers=layers,
        num_attention_heads=heads,  # of keys and values: PEFT views the rows so
        token_dim=heads * width,
        encoder_hidden_size=heads * width,
        num_transformer_submodules=1,
        base_model_name_or_path=config.base_model_name_or_path,
        modules_to_save=config.modules_to_save,
        inference_mode=True,
    ).save_pretrained(str(folder))
    return folder


def _heads(model: PeftModel) -> dict[str, Tensor]:
    """The heads of the active adapter, by the names that PEFT's prompt methods save them under."""
    base, name = model.get_base_model(), model.active_adapter
    return {
        f"base_model.{place}.{key}": value.detach().cpu().contiguous().clone()
        for place, module in base.named_modules()
        if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save
        for key, value in module.modules_to_save[name].state_dict().items()
    }


def import_peft(source: str | Path, folder: str | Path) -> Path:
    """Write PEFT's PROMPT_TUNING, PREFIX_TUNING or CARTRIDGE adapter in ``source`` as one of ours into ``folder``.

    Virtual tokens become an input prompt, keys and values a compiled one: both then join mixed batches. Outputs are equal on rows without
    padding, and here do not change with it. No backbone is needed; keys and values of another one are refused by their shape alone.

    Raises:
        SoftPromptError: another PEFT method, an encoder-decoder's PREFIX_TUNING, PROMPT_TUNING with a classifier (which reads a virtual
            token there, and the text here), or a damaged folder.
    """
    source, config = Path(source), read_adapter_config(source)
    if Path(folder).exists() and source.samefile(folder):
        raise SoftPromptError(f"{folder}: expected another folder than that of the adapter which is read.")
    kind, task = (str(getattr(value, "value", value)) for value in (config.peft_type, config.task_type))
    if kind not in THEIRS:
        raise SoftPromptError(f"{source}: expected a PEFT adapter of {', '.join(THEIRS)}, got {kind}.")
    weights = read_weights(source)
    if (rows := weights.pop(PEFT_ROWS, None)) is None or rows.dim() != 2:
        raise SoftPromptError(
            f"{source}: expected a tensor {PEFT_ROWS} of two dimensions in {WEIGHTS}; save the adapter again."
        )
    if task in ("SEQ_2_SEQ_LM",) and kind != "PROMPT_TUNING":
        raise SoftPromptError(f"{source}: {kind} of an encoder-decoder prompts its decoder, which softprompt does not.")
    if kind == "PROMPT_TUNING" and task not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        raise SoftPromptError(
            f"{source}: PROMPT_TUNING with task_type {task} was trained with a head that reads virtual tokens, and ours reads the text; train it again."
        )
    made, tensors = _prompt_of(source, config, kind, rows)
    named_there = [
        name for name in getattr(config, "modules_to_save", None) or () if any(f".{name}." in key for key in weights)
    ]
    made.modules_to_save = sorted(named_there) or None
    heads = {PREFIX + key.removeprefix("base_model."): value for key, value in weights.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"{PREFIX}{PROMPTS}{name}": value.contiguous() for name, value in tensors.items()}
    save_file(named | heads, folder / WEIGHTS, metadata={"format": "pt"})
    made.save_pretrained(str(folder))
    return folder


def _prompt_of(source: Path, config: PeftConfig, kind: str, rows: Tensor) -> tuple[SoftPromptConfig, dict[str, Tensor]]:
    common: dict[str, Any] = {
        "task_type": config.task_type,
        "base_model_name_or_path": config.base_model_name_or_path,
        "inference_mode": True,
    }
    length, wanted = len(rows), int(getattr(config, "num_virtual_tokens", 0) or 0)
    if kind == "PROMPT_TUNING":
        rows = rows[:wanted]  # of an encoder-decoder PEFT keeps a second block for the decoder, which it never reads
        if len(rows) != wanted:
            raise SoftPromptError(f"{source}: expected {wanted} virtual tokens, as its config says, got {length}.")
        return SoftPromptConfig(num_virtual_tokens=wanted, **common), {"embedding": rows.float()[None]}
    layers, heads, width = (
        int(getattr(config, name, 0) or 0) for name in ("num_layers", "num_attention_heads", "token_dim")
    )
    if not (layers and heads and width) or rows.shape[1] != layers * 2 * width or width % heads or length != wanted:
        raise SoftPromptError(
            f"{source}: expected rows [num_virtual_tokens, num_layers * 2 * token_dim] = [{wanted}, {layers * 2 * width}], got {list(rows.shape)}; save the adapter again."
        )
    pairs = rows.float().view(length, layers, 2, heads, width // heads).permute(1, 2, 3, 0, 4)
    made = SoftPromptConfig(
        num_virtual_tokens=length,
        prompt="compiled",
        placement="deep",
        kv_heads=heads,
        head_dim=width // heads,
        **common,
    )
    return made, {"keys": pairs[:, 0], "values": pairs[:, 1]}
