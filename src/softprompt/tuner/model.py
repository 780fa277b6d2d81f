"""The tuner: what PEFT calls to attach, freeze, switch and detach prompts."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from torch import nn

from .._types import SoftPromptError
from .backbone import Backbone, find_backbone
from .config import SoftPromptConfig
from .register import NAME
from .start import start_prompt
from .state import PromptState


class SoftPromptModel(BaseTuner):
    """Places soft prompts in a frozen model; made by `peft.get_peft_model` from a `SoftPromptConfig`."""

    prefix = f"{NAME}_"
    tuner_layer_cls = PromptState
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("prompts replace no module")

    def _prepare_model(self, peft_config: SoftPromptConfig, model: nn.Module) -> None:
        state = getattr(model, NAME, None)
        backbone = find_backbone(model) if state is None else state.backbone
        _match(peft_config, backbone)
        _declare_head(peft_config, model)
        prompt = peft_config.build()
        # low_cpu_mem_usage builds on meta; a prompt is small enough to be real
        if any(parameter.is_meta for parameter in prompt.parameters()):
            prompt.to_empty(device="cpu")
        if not peft_config.initialized:
            with nullcontext() if state is None else state.silenced():
                start_prompt(prompt, peft_config, backbone)
        if state is None:
            model.requires_grad_(False)  # first: PEFT restores what it finds trainable beside an attached state
            state = PromptState(backbone)
            setattr(model, NAME, state)
        name = next(name for name, config in self.peft_config.items() if config is peft_config)
        state.softprompt_prompts[name] = prompt.to(device=backbone.embed.weight.device, dtype=torch.float32)

    def unload(self) -> nn.Module:
        """Take prompts and hooks off and return the backbone as it was."""
        state = getattr(self.model, NAME, None)
        if state is not None:
            state.detach_hooks()
            delattr(self.model, NAME)
        return super().unload()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise SoftPromptError(
            "a prompt cannot be merged into weights; use softprompt.collapse(model) for its cheapest form, or unload() to drop it."
        )

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        self.merge_and_unload()


def _declare_head(config: SoftPromptConfig, model: nn.Module) -> None:
    """PEFT trains and saves a head called classifier or score. A head of another name (T5, BART: classification_head) would
    stay at its random start without a word, so it is declared here."""
    children = dict(model.named_children())
    if config.task_type not in ("SEQ_CLS", "TOKEN_CLS") or {"classifier", "score"} & children.keys():
        return
    heads = {n for n in children if n.endswith("head") and any(True for _ in children[n].parameters())}
    config.modules_to_save = sorted({*(config.modules_to_save or []), *heads})


def _match(config: SoftPromptConfig, backbone: Backbone) -> None:
    """Write the backbone's facts into a fresh config; refuse a saved one that was made for other facts."""
    layer_width = getattr(backbone.stack.config, "hidden_size", backbone.hidden_size)
    if config.placement != "input" and layer_width != backbone.hidden_size:
        raise SoftPromptError(
            f"deep prompts need embeddings as wide as the layers, but {backbone.model_type} embeds {backbone.hidden_size} and its layers are {layer_width} wide; use placement='input'."
        )
    facts = {
        "backbone_type": backbone.model_type,
        "hidden_size": backbone.hidden_size,
        "num_layers": backbone.num_layers,
    }
    wrong = {key: getattr(config, key) for key, value in facts.items() if getattr(config, key) not in (None, value)}
    if wrong:
        expected = ", ".join(f"{key}={value}" for key, value in wrong.items())
        got = ", ".join(f"{key}={facts[key]}" for key in wrong)
        origin = f" It was trained on {config.base_model_name_or_path!r}." if config.base_model_name_or_path else ""
        raise SoftPromptError(
            f"this adapter was made for another backbone: expected {expected}, got {got}.{origin} Load it on the backbone it was trained on."
        )
    limit = backbone.max_positions
    if limit is not None and config.num_virtual_tokens >= limit:
        raise SoftPromptError(
            f"num_virtual_tokens={config.num_virtual_tokens} leaves no room for text: {backbone.model_type} has {limit} positions; use a shorter prompt."
        )
    for key, value in facts.items():
        setattr(config, key, value)


register_peft_method(name=NAME, config_cls=SoftPromptConfig, model_cls=SoftPromptModel)
