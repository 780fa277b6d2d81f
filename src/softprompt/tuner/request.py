"""A call of the stack: what it must be, what it asks for, and how its arguments change when a prompt stands in its rows."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from .._types import SoftPromptError
from .backbone import Backbone
from .layout import Layout

PER_LAYER = "per_layer_inputs"


def asked_for(call: dict[str, Any], backbone: Backbone, name: str) -> bool:
    """Whether a call of the stack, or else its config, asks for something."""
    given = call.get(name)
    return bool(getattr(backbone.stack.config, name, False) if given is None else given)


def per_layer_inputs(backbone: Backbone, call: dict[str, Any], ids: Tensor | None, rows: Tensor) -> dict[str, Any]:
    """What a stack looks up for each token beside its embedding (Gemma 3n and 4), [B, S, L, h] under its name; else nothing.

    Stacks look it up by id, and are called with embeddings here. ``logits_to_keep`` goes back to the head: a stack that cuts
    its states by it would cut the prompt's place off, too.
    """
    stack, made = backbone.stack, {}
    if call.get("logits_to_keep") is not None and "logits_to_keep" in backbone.argument_names:
        made["logits_to_keep"] = 0
    if PER_LAYER not in backbone.argument_names or not getattr(stack.config, "hidden_size_per_layer_input", 0):
        return made
    if call.get(PER_LAYER) is None and (
        ids is not None or "inputs_embeds" in signature(stack.get_per_layer_inputs).parameters
    ):
        made[PER_LAYER] = stack.get_per_layer_inputs(*((ids,) if ids is not None else (None, rows)))
    return made


def virtual_per_layer(backbone: Backbone, length: int) -> dict[str, Tensor]:
    """The same for P virtual tokens, which are in no table: zeros [1, P, L, h]."""
    config, weight = backbone.stack.config, backbone.embed.weight
    if PER_LAYER not in backbone.argument_names or not (width := getattr(config, "hidden_size_per_layer_input", 0)):
        return {}
    return {PER_LAYER: weight.new_zeros(1, length, backbone.num_layers, width)}


def places(mask: Tensor) -> Tensor:
    """The place [B, S] of each token behind its row's first real one (0), by a mask [B, S].

    Masked tokens inside a row keep their place, so that a row counts alike alone and beside rows with padding on the left.
    """
    at = torch.arange(mask.shape[1], device=mask.device)
    return (at - (mask != 0).int().argmax(1, keepdim=True)).clamp(min=0)


def has_holes(mask: Tensor) -> bool:
    """Whether a row has masked tokens between real ones."""
    real = mask != 0
    return bool((real[:, 1:] & ~real[:, :-1]).sum(1).add(real[:, 0]).gt(1).any())


def with_positions(
    backbone: Backbone,
    call: dict[str, Any],
    mask: Tensor | None,
    layout: Layout,
    tokens: int,
    seen: int,
    decoding: bool,
    late: bool,
) -> dict[str, Any]:
    """Prompt positions count on from the row's first position; real tokens follow by their real position.

    Where a late prompt meets a table of positions, tokens keep those that they have without a prompt, and the prompt
    takes the first: its rows are made behind the table.
    """
    length, given = layout.prompt_length, call.get("position_ids")
    fixed = late and backbone.max_positions is not None
    if given is None:
        if layout.behind or not (fixed or must_tell(backbone, mask, layout, decoding)):
            return call  # the stack counts from index 0, and that is where its first token or the prompt starts
        placed = mask if fixed else call.get("attention_mask")
        if placed is None:  # no mask, so no padding
            placed = torch.ones(1, length + seen + tokens, device=backbone.embed.weight.device)
        given = places(placed)[:, -tokens if decoding or fixed else None :] + backbone.first_position
        if not fixed or decoding:
            return {**call, "position_ids": given}
    if decoding:
        return {**call, "position_ids": given if fixed else given + length}
    if layout.order is not None:
        given = given.expand(len(layout.order), -1)
    start = given[:, :1] if layout.first is None else given.gather(1, layout.first)
    if fixed:
        return {**call, "position_ids": layout.place(start.expand(-1, length), given)}
    prompt = start + torch.arange(length, device=given.device)
    return {**call, "position_ids": layout.place(prompt, given + length)}


def must_tell(backbone: Backbone, mask: Tensor | None, layout: Layout, cached: bool) -> bool:
    """Whether a causal stack must be told its positions: with padding on the left it would count that; where rows are
    counted by the mask (OPT), masked tokens inside a row; RoBERTa's forgets what a cache holds when it is given embeddings."""
    table = backbone.max_positions is not None
    if not backbone.causal:
        return False
    if "position_ids" not in backbone.argument_names:
        if table and layout.first is not None:
            raise SoftPromptError(
                f"{backbone.model_type} counts padding on the left as positions and takes no position_ids: expected padding on the right, got it on the left; set tokenizer.padding_side='right', or run rows of one length."
            )
        return False
    return (
        layout.first is not None
        or (cached and backbone.first_position > 0)
        or (table and mask is not None and has_holes(mask))
    )


def check_late(backbone: Backbone) -> None:
    """Refuse layers from which a prompt that enters later cannot be hidden."""
    kinds = set(getattr(backbone.stack.config, "layer_types", None) or ())
    if strange := sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"}):
        raise SoftPromptError(
            f"{backbone.model_type} has layers of kind {', '.join(strange)}, from which a prompt cannot be hidden; let it enter at layer 0 too."
        )
    needed = backbone.max_positions is not None and backbone.causal
    if needed and "position_ids" not in backbone.argument_names:
        raise SoftPromptError(
            f"{backbone.model_type} takes no position_ids, so its tokens cannot keep their positions beside a prompt that enters later; let it enter at layer 0 too."
        )


def check_checkpointing(backbone: Backbone) -> None:
    """Refuse a way to checkpoint that loses gradients: keys and values that layers share pass it in a dict, unseen."""
    layer = backbone.layers[0]
    if not (layer.training and getattr(layer, "gradient_checkpointing", False)):
        return
    options = getattr(getattr(layer, "_gradient_checkpointing_func", None), "keywords", {})
    if getattr(backbone.stack.config, "num_kv_shared_layers", 0) and options.get("use_reentrant", True):
        raise SoftPromptError(
            f"layers of {backbone.model_type} share keys and values, whose gradient reentrant checkpointing loses; set gradient_checkpointing_kwargs={{'use_reentrant': False}}."
        )


def check_length(backbone: Backbone, tokens: int, length: int) -> None:
    """Refuse more positions than the backbone has."""
    limit = backbone.max_positions
    if limit is not None and tokens + length > limit:
        raise SoftPromptError(
            f"{length} virtual tokens and {tokens} input tokens need {length + tokens} positions, but {backbone.model_type} has {limit}; "
            f"cut the input to {max(limit - length, 0)} tokens (max_length) or shorten the prompt."
        )


def check_cache(cached: int, tokens: int, length: int, mask: Tensor | None, positions: Tensor | None) -> None:
    """Refuse a second turn on a cache that holds the prompt."""
    # generate() takes all positions of a cache it is given for text, and would skip P tokens of the next turn
    if mask is not None:
        expected = mask.shape[1] - tokens
    else:
        expected = cached if positions is not None and int(positions[0, 0]) == cached else cached - length
    if expected != cached - length:
        raise SoftPromptError(
            f"the KV cache holds {cached} positions, {length} of them the prompt's, but the call expects {expected} cached tokens; "
            "start the next turn with a fresh cache (and let no prompted model assist another's speculative decoding)."
        )


def check_packing(positions: Tensor | None, mask: Tensor | None) -> None:
    """Refuse several texts in one row."""
    if positions is None or positions.shape[1] < 2:
        return
    falls = positions[:, 1:] <= positions[:, :-1]
    if mask is not None and len(mask) == len(positions):
        falls = falls & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
    if bool(falls.any()):
        raise SoftPromptError(
            "position_ids restart inside a row: packed sequences cannot share one prompt; turn packing (padding_free) off."
        )


def add_delta(rows: Tensor, delta: Tensor | None, mask: Tensor | None, layout: Layout, seen: int) -> Tensor:
    """Add the t-th row of ``delta`` [S_max, H] to the token at place t (see `places`); ``seen`` tokens of each row came before."""
    if delta is None:
        return rows
    tokens, known = rows.shape[1], len(delta)
    if layout.first is None and (mask is None or not seen):  # every row's tokens stand at seen, seen + 1, ...
        step = delta[seen : seen + tokens].to(rows)
        return torch.cat([rows[:, : len(step)] + step, rows[:, len(step) :]], 1)
    assert mask is not None
    real = places(mask)[:, -tokens:]
    inside = (real < known) & (mask[:, -tokens:] != 0)
    return rows + (delta[real.clamp(max=known - 1)] * inside.unsqueeze(-1)).to(rows)
