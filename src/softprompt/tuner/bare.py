"""The bare backbone: the states that it makes of a call without any prompt, and which of them stands for an input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._types import SoftPromptError
from .backbone import Backbone, frozen
from .placing.layout import Layout
from .placing.positions import places
from .pooling import pool


def choose_representation(asked: str, task_type: str | None, model: nn.Module, backbone: Backbone) -> str:
    """The state of an input that its head reads.

    Raises:
        SoftPromptError: "mask" on a model that does not say which token its mask is.
    """
    has_mask = getattr(model, "mask_token_id", None) is not None
    if asked == "mask" and not has_mask:
        raise SoftPromptError(
            f"representation='mask' needs a model that knows its mask token (softprompt.VerbalizedClassifier), got {type(model).__name__}."
        )
    if asked != "auto":
        return asked
    if has_mask:
        return "mask"
    if getattr(model, "pooling", None):
        return str(model.pooling)
    if backbone.causal:
        return "last"
    return "cls" if task_type == "SEQ_CLS" and backbone.decoder is None else "mean"


def represent(hidden: Tensor, ids: Tensor | None, real: Tensor, how: str, mask_token_id: int | None) -> Tensor:
    """Pool hidden states [B, S, H] of the tokens ``real`` [B, S] to [B, H], in float32."""
    if how == "mask":
        if ids is None:
            raise SoftPromptError("representation='mask' finds the mask by its id: expected input_ids, got embeddings.")
        assert mask_token_id is not None  # choose_representation saw to it
        return pool(hidden.float(), torch.eq(ids, mask_token_id), "cls")
    return pool(hidden.float(), real, how) * real.any(1, keepdim=True)  # 0 for a row without a token


def run_bare(backbone: Backbone, call: Mapping[str, Any], layer: int | None = None) -> Tensor:
    """The states [B, S, H] of the bare backbone's tokens on the stack's inputs ``call``, dropout-free and without gradient:
    those that enter ``layer``, above which nothing runs, or the last ones. The caller keeps prompts out.

    Inputs with padding on the left are arranged as they are for a prompt, so that no position counts their padding.
    """
    mask = call.get("attention_mask")
    names = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids")
    given = {n: call[n] for n in names if call.get(n) is not None and n in backbone.argument_names}
    layout = Layout.of(0, mask, backbone.causal)
    if layout.first is not None and mask is not None:
        if not backbone.causal:
            given = {n: layout.move(value.expand(len(mask), *value.shape[1:])) for n, value in given.items()}
        elif "position_ids" in backbone.argument_names and "position_ids" not in given:
            given["position_ids"] = places(mask) + backbone.first_position
    with frozen(backbone):
        if layer is None:
            hidden = backbone.stack(**given).last_hidden_state.detach()
        else:
            hidden = _entering(backbone, layer, given)
    return hidden if backbone.causal else layout.remove(hidden)


class _Reached(Exception):
    """Ends a pass at the layer whose input is wanted."""


def _entering(backbone: Backbone, layer: int, call: dict[str, Any]) -> Tensor:
    reached: list[Tensor] = []

    def stop(module: nn.Module, args: tuple) -> None:
        reached.append(args[0].detach())
        raise _Reached

    hook = backbone.layers[layer].register_forward_pre_hook(stop)
    try:
        backbone.stack(**call)
    except _Reached:
        pass
    finally:
        hook.remove()
    return reached[0]
