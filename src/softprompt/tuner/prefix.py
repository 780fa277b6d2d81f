"""Shared prefix: the stack runs once on a prompt that all rows share, and the rows read its keys and values.

In a causal stack nothing that stands at a prompt position depends on the text behind it. A batch of B rows of S tokens then
costs P + B S positions instead of B (P + S).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from ..prompts import Prompt, PromptParts
from .backbone import Backbone
from .processes import is_sharded
from .request import asked_for

# of a cache: growing keys and values, and the place of a layer that reads those of another (Gemma 4)
PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
LEAST_SHARE = 0.15  # of the positions of a batch; where less is saved, a second pass through all layers can cost more


def why_not(backbone: Backbone, prompt: Prompt, parts: PromptParts) -> str | None:
    """What about a backbone and its prompt forbids sharing; None where nothing does."""
    if not backbone.causal or backbone.decoder is not None:
        return f"in {backbone.model_type} the prompt's states depend on the text behind it"
    if "past_key_values" not in backbone.argument_names:
        return f"{backbone.model_type} keeps no keys and values"
    if not parts.open:
        return "no virtual token enters"
    if prompt.depends_on_input:
        return "the prompt reads the input, so rows do not share it"
    if parts.soft:
        return "a gate that is being learned mixes the prompt with the input"
    if prompt.is_late():
        return "layers below the prompt's first one must not see it"
    if any(getattr(layer, "gradient_checkpointing", False) and layer.training for layer in backbone.layers):
        return "gradient checkpointing keeps no keys and values"
    if is_sharded(*backbone.layers):
        # nothing reads what the prompt's own pass puts out, so nothing would gather these weights again for its backward
        return "FSDP frees a layer's weights before the gradient of the prompt's keys and values needs them"
    if any(type(layer) not in PLAIN_LAYERS for layer in new_cache(backbone).layers):
        return f"{backbone.model_type} has layers whose state is more than keys and values"
    return None


def suits(backbone: Backbone, call: dict[str, Any], mask: Tensor | None, rows: Tensor, length: int) -> bool:
    """Whether this call of the stack gains by sharing, and nobody would notice: what it returns is the same.

    Not so when the caller brings a cache, or keeps one of rows whose padding on the left would have to stand between
    prompt and text; when it wants attention weights, which have columns for the prompt; when positions do not start where the family's own do.
    """
    batch, tokens = rows.shape[:2]
    if (batch - 1) * length < LEAST_SHARE * batch * (length + tokens) or call.get("past_key_values") is not None:
        return False
    if asked_for(call, backbone, "output_attentions"):
        return False
    padded = mask is not None and not bool((mask[:, 0] != 0).all())
    if padded and not backbone.stack.training and asked_for(call, backbone, "use_cache"):
        return False
    given = call.get("position_ids")
    if given is None:
        return True
    first = torch.zeros(len(given), 1, dtype=torch.long, device=given.device)
    if padded and mask is not None:
        given, first = given.expand(batch, -1), (mask != 0).int().argmax(1, keepdim=True)
    return not bool((given.gather(1, first) != backbone.first_position).any())


def new_cache(backbone: Backbone) -> DynamicCache:
    """An empty cache with the kinds of layers that the backbone has."""
    return DynamicCache(config=backbone.stack.config)


def expand(cache: DynamicCache, batch: int) -> None:
    """Show the keys and values of one row to ``batch`` rows, without a copy; their gradients add up."""
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and layer.is_initialized:  # some families share one layer's between several
            layer.keys = layer.keys.expand(batch, *layer.keys.shape[1:])
            layer.values = layer.values.expand(batch, *layer.values.shape[1:])


def without_cache(output: Any) -> Any:
    """The stack's output, tuple or not, without a cache in it."""
    if isinstance(output, tuple):
        return tuple(part for part in output if not isinstance(part, Cache))
    return type(output)(**{name: value for name, value in output.items() if not isinstance(value, Cache)})
