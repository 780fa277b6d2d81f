"""Find the stack, its embedding and its layers in any Hugging Face model, without a line per family."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .._types import SoftPromptError
from .cache import cache_name


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put ``module`` in eval mode inside, and each of its parts back into its own mode after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def frozen(backbone: Backbone) -> Iterator[None]:
    """Run the bare stack inside: dropout off and, unless it is quantized, no gradient."""
    # with gradient mode on, where bitsandbytes would else pack 4-bit weights for inference for good
    quantized = getattr(backbone.stack.config, "quantization_config", None) is not None
    with evaluating(backbone.stack), torch.set_grad_enabled(quantized):
        yield


@dataclass(frozen=True)
class Backbone:
    """The parts of a model that prompts touch: *head over stack*.

    Attributes:
        stack: turns embeddings into hidden states (the encoder of an encoder-decoder).
        layers: the stack's layers, in order.
        decoder: the decoder that attends to the stack, or None.
        causal: whether positions see only what stands before them.
        generates: whether it is a causal language model, whose labels are tokens of the text itself.
        argument_names: names of the stack's positional arguments.
        mask_index: where a layer takes its attention_mask, or None.
        hidden_size, num_layers, model_type: H, L and the family's name.
        max_positions: positions of an absolute table, or None where positions are relative or rotary.
        first_position: the position_id of a row's first token; tables with a padding row reserve what stands before it.
        vocab_size: V.
        special_ids: ids of the config's special tokens; never drawn as starting vectors.
    """

    stack: PreTrainedModel
    layers: nn.ModuleList
    decoder: PreTrainedModel | None
    causal: bool
    generates: bool
    argument_names: tuple[str, ...]
    mask_index: int | None
    hidden_size: int
    num_layers: int
    model_type: str
    max_positions: int | None
    first_position: int
    vocab_size: int
    special_ids: frozenset[int]

    @property
    def hidden_behind(self) -> bool:
        """Whether a prompt that layer 0 must not see stands behind the tokens: where positions come from a table, they would
        shift. A causal stack keeps it in front and gets its positions told."""
        return self.max_positions is not None and not self.causal

    @property
    def width(self) -> int:
        """Width of the layers' states; the embeddings of some families are narrower."""
        return getattr(self.stack.config, "hidden_size", self.hidden_size)

    @property
    def cache_name(self) -> str | None:
        """The stack's argument for a cache of keys and values."""
        return cache_name(self.argument_names)

    def caching(self, cache: Cache | None) -> dict[str, Any]:
        """The argument that gives a cache to the stack, and to the model around it."""
        assert self.cache_name is not None  # nobody makes a cache for a stack that takes none
        return {self.cache_name: cache}

    @property
    def embed(self) -> nn.Embedding:
        """The stack's own input embedding; asked anew, because resizing it or a LoRA on it puts another in its place."""
        return self.stack.get_input_embeddings()


def find_backbone(model: Any) -> Backbone:
    """Look the parts up by structure.

    Raises:
        SoftPromptError: the model has no config, or no list of transformer layers of the class that transformers
            shares between its families.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "base_model"):
        raise SoftPromptError(
            f"expected a transformers model, got {type(model).__name__}, which has no config or base_model."
        )
    config = (
        config.get_text_config() if hasattr(config, "get_text_config") and not config.is_encoder_decoder else config
    )
    encoder_decoder = bool(config.is_encoder_decoder)
    stack = model.get_encoder() if encoder_decoder else model.base_model
    layers = next(
        (
            m
            for m in stack.modules()
            if isinstance(m, nn.ModuleList) and len(m) and isinstance(m[0], GradientCheckpointingLayer)
        ),
        None,
    )
    if layers is None:
        raise SoftPromptError(
            f"{type(model).__name__} ({config.model_type}) has no list of GradientCheckpointingLayer, so prompts cannot be placed at its layers. "
            "Use a model whose layers have that class: BERT, RoBERTa, DeBERTa, ModernBERT, GPT-2, Llama, Qwen, Gemma, T5, BART and most others."
        )
    try:
        embed = stack.get_input_embeddings()
    except NotImplementedError as error:
        raise SoftPromptError(
            f"{type(model).__name__} ({config.model_type}) does not say which module embeds its input ids; use another head of this family."
        ) from error
    stack = stack if encoder_decoder else _called_stack(stack)
    names = tuple(inspect.signature(stack.forward).parameters)
    inside = list(inspect.signature(layers[0].forward).parameters)
    generates = not encoder_decoder and hasattr(model, "can_generate") and model.can_generate()
    if generates and _is_recurrent(stack, names):
        raise SoftPromptError(
            f"{type(model).__name__} ({config.model_type}) generates from a recurrent state, not from keys and values, so a prompt would enter again at every step; use a model with a KV cache."
        )
    says_causal = any(getattr(module, "is_causal", False) for module in layers.modules())
    if generates and not says_causal and getattr(config, "is_decoder", None) is False:
        raise SoftPromptError(
            f"{type(model).__name__} ({config.model_type}) is an encoder here: its positions see the text behind them, so it cannot learn to continue a text. "
            "Use a decoder or an encoder-decoder, or load it with is_decoder=True."
        )
    causal = generates or says_causal  # some families do not say is_causal
    special = {
        getattr(config, f"{name}_token_id", None)
        for name in ("pad", "bos", "eos", "cls", "sep", "mask", "unk", "decoder_start")
    }
    flat = {i for entry in special for i in (entry if isinstance(entry, list) else [entry]) if isinstance(i, int)}
    positions, first = _absolute_positions(stack, embed)
    return Backbone(
        stack=stack,
        layers=layers,
        decoder=model.get_decoder() if encoder_decoder else None,
        causal=causal,
        generates=generates,
        argument_names=names,
        mask_index=inside.index("attention_mask") if "attention_mask" in inside else None,
        hidden_size=embed.embedding_dim,
        num_layers=len(layers),
        model_type=config.model_type,
        max_positions=positions,
        first_position=first,
        vocab_size=embed.num_embeddings,
        special_ids=frozenset(flat),
    )


def _is_recurrent(stack: PreTrainedModel, names: tuple[str, ...]) -> bool:
    """Whether a stack keeps a state of a text and no keys and values; from transformers 5.24 on both are called ``cache``."""
    if cache_name(names) is None:
        return True
    if not getattr(stack, "_is_stateful", False):
        return False
    # a state beside keys and values, or alone: xLSTM has a kind of cache of its own, and nothing to mask
    return "attention_mask" not in names or all(DynamicCache(config=stack.config).is_linear)


def _called_stack(base: PreTrainedModel) -> PreTrainedModel:
    """The stack that every head of a family calls: OPT's language model calls the decoder inside its base model, past it."""
    inside = getattr(base, "decoder", None)
    return inside if isinstance(inside, PreTrainedModel) else base


def _absolute_positions(stack: PreTrainedModel, embed: nn.Embedding) -> tuple[int | None, int]:
    """Length of the table of absolute positions, and where it starts. A table that reserves an entry for padding counts from
    behind it (RoBERTa); one that is longer than the config says adds its first entries by itself (BART, OPT)."""
    declared = getattr(stack.config, "max_position_embeddings", None)
    for name, module in stack.named_modules():
        word = name.rsplit(".", 1)[-1]
        if (
            isinstance(module, nn.Embedding)
            and module is not embed
            and ("position" in word or word == "wpe")
            and "relative" not in word
        ):
            length = module.num_embeddings
            if module.padding_idx is not None:
                return length - module.padding_idx - 1, module.padding_idx + 1
            return min(length, declared or length), 0
    return None, 0
