"""A prompt in other forms: collapsed to constants, or as PEFT's own prompt tuning."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, PromptTuningConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from safetensors.torch import save_file
from torch import nn

from .._types import SoftPromptError
from ..prompts import PlainPrompt, Prompt
from .config import SoftPromptConfig
from .model import SoftPromptModel
from .register import NAME


def active_prompt(model: PeftModel) -> tuple[Prompt, SoftPromptConfig]:
    """The active prompt of a PEFT model and its config.

    Raises:
        SoftPromptError: the model has no soft prompt, or its active adapter is another PEFT method.
    """
    if not isinstance(model, PeftModel) or not isinstance(model.base_model, SoftPromptModel):
        raise SoftPromptError(f"expected a PEFT model with a soft prompt, got {type(model).__name__}.")
    name = model.active_adapter if isinstance(model.active_adapter, str) else model.active_adapter[0]
    return getattr(model.base_model.model, NAME).softprompt_prompts[name], model.peft_config[name]


@torch.no_grad()
def collapse(model: PeftModel, adapter_name: str = "collapsed") -> PeftModel:
    """Add the active prompt's constant form as adapter ``adapter_name`` and make it active; outputs stay the same.

    A decomposed prompt becomes its prefix [D, P, H] and its input delta [S_max, H]: nothing is fused, projected or
    multiplied any more, and ``save_pretrained(..., selected_adapters=["collapsed"])`` writes only these.

    Raises:
        SoftPromptError: no soft prompt is active, it depends on the input, or the name is taken.
    """
    prompt, config = active_prompt(model)
    if prompt.depends_on_input:
        raise SoftPromptError("a prompt that depends on the input has no constant form; it cannot be collapsed.")
    if prompt.gate_logits is not None:
        raise SoftPromptError(
            "a gated prompt mixes its rows with what the layers put out; choose layers (softprompt.LayerSearch) and train them with placement='deep' before it is collapsed."
        )
    if adapter_name in model.peft_config:
        raise SoftPromptError(f"adapter {adapter_name!r} exists already; pass another adapter_name.")
    source = model.active_adapter
    parts = prompt()
    positions = 0 if parts.input_delta is None else len(parts.input_delta)
    plain = SoftPromptConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        num_virtual_tokens=prompt.num_virtual_tokens,
        placement=config.placement,
        layers=config.layers,
        tau=config.tau,
        max_positions=positions,
        modules_to_save=config.modules_to_save,
        initialized=True,
        inference_mode=True,
    )
    model.add_adapter(adapter_name, plain)
    fixed = getattr(model.base_model.model, NAME).softprompt_prompts[adapter_name]
    assert isinstance(fixed, PlainPrompt)
    fixed.start_from(parts.prefix)
    if fixed.delta is not None and parts.input_delta is not None:
        fixed.delta.copy_(parts.input_delta)
    for module in model.modules():  # the head was trained with the prompt
        saved = getattr(module, "modules_to_save", None)
        if isinstance(saved, nn.ModuleDict) and adapter_name in saved and source in saved:
            saved[adapter_name].load_state_dict(saved[source].state_dict())
    model.set_adapter(adapter_name)
    model.requires_grad_(False)
    return model


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
    if prompt.depends_on_input:
        raise SoftPromptError("a prompt that depends on the input cannot be exported as a constant prefix.")
    with torch.no_grad():
        parts = prompt()
    if config.placement != "input":
        raise SoftPromptError(
            f"PROMPT_TUNING holds one [P, H] matrix in front of the input; this prompt enters {len(parts.prefix)} layers. Train one with placement='input'."
        )
    if parts.input_delta is not None and bool(parts.input_delta.any()):
        raise SoftPromptError(
            "PROMPT_TUNING cannot hold an input delta; this prompt changes the input embeddings too (DePT, EPT). Keep it in the softprompt format."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vectors = parts.prefix[0].float().cpu().contiguous()
    if task == "SEQ_2_SEQ_LM":  # PEFT stores a second block for the decoder, which it never reads in prompt tuning
        vectors = torch.cat([vectors, vectors])
    save_file({"prompt_embeddings": vectors}, folder / WEIGHTS, metadata={"format": "pt"})
    PromptTuningConfig(
        task_type=task,
        num_virtual_tokens=prompt.num_virtual_tokens,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    ).save_pretrained(str(folder))
    return folder
