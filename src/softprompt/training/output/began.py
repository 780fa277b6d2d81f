"""A run that goes on keeps the config under which it began, where defaults have changed since."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import CONFIG_NAME

from ..._documents import read_object
from ..._types import announce
from ...objectives import SHARE_EVERY
from ...tuner import SoftPromptConfig

# Fields whose value by default has changed, in a method or in the config -> what holds for a config saved before it had the field
BEFORE: dict[str, Any] = {
    "objectives": [],
    "objectives_first": 0.0,
    "share_every": SHARE_EVERY,  # it measures, and moves nothing
    "fusion_scores": "dot",
    "fusion_temperature": 0.1,  # of no effect on products
    "layer_score": "gates",
    "max_positions": 0,
    "gate_optimizer": "adam",
}


def as_it_began(config: PeftConfig, checkpoint: str | None) -> PeftConfig:
    """The config of a run, or of its search, that goes on from ``checkpoint``: one that began under other defaults keeps them."""
    path = Path(checkpoint or "", CONFIG_NAME)
    if checkpoint is None or not isinstance(config, SoftPromptConfig) or not path.is_file():
        return config
    began = read_object(path, "PEFT config", "remove the checkpoint, and --resume starts from an earlier one")
    kept = {name: began.get(name, before) for name, before in BEFORE.items()}
    changed = {name: value for name, value in kept.items() if value != getattr(config, name)}
    if changed:
        announce(f"{', '.join(changed)} as the run began", f"{path} was written under other defaults")
    return replace(config, **changed)
