"""Positions: which position_id a token keeps beside a prompt, and which row of the input delta it gets.

Shapes: B inputs of S tokens, P virtual tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._types import SoftPromptError
from ..backbone import Backbone
from ..calls.request import Request
from .layout import Layout


def places(mask: Tensor) -> Tensor:
    """The place [B, S] of each token behind its row's first real one (0), by a mask [B, S].

    Masked tokens inside an input keep their place, so that it counts alike alone and beside inputs with padding on the left.
    """
    at = torch.arange(mask.shape[1], device=mask.device)
    return (at - (mask != 0).int().argmax(1, keepdim=True)).clamp(min=0)


def has_holes(mask: Tensor) -> bool:
    """Whether a row has masked tokens between real ones."""
    real = mask != 0
    return bool((real[:, 1:] & ~real[:, :-1]).sum(1).add(real[:, 0]).gt(1).any())


def with_positions(
    backbone: Backbone,
    asked: Request,
    call: dict[str, Any],
    mask: Tensor | None,
    layout: Layout,
    late: bool | Tensor,
    told: bool = False,
) -> dict[str, Any]:
    """The ``call`` of the stack with the position of each token and virtual token, where the stack must be told.

    Virtual tokens count on from the first position of an input, or from the token in front of them; the tokens behind them follow, each by
    its place (see `places`). Where a
    late prompt meets a table of positions, tokens keep the positions that they have without a prompt, and all virtual tokens
    take the first: they are made above the table. ``told`` tells them in any case.
    """
    fixed = late if backbone.max_positions is not None else False
    if isinstance(fixed, Tensor):  # inputs differ
        kept, moved = (with_positions(backbone, asked, call, mask, layout, each, told=True) for each in (True, False))
        if kept.get("position_ids") is None:  # a bidirectional stack: the index says it
            return call
        return {**call, "position_ids": torch.where(fixed, kept["position_ids"], moved["position_ids"])}
    length, given = layout.prompt_length, call.get("position_ids")
    tokens, decoding = asked.tokens.shape[1], asked.decoding
    if given is None:
        if layout.behind is not False or not (told or fixed or must_tell(backbone, mask, layout, decoding)):
            return call  # the stack counts from index 0, and that is where its first token or the prompt starts
        placed = mask if fixed else call.get("attention_mask")
        if placed is None:  # no mask, so no padding
            placed = torch.ones(1, length + asked.seen + tokens, device=backbone.embed.weight.device)
        given = places(placed)[:, -tokens if decoding or fixed else None :] + backbone.first_position
        if not fixed or decoding:
            return {**call, "position_ids": given}
    own = length - layout.empty
    if decoding:
        return {**call, "position_ids": given if fixed else given + own}
    if layout.order is not None or layout.filler is not None:  # inputs differ
        given = given.expand(len(asked.tokens), -1)
    start = given[:, :1] if layout.first is None else given.gather(1, layout.first)
    if fixed:
        return {**call, "position_ids": layout.place(start.expand(-1, length), given)}
    prompt = start + (torch.arange(length, device=given.device) - layout.empty).clamp(min=0)
    if layout.start is None:
        return {**call, "position_ids": layout.place(prompt, given + own)}
    return {**call, "position_ids": layout.place(prompt + layout.start, given + own * layout.follows(tokens))}


def must_tell(backbone: Backbone, mask: Tensor | None, layout: Layout, cached: bool) -> bool:
    """Whether a causal stack must be told its positions: with padding on the left it would count that; where inputs are
    counted by the mask (OPT), masked tokens inside one; RoBERTa's forgets what a cache holds when it is given embeddings."""
    table = backbone.max_positions is not None
    if not backbone.causal:
        return False
    if "position_ids" not in backbone.argument_names:
        if table and layout.padded_in_front:
            raise SoftPromptError(
                f"{backbone.model_type} counts padding on the left as positions and takes no position_ids: expected padding on the right, got it on the left; set tokenizer.padding_side='right', or run rows of one length."
            )
        return False
    return (
        layout.padded_in_front
        or (cached and backbone.first_position > 0)
        or (table and mask is not None and has_holes(mask))
    )


def add_delta(tokens: Tensor, delta: Tensor | None, mask: Tensor | None, layout: Layout, seen: int) -> Tensor:
    """Add ``delta[t]``, of [S_max, H], to the token at place t (see `places`); ``seen`` tokens of each input came before."""
    if delta is None:
        return tokens
    count, known = tokens.shape[1], len(delta)
    if layout.first is None and (mask is None or not seen):  # every input's tokens stand at seen, seen + 1, ...
        step = delta[seen : seen + count].to(tokens)
        return torch.cat([tokens[:, : len(step)] + step, tokens[:, len(step) :]], 1)
    assert mask is not None
    at = places(mask)[:, -count:]
    inside = (at < known) & (mask[:, -count:] != 0)
    return tokens + (delta[at.clamp(max=known - 1)] * inside.unsqueeze(-1)).to(tokens)
