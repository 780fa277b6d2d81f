"""A call of the stack, read once: what it gives, what it asks for, and how its arguments change beside a prompt.

Shapes: B inputs of S tokens, P virtual tokens, T = seen + P + S positions of an input and its cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor

from ..._types import SoftPromptError
from ..backbone import Backbone
from ..cache import with_own_name

PER_LAYER = "per_layer_inputs"


@dataclass(frozen=True)
class Request:
    """A call of the stack, as it came.

    Attributes:
        given: its arguments by name.
        tokens: [B, S, H], the embeddings of its tokens.
        mask: [B, seen + S] or None.
        cache: of keys and values, or None.
        seen: tokens of an input that the cache holds, without the prompt.
        decoding: whether the cache holds the prompt, so that nothing enters.
    """

    given: dict[str, Any]
    tokens: Tensor
    mask: Tensor | None
    cache: Any
    seen: int
    decoding: bool

    @classmethod
    def read(
        cls, backbone: Backbone, args: tuple, kwargs: dict[str, Any], length: int, from_zero: bool = False
    ) -> Request:
        """Read a call beside a prompt of ``length`` virtual tokens.

        Args:
            from_zero: whether the caller counts positions from 0, whatever the table, as ``generate`` does. Training, which
                leaves counting to the stack, counts from the table's first row.

        Raises:
            SoftPromptError: a mask, cache or positions beside which a prompt cannot stand, or too many positions.
        """
        names = backbone.argument_names
        given = with_own_name(names, {**dict(zip(names, args, strict=False)), **kwargs})
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        cache = None if backbone.cache_name is None else given.get(backbone.cache_name)
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            got = f"{mask.dim()}-D" if isinstance(mask, Tensor) else type(mask).__name__
            raise SoftPromptError(
                f"soft prompts need a 2-D attention_mask [batch, tokens], got {got}; use the dynamic KV cache and leave masking to the model."
            )
        tokens = _embedded(backbone, given)
        if getattr(cache, "is_compileable", False):
            raise SoftPromptError(
                f"soft prompts need the dynamic KV cache, got {type(cache).__name__}, which has no room for the prompt; drop cache_implementation."
            )
        cached = 0 if cache is None else int(cache.get_seq_length())
        seen = cached - length if cached else 0
        if cached:
            check_cache(cached, tokens.shape[1], length, mask, positions)
        else:
            check_packing(positions, mask)
        check_length(backbone, seen + tokens.shape[1], length)
        check_checkpointing(backbone)
        if from_zero and positions is not None:
            given["position_ids"] = positions + backbone.first_position
        return cls(given, tokens, mask, cache, seen, cached > 0)

    def rest(self, backbone: Backbone) -> dict[str, Any]:
        """The arguments for a call on embeddings, which the caller sets; a new dict."""
        rest = {name: value for name, value in self.given.items() if name != "input_ids"}
        return rest | per_layer_inputs(backbone, rest, self.given.get("input_ids"), self.tokens)


def rows_of(backbone: Backbone, args: tuple, kwargs: dict[str, Any]) -> int:
    """How many inputs a call of the stack has."""
    given = {**dict(zip(backbone.argument_names, args, strict=False)), **kwargs}
    inputs = [given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None]
    return len(inputs[0]) if inputs else 0


def _embedded(backbone: Backbone, given: dict[str, Any]) -> Tensor:
    ids, embeddings = given.get("input_ids"), given.get("inputs_embeds")
    if ids is None and embeddings is None:
        raise SoftPromptError("expected input_ids or inputs_embeds, got neither.")
    return backbone.embed(ids) if embeddings is None else embeddings


def asked_for(call: dict[str, Any], backbone: Backbone, name: str) -> bool:
    """Whether a call of the stack, or else its config, asks for something."""
    given = call.get(name)
    return bool(getattr(backbone.stack.config, name, False) if given is None else given)


def per_layer_inputs(backbone: Backbone, call: dict[str, Any], ids: Tensor | None, tokens: Tensor) -> dict[str, Any]:
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
        made[PER_LAYER] = stack.get_per_layer_inputs(*((ids,) if ids is not None else (None, tokens)))
    return made


def virtual_per_layer(backbone: Backbone, length: int) -> dict[str, Tensor]:
    """The same for P virtual tokens, which are in no table: zeros [1, P, L, h]."""
    config, weight = backbone.stack.config, backbone.embed.weight
    if PER_LAYER not in backbone.argument_names or not (width := getattr(config, "hidden_size_per_layer_input", 0)):
        return {}
    return {PER_LAYER: weight.new_zeros(1, length, backbone.num_layers, width)}


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
    if positions is None:
        return
    falls = positions[:, 1:] <= positions[:, :-1]
    if mask is not None and len(mask) == len(positions):
        falls = falls & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
    if bool(falls.any()):
        raise SoftPromptError(
            "position_ids restart inside a row: packed sequences cannot share one prompt; turn packing (padding_free) off."
        )
