"""What of a method cannot act as it is set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._types import SoftPromptError, announce
from ..objectives import OBJECTIVES
from ..tuner import Backbone, SoftPromptConfig


def doubt_method(config: SoftPromptConfig, given: Mapping[str, Any], backbone: Backbone, longest: int) -> None:
    """Say which settings make no difference.

    Args:
        config: of the prompt.
        given: the options of the method, as the user gave them.
        backbone: that the prompt is for.
        longest: tokens of the longest input of the run.

    Raises:
        SoftPromptError: an objective reads layers that the prompt does not enter.
    """
    if "budget" in given and config.layers:
        announce(
            f"budget={given['budget']} makes no difference", f"layers={config.layers} are named, so none are searched"
        )
    if config.prompt == "decomposed" and config.max_positions > longest:
        announce(
            f"max_positions={config.max_positions} is more than the {longest} tokens of the longest input",
            f"rows of the low-rank pair behind it change no text, and a fusion still attends to them; {longest} gives the same texts their delta",
        )
    for entry in config.objectives:
        name = entry["name"]
        least = OBJECTIVES[name](**{key: value for key, value in entry.items() if key != "name"}).least_tokens
        if config.num_virtual_tokens < least:
            announce(
                f"objective {name!r} does nothing",
                f"it compares virtual tokens with each other: expected at least {least}, got num_virtual_tokens={config.num_virtual_tokens}",
            )
    check_objectives(config, backbone.num_layers)


def check_objectives(config: SoftPromptConfig, num_layers: int) -> None:
    """Raise `SoftPromptError` where an objective reads layers that the prompt does not enter, or may not while it is searched."""
    entered = [0] if config.placement == "input" else list(config.layers or range(num_layers))
    for entry in config.objectives:
        if missing := sorted(set(entry.get("layers") or ()) - set(entered)):
            raise SoftPromptError(
                f"objective {entry['name']!r} reads the layers {list(entry['layers'])}, but the prompt enters {entered}; name layers of these, without {missing}."
            )
