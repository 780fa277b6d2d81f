"""Which weights a backbone has."""

from __future__ import annotations

import hashlib
import json

from .._types import SoftPromptError
from .backbone import Backbone
from .config import SoftPromptConfig
from .register import NAME

OUTSIDE = (f"{NAME}.", "pooler.")  # no part of a layer; a pooler that a checkpoint lacks is random
SAMPLE = 4096  # numbers of each tensor that a fingerprint reads


def fingerprint(backbone: Backbone) -> str:
    """A digest of the stack's weights (a sample of each) and their dtypes: keys and values are those of these weights alone."""
    digest = hashlib.sha256()
    for name, parameter in backbone.stack.named_parameters():
        if name.startswith(OUTSIDE):
            continue
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLE)].float().cpu().numpy()
        digest.update(json.dumps([name, list(parameter.shape), str(parameter.dtype)]).encode() + sample.tobytes())
    return digest.hexdigest()


def check_compiled(config: SoftPromptConfig, backbone: Backbone) -> None:
    """Refuse keys and values that were made by other weights."""
    if config.compiled_for is not None and (got := fingerprint(backbone)) != config.compiled_for:
        raise SoftPromptError(
            f"this prompt was compiled for other weights, or for another dtype: expected a backbone with the fingerprint {config.compiled_for[:12]}, got {got[:12]} ({backbone.embed.weight.dtype}); compile it again on this one."
        )
