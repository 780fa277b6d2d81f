"""A prompt as keys and values: made once, read in every pass."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..._types import SoftPromptError
from ...prompts import CompiledPrompt
from ..backbone import Backbone, frozen
from ..calls.request import Request
from ..config import SoftPromptConfig
from ..heads import copies
from ..passes.kinds import Alone
from ..passes.prefix import Prefix, filled, parts_of, why_not
from ..placing.entrant import Entrant
from ..saved.fingerprint import fingerprint
from ..state import PromptState, prompts_of
from .collapse import active_prompt, copy_heads


@torch.no_grad()
def made_alone(state: PromptState, prompt: nn.Module) -> tuple[Tensor, Tensor]:
    """Keys and values [L, heads, P, d] that the layers make of ``prompt``, which reads no input.

    Raises:
        SoftPromptError: this prompt has none of its own in this backbone, or not all layers keep as many of one shape.
    """
    backbone = state.backbone
    if copies(backbone.stack):
        raise SoftPromptError(
            "the adapter has parts of the backbone of its own (modules_to_save), which keys and values would hang on; serve the prompt as it is, or train it without them."
        )
    entrant = Entrant.of(prompt)  # type: ignore[arg-type]
    against = "nothing enters" if entrant is None else why_not(backbone, entrant.prompt)
    if entrant is None or against is not None:
        raise SoftPromptError(
            f"this prompt has no keys and values that hold for every text: {against}. Serve it as it is, or train one that reads nothing, from layer 0 (in an encoder deep_prompts)."
        )
    entrant.make()
    tokens = backbone.embed.weight.new_zeros(1, 0, backbone.width)
    alone = Alone(backbone, entrant, Request({}, tokens, None, None, 0, False))
    device = backbone.embed.weight.device.type
    with frozen(backbone), state.passes.inside(alone), torch.autocast(device, enabled=False):
        backbone.stack(**alone.call)
    return whole(alone.prefix, backbone, entrant.length)


def whole(prefix: Prefix, backbone: Backbone, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values of all layers in two tensors [L, heads, P, d], float32."""
    pairs = [parts_of(layer) for layer in filled(prefix.cache)]
    if any(pair[0].shape[2] < length for pair in pairs):
        raise SoftPromptError(
            f"{backbone.model_type} has windows shorter than the prompt's {length} virtual tokens, which would be forgotten before any text; train a shorter one."
        )
    if len(pairs) != backbone.num_layers or len({part.shape for pair in pairs for part in pair}) > 1:
        raise SoftPromptError(
            f"layers of {backbone.model_type} keep keys and values of different shapes, or share them: a compiled prompt needs one shape in every layer. Serve the prompt as it is."
        )
    keys, values = (torch.cat([pair[i] for pair in pairs]).float() for i in range(2))
    return keys, values


def compile(model: PeftModel, adapter_name: str = "compiled") -> PeftModel:
    """Add the active prompt as keys and values, adapter ``adapter_name``, and make it active; outputs stay the same.

    A pass then makes nothing of the prompt and runs no position of it: B inputs of S tokens cost B S positions. An input delta (DePT,
    EPT) stays a delta. ``save_pretrained(..., selected_adapters=["compiled"])`` writes it; it loads as any adapter, on the same weights in
    the same dtype.

    Raises:
        SoftPromptError: the prompt reads its input, is being gated, enters above layer 0, or (in an encoder) not in every layer;
            the backbone's layers keep more than keys and values of one shape; windows are shorter than the prompt; the name is taken.
    """
    prompt, config = active_prompt(model)
    if adapter_name in model.peft_config:
        raise SoftPromptError(f"adapter {adapter_name!r} exists already; pass another adapter_name.")
    if isinstance(prompt, CompiledPrompt):
        raise SoftPromptError("the active prompt is compiled already.")
    state, source = prompts_of(model), model.active_adapter
    keys, values = made_alone(state, prompt)
    delta = prompt.input_delta()
    compiled = SoftPromptConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        num_virtual_tokens=prompt.num_virtual_tokens,
        prompt="compiled",
        placement="deep",
        kv_heads=keys.shape[1],
        head_dim=keys.shape[3],
        max_positions=0 if delta is None else len(delta),
        compiled_for=fingerprint(state.backbone),
        modules_to_save=config.modules_to_save,
        initialized=True,
        inference_mode=True,
    )
    model.add_adapter(adapter_name, compiled)
    fixed = state.softprompt_prompts[adapter_name]
    assert isinstance(fixed, CompiledPrompt)
    with torch.no_grad():
        fixed.keys.copy_(keys)
        fixed.values.copy_(values)
        if fixed.delta is not None and delta is not None:
            fixed.delta.copy_(delta)
    copy_heads(model, source, adapter_name)
    model.set_adapter(adapter_name)
    model.requires_grad_(False)
    return model
