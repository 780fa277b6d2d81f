"""Shared prefix: the stack runs once on a prompt that all inputs share, and they read its keys and values.

In a causal stack nothing that stands at a prompt position depends on the text behind it. A batch of B inputs of S tokens then
costs P + B S positions instead of B (P + S). In an encoder it does, unless new virtual tokens enter every layer: then what a layer
puts out at the prompt's positions is never read, and its keys and values are those of the prompt alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from ..._types import AnnounceOnce, SoftPromptError
from ...prompts import CompiledPrompt, Prompt
from ..adapter import Adapter
from ..backbone import Backbone
from ..calls.request import Request, asked_for
from ..placing.layout import is_padded_in_front
from ..placing.mixture import Entering, Group, Mixture
from ..processes import is_sharded

# of a cache: growing keys and values, and the place of a layer that reads those of another (Gemma 4)
PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
# encoders that put a cache's keys before those of the tokens and count them in the mask; each is shown equal in tests
CACHED_ENCODERS = frozenset(
    {"bert", "camembert", "data2vec-text", "electra", "ernie", "roberta", "xlm-roberta", "xmod"}
)
LEAST_SHARE = 0.15  # of the positions of a batch; where less is saved, a second pass through all layers can cost more


@dataclass(frozen=True)
class Prefix:
    """Keys and values of prompts alone.

    Attributes:
        cache: of P virtual tokens: of one prompt that all inputs share, or of one for each input.
        entered: layer -> the virtual tokens [1 or B, P, H] that entered there.
    """

    cache: DynamicCache
    entered: Mapping[int, Tensor]

    def for_inputs(self, batch: int, in_front: bool, into: DynamicCache | None = None) -> DynamicCache:
        """A cache that shows the keys and values to ``batch`` inputs, without a copy; their gradients add up.

        Args:
            in_front: whether padding may follow the prompt; see `is_in_front`.
            into: the caller's own cache, empty, which gets them.
        """
        shown = copy.copy(self.cache) if into is None else into
        if into is None:
            shown.layers = [copy.copy(layer) for layer in self.cache.layers]
        for index, layer in enumerate(self.cache.layers):
            # some families share the keys and values of one layer between several; the others hold none
            if isinstance(layer, DynamicLayer) and layer.is_initialized:
                keys, values = (part.expand(batch, *part.shape[1:]) for part in parts_of(layer))
                if into is None:
                    mine: Any = shown.layers[index]
                    mine.keys, mine.values = keys, values
                else:
                    into.update(keys, values, index)
        setattr(shown, IN_FRONT, in_front)
        return shown

    @classmethod
    def of(cls, backbone: Backbone, mixture: Mixture, places: Sequence[tuple[Group, Prefix, int]]) -> Prefix:
        """The prefix of a batch, each input with the prompt of its group, behind filler where that is shorter.

        Args:
            places: each group, the prefix that holds its prompt at the end of its positions, and the row there.
        """
        cache = new_cache(backbone)
        for index, layer in enumerate(places[0][1].cache.layers):
            if not (isinstance(layer, DynamicLayer) and layer.is_initialized):
                continue
            made = []
            for kind, like in enumerate(parts_of(layer)):
                # an input without prompt sees none of them, and finite values
                rows = like.new_zeros(mixture.rows, like.shape[1], mixture.length, like.shape[3])
                for group, prefix, row in places:
                    part = parts_of(prefix.cache.layers[index])[kind]
                    own = part[row : row + 1, :, part.shape[2] - group.entrant.length :]
                    own = nn.functional.pad(own, (0, 0, mixture.length - own.shape[2], 0))
                    rows = rows.index_copy(0, group.rows, own.expand(len(group.rows), *own.shape[1:]))
                made.append(rows)
            cache.update(*made, index)
        return cls(cache, {})


IN_FRONT = "prompt_in_front"


def is_in_front(cache: Any) -> bool:
    """Whether a cache has the prompt at its first positions whatever padding follows; else it stands behind the padding."""
    return bool(getattr(cache, IN_FRONT, False))


def can_take(cache: Any) -> bool:
    """Whether a caller's cache can be filled with a prefix: an empty one that grows, as ``generate`` brings."""
    plain = type(cache) is DynamicCache and not cache.offloading
    return plain and not cache.get_seq_length() and all(type(layer) in PLAIN_LAYERS for layer in cache.layers)


def filled(cache: DynamicCache) -> Iterator[DynamicLayer]:
    """The layers of a cache that hold keys and values."""
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            yield layer


def parts_of(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values [n, heads, P, d] of a layer that holds some."""
    assert layer.keys is not None and layer.values is not None
    return layer.keys, layer.values


def stored(backbone: Backbone, prompt: CompiledPrompt) -> Prefix:
    """The prefix that a compiled prompt holds."""
    cache, weight = new_cache(backbone), backbone.embed.weight
    for index, (keys, values) in enumerate(zip(*prompt.keys_and_values(), strict=True)):
        cache.update(keys[None].to(weight), values[None].to(weight), index)
    return Prefix(cache, {})


def may_pad_between(backbone: Backbone) -> bool:
    """Whether padding may stand between prompt and text: no layer has a window that it would fill, and positions can be told."""
    kinds = {type(layer) for layer in new_cache(backbone).layers}
    local = "local" in (getattr(backbone.stack.config, "attention_layers", None) or ())  # GPT-Neo's windows
    return kinds <= {DynamicLayer, DummyLayer} and "position_ids" in backbone.argument_names and not local


def new_cache(backbone: Backbone) -> DynamicCache:
    """An empty cache with the kinds of layers that the backbone has."""
    return DynamicCache(config=backbone.stack.config)


def shares(
    backbone: Backbone,
    adapters: Sequence[Adapter],
    entering: Entering,
    asked: Request,
    training: bool,
    tell: AnnounceOnce,
) -> bool:
    """Whether the inputs of a call of the stack read their prompts as keys and values; says so in training.

    Raises:
        SoftPromptError: a compiled prompt, which cannot be read otherwise, and a call in which it cannot be read so.
    """
    if not adapters:
        return False
    made = [one for one in adapters if one.prompt.keys_and_values() is None]
    off = torch.compiler.is_exporting()  # a graph would keep the number of rows that it was made with
    reasons = [
        "switched off" if off or not one.settings.shared_prefix else why_not(backbone, one.prompt) for one in made
    ]
    against = next((reason for reason in reasons if reason is not None), None)
    if len(made) < len(adapters):
        against = against or next(filter(None, (why_not(backbone, one.prompt) for one in adapters)), None)
        against = against or unsuited(backbone, asked, entering)
        if against is not None:
            raise SoftPromptError(
                f"a compiled prompt is read as keys and values, and here they cannot be: {against}. Mend that, or take the adapter that it was compiled from."
            )
        return True
    if training and against is None:
        tell("shared prefix", "the rows of a batch share the prompt's keys and values, computed once")
    elif training and against is not None and backbone.causal:
        tell("no shared prefix", against)
    batch, tokens = asked.tokens.shape[:2]
    saved, all_of_them = (batch - len(adapters)) * entering.length, batch * (entering.length + tokens)
    return against is None and saved >= LEAST_SHARE * all_of_them and unsuited(backbone, asked, entering) is None


def why_not(backbone: Backbone, prompt: Prompt) -> str | None:
    """What about a backbone and its prompt forbids sharing; None where nothing does."""
    if not backbone.causal and not (_replaced_everywhere(backbone, prompt) and backbone.model_type in CACHED_ENCODERS):
        return f"in {backbone.model_type} the prompt's states depend on the text behind it"
    if rotates_by_length(backbone):
        return f"{backbone.model_type} rotates positions by the length of the text, which the prompt alone has not"
    if backbone.cache_name is None:
        return f"{backbone.model_type} keeps no keys and values"
    if not prompt.open_sites():
        return "no virtual token enters"
    if prompt.marker is not None:
        return "the prompt stands inside the text and reads its beginning"
    if prompt.depends_on_input:
        return "the prompt reads the input, so rows do not share it"
    if prompt.is_soft():
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


def rotates_by_length(backbone: Backbone) -> bool:
    """Whether the rotation of positions changes with the length of a row (dynamic NTK, LongRoPE)."""
    rope: Any = getattr(backbone.stack.config, "rope_parameters", None) or {}
    kinds = [rope, *rope.values()] if isinstance(rope, dict) else []
    return any(isinstance(one, dict) and one.get("rope_type") in ("dynamic", "longrope") for one in kinds)


def _replaced_everywhere(backbone: Backbone, prompt: Prompt) -> bool:
    """Whether virtual tokens enter every layer, and nothing is mixed with what stood there."""
    replaced = [prompt.layers[site] for site in prompt.open_sites()] == list(range(backbone.num_layers))
    return replaced and not prompt.mixes()


def unsuited(backbone: Backbone, asked: Request, entering: Entering) -> str | None:
    """What forbids that this call of the stack reads keys and values: what it returns would not be the same. None for nothing."""
    call, mask, batch = asked.given, asked.mask, len(asked.tokens)
    if not (asked.cache is None or can_take(asked.cache)):
        return f"the call brings a cache of its own, {type(asked.cache).__name__}"
    if isinstance(entering, Mixture):
        windows = [getattr(layer, "sliding_window", None) for layer in new_cache(backbone).layers]
        if "position_ids" not in backbone.argument_names:
            return f"{backbone.model_type} takes no position_ids, and prompts of different length need them told"
        if any(window is not None and window <= entering.length for window in windows):
            return f"a window of {backbone.model_type} is shorter than the longest of several prompts"
    if asked_for(call, backbone, "output_attentions"):
        return "the call wants attention weights, which have columns for the prompt"
    padded = is_padded_in_front(mask)
    kept = backbone.causal and not backbone.stack.training and asked_for(call, backbone, "use_cache")
    if padded and kept and not may_pad_between(backbone):
        return f"padding on the left would stand between prompt and text, in the windows of {backbone.model_type} (use_cache=False moves it behind)"
    given = call.get("position_ids")
    if given is None:
        return None
    first = torch.zeros(len(given), 1, dtype=torch.long, device=given.device)
    if padded and mask is not None:
        given, first = given.expand(batch, -1), (mask != 0).int().argmax(1, keepdim=True)
    if bool((given.gather(1, first) != backbone.first_position).any()):
        return "its positions do not start where the family's own do"
    return None


def without_cache(output: Any) -> Any:
    """The stack's output, tuple or not, without a cache in it."""
    if isinstance(output, tuple):
        return tuple(part for part in output if not isinstance(part, Cache))
    return type(output)(**{name: value for name, value in output.items() if not isinstance(value, Cache)})
