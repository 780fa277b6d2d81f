"""A call of the stack: what it must be, what it asks for, and how its arguments change when a prompt stands in its rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._types import SoftPromptError
from .backbone import Backbone
from .layout import Layout


def asked_for(call: dict[str, Any], backbone: Backbone, name: str) -> bool:
    """Whether a call of the stack, or else its config, asks for something."""
    given = call.get(name)
    return bool(getattr(backbone.stack.config, name, False) if given is None else given)


def with_positions(
    backbone: Backbone,
    call: dict[str, Any],
    mask: Tensor | None,
    layout: Layout,
    tokens: int,
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
        if layout.behind or (not fixed and (layout.first is None or not backbone.causal)):
            return call  # the stack counts from index 0, and that is where its first token or the prompt starts
        placed = mask if fixed else call["attention_mask"]
        assert placed is not None
        given = (placed.long().cumsum(1) - 1).clamp(min=0)[:, -tokens if decoding or fixed else None :]
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
            "start the next turn with a fresh cache."
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
    """Add the t-th row of ``delta`` [S_max, H] to the t-th real token; ``seen`` tokens of each row came before."""
    if delta is None:
        return rows
    tokens, known = rows.shape[1], len(delta)
    if layout.first is None and (mask is None or not seen):  # every row's tokens stand at seen, seen + 1, ...
        step = delta[seen : seen + tokens].to(rows)
        return torch.cat([rows[:, : len(step)] + step, rows[:, len(step) :]], 1)
    assert mask is not None
    real = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens:]
    inside = (real < known) & (mask[:, -tokens:] != 0)
    return rows + (delta[real.clamp(max=known - 1)] * inside.unsqueeze(-1)).to(rows)
