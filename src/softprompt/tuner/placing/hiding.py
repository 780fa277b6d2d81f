"""Masks beside a prompt: hide its positions from a layer that it has not entered yet, show them to a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._types import SoftPromptError
from ..backbone import Backbone
from .layout import Layout
from .mixture import Entering


def hide(
    args: tuple, kwargs: dict[str, Any], hidden: Tensor, columns: Tensor, keys: tuple[int, int], backbone: Backbone
) -> tuple[tuple, dict[str, Any]]:
    """Return a layer's arguments with the ``hidden`` ones of the prompt's ``columns`` masked for every query that is a token.

    Prompt positions keep seeing each other, so that no query is left without a key: what they compute is finite, and
    unread.

    Args:
        hidden: [B, T], the columns of those inputs whose prompt has not entered yet.
        columns: [B, T], True at the prompt positions of the whole row, the KV cache's part included.
        keys: (length, offset): the layer's keys are columns[:, offset : offset + length].
        backbone: its `Backbone`.

    Raises:
        SoftPromptError: the layer takes no mask, or one of a kind that cannot be extended.
    """
    index = backbone.mask_index
    if index is None:
        raise SoftPromptError(
            f"layers of {backbone.model_type} take no attention_mask, so those before the prompt cannot be kept from it; let it enter at layer 0 too."
        )
    mask = args[index] if index < len(args) else kwargs.get("attention_mask")
    queries = columns[:, -args[0].shape[1] :]  # which of them are prompt positions
    changed = _hidden(mask, args[0], hidden, queries, keys, backbone)
    if index < len(args):
        return (*args[:index], changed, *args[index + 1 :]), kwargs
    return args, {**kwargs, "attention_mask": changed}


def _hidden(
    mask: Any, states: Tensor, columns: Tensor, own: Tensor, keys: tuple[int, int], backbone: Backbone
) -> Tensor:
    length, offset = keys
    columns = columns[:, offset : offset + length]
    kind = str(getattr(backbone.stack.config, "_attn_implementation", "eager"))
    if kind.startswith("flash") and (mask is None or mask.dim() == 2):  # 2-D: padding does not exist for these kernels
        return (~columns).long() if mask is None else mask * (~columns).to(mask)
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 4):
        raise SoftPromptError(
            f"layers before the prompt need a 4-D attention mask to hide it, got {type(mask).__name__} from attn_implementation={kind!r}; "
            "use 'sdpa' or 'eager', or let the prompt enter at layer 0 too."
        )
    hidden = (columns[:, None, :] & ~own[:, :, None]).unsqueeze(1)  # [B, 1, Q, K]
    if mask is None:  # nothing but the order of tokens was masked
        if backbone.causal:
            at = torch.arange(length, device=states.device)
            hidden = hidden | (at > at[-states.shape[1] :, None])
        return torch.zeros(hidden.shape, dtype=states.dtype, device=states.device).masked_fill(
            hidden, torch.finfo(states.dtype).min
        )
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min if mask.is_floating_point() else 0)


def mask_of_encoder(
    backbone: Backbone, call: dict[str, Any], entering: Callable[[int], Entering | None]
) -> Tensor | None:
    """The decoder's mask of the encoder [B, P + S], where the encoder's states hold a prompt that its mask [B, S] does not.

    Args:
        call: arguments of the decoder.
        entering: what entered the encoder with so many inputs.
    """
    mask, states = call.get("encoder_attention_mask"), call.get("encoder_hidden_states")
    if mask is None or states is None or mask.dim() != 2 or mask.shape[1] >= states.shape[1]:
        return None
    # beam search repeats inputs after the encoder ran, so the layout is read off this mask again
    length, entered = states.shape[1] - mask.shape[1], entering(len(mask))
    if entered is None:  # states that somebody else made
        return Layout.of(length, mask, backbone.causal).whole(mask)
    behind = entered.late if backbone.hidden_behind else False
    return Layout.of(length, mask, backbone.causal, behind, entered.filler).whole(mask)
