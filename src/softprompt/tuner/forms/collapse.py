"""A prompt in its constant form."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import nn

from ..._types import SoftPromptError
from ...prompts import PlainPrompt, Prompt
from ..config import SoftPromptConfig
from ..model import SoftPromptModel
from ..register import NAME


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
        marker_token_id=config.marker_token_id,
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
    copy_heads(model, source, adapter_name)
    model.set_adapter(adapter_name)
    model.requires_grad_(False)
    return model


def copy_heads(model: PeftModel, source: str, adapter_name: str) -> None:
    """Give an adapter the heads of another one, which were trained with its prompt."""
    for module in model.modules():
        saved = getattr(module, "modules_to_save", None)
        if isinstance(saved, nn.ModuleDict) and adapter_name in saved and source in saved:
            saved[adapter_name].load_state_dict(saved[source].state_dict())
