"""The tuner: what PEFT calls to attach, freeze, switch and detach prompts."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .._types import IGNORED, SoftPromptError
from ..objectives import consistency
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
            state = PromptState(backbone, model)
            setattr(model, NAME, state)
        name = next(name for name, config in self.peft_config.items() if config is peft_config)
        state.softprompt_prompts[name] = prompt.to(device=backbone.embed.weight.device, dtype=torch.float32)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model (its hooks too); in training a gated prompt adds its consistency loss, weighted, to the output's loss.

        The term itself is ``output.consistency_loss``. With ``num_items_in_batch``, as Trainer passes it to accumulate
        gradients, it counts by the batch's share of all labels.
        """
        output = self.model(*args, **kwargs)
        state = getattr(self.model, NAME)
        prompt = state.active_prompt()
        if not self.training or prompt is None or prompt.gate_logits is None:
            return output
        config = self.peft_config[state.active_adapters[0]]
        if not config.consistency or not isinstance(output, ModelOutput) or output.get("loss") is None:
            return output
        with prompt.subnetwork(prompt.draw_subnetwork()):
            part = self.model(*args, **kwargs)
        labels = kwargs.get("labels")
        where = kwargs.get("attention_mask") if labels is None or labels.dim() < 2 else labels != IGNORED
        if where is not None and labels is not None and state.backbone.generates:
            where = F.pad(where[:, 1:], (0, 1))  # position t predicts the label of t + 1
        if where is not None and where.shape != output.logits.shape[:-1]:
            where = None
        term = consistency(output.logits, part.logits, where)
        output["consistency_loss"] = term.detach()
        output["loss"] = output.loss + config.consistency * _share(labels, kwargs.get("num_items_in_batch")) * term
        return output

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's ``generate``; a prompt that reads the input reads only what is given here."""
        with getattr(self.model, NAME).generating():
            return self.model.generate(*args, **kwargs)

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


def _share(labels: Any, items: Any) -> Any:
    """The share of this batch in the labels of all batches that are accumulated; 1 when the trainer averages by itself."""
    return 1.0 if items is None or labels is None else (labels != IGNORED).sum() / items


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
    if config.layers and config.layers[-1] >= backbone.num_layers:
        raise SoftPromptError(
            f"layers={config.layers}: {backbone.model_type} has layers 0 to {backbone.num_layers - 1}; name layers that exist."
        )
    for key, value in facts.items():
        setattr(config, key, value)


register_peft_method(name=NAME, config_cls=SoftPromptConfig, model_cls=SoftPromptModel)
