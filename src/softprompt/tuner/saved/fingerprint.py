"""Which weights a backbone has."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable

from torch import Tensor

from ..._types import SoftPromptError, log
from ..backbone import Backbone
from ..config import SoftPromptConfig
from ..register import NAME

OUTSIDE = (f"{NAME}.", "pooler.")  # no part of a layer; a pooler that a checkpoint lacks is random
# fields of a config that change what layers make of the same weights, and those that only look so
USED = re.compile(
    "rope|theta|eps|scal|softcap|window|layer_types|hidden_act|activation|position|attention|multiplier|norm"
)
UNUSED = re.compile("drop|implementation|initializer")
SAMPLE = 4096  # numbers of each tensor that are read
NUMBERS = 16  # of the embedding, that an adapter keeps
ROWS, COLUMNS = 131, 7  # steps from one of these to the next; further rows than a table has are left out
NEAR = 0.05  # a number is the same within this share: dtypes round, and who trains a backbone a little further keeps it


def fingerprint(backbone: Backbone) -> str:
    """A digest of the stack's weights (a sample of each), their dtypes, and what its config says of how they are used: keys and
    values are those of these alone."""
    digest = hashlib.sha256()
    facts = backbone.stack.config.to_dict()
    used = {key: facts[key] for key in sorted(facts) if USED.search(key) and not UNUSED.search(key)}
    digest.update(json.dumps(used, default=str, sort_keys=True).encode())
    add_weights(digest, (named for named in backbone.stack.named_parameters() if not named[0].startswith(OUTSIDE)))
    return digest.hexdigest()


def add_weights(digest: hashlib._Hash, named: Iterable[tuple[str, Tensor]]) -> None:
    """Add names, shapes, dtypes and a sample of each tensor to a digest."""
    for name, tensor in named:
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLE)].float().cpu().numpy()
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode() + sample.tobytes())


def check_compiled(config: SoftPromptConfig, backbone: Backbone) -> None:
    """Refuse keys and values that were made by other weights."""
    if config.compiled_for is not None and (got := fingerprint(backbone)) != config.compiled_for:
        raise SoftPromptError(
            f"this prompt was compiled for other weights, or for another dtype: expected a backbone with the fingerprint {config.compiled_for[:12]}, got {got[:12]} ({backbone.embed.weight.dtype}); compile it again on this one."
        )
    facts = backbone.stack.config
    heads = getattr(facts, "num_key_value_heads", None) or getattr(facts, "num_attention_heads", None)
    width = getattr(facts, "head_dim", None) or backbone.width // (getattr(facts, "num_attention_heads", None) or 1)
    if config.prompt == "compiled" and heads is not None and (heads, width) != (config.kv_heads, config.head_dim):
        raise SoftPromptError(
            f"this prompt's keys and values are those of another backbone: expected {config.kv_heads} heads of width {config.head_dim}, got {heads} of {width} in {backbone.model_type}; load it on the one that it was made for."
        )


def sample_embedding(backbone: Backbone) -> list[float] | None:
    """A few numbers of the input embedding, to tell weights of the same shapes apart; None where a process holds no part of it."""
    weight = backbone.embed.weight.detach()
    if weight.is_meta or weight.ndim != 2 or not weight.numel() or hasattr(weight, "full_tensor"):  # sharded
        return None
    rows, width = weight.shape
    places = [(1 + ROWS * i, COLUMNS * i % width) for i in range(NUMBERS) if 1 + ROWS * i < rows]
    return [float(f"{weight[place].float().item():.4g}") for place in places]


def check_weights(config: SoftPromptConfig, backbone: Backbone) -> None:
    """Warn where an adapter was trained on other weights of the same shapes, and note these weights where it will train on."""
    got, expected = sample_embedding(backbone), config.embedding_sample
    if got is None:
        return
    if config.initialized and expected:
        pairs = list(zip(expected, got, strict=False))
        other = sum(abs(a - b) > NEAR * max(abs(a), abs(b)) for a, b in pairs)
        if other > len(pairs) / 2:
            origin = config.base_model_name_or_path or "the backbone it was trained on"
            log.warning(
                "this adapter was trained on other weights: %d of %d numbers of the input embedding differ from those in its config; what it answers here may be worth nothing. Load it on %s.",
                other,
                len(pairs),
                origin,
            )
    if not config.inference_mode or expected is None:
        config.embedding_sample = got
