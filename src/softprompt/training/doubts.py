"""What of a run is surely not meant as it is set: what cannot act, and what acts too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from .._types import SoftPromptError, announce, shown
from ..data import lengths_of
from ..objectives import build_objective, check_entered
from ..tuner import Backbone, SoftPromptConfig
from .keys.options import RunOptions

HIGHEST = 10.0  # learning rate of AdamW that may be meant; prompts learn at 0.3 and less


def doubt_method(
    config: SoftPromptConfig, given: Mapping[str, Any], backbone: Backbone, splits: Iterable[Dataset]
) -> None:
    """Say which settings make no difference, and which terms outweigh the task.

    Args:
        config: of the prompt.
        given: the options of the method, as the user gave them.
        backbone: that the prompt is for.
        splits: the encoded rows of the run.

    Raises:
        SoftPromptError: an objective reads layers that the prompt does not enter.
    """
    for key, because in config.idle(given).items():
        searched = because == "placement" and config.layers  # a search of layers was meant
        named = f"layers={config.layers} are named, so none are searched"
        announce(
            f"{key}={given[key]!r} makes no difference",
            named if searched else f"{because}={getattr(config, because)!r}",
        )
    # a run of another prompt need not look at all its rows
    if config.prompt == "decomposed" and config.max_positions > (longest := max(map(max, map(lengths_of, splits)))):
        announce(
            f"max_positions={config.max_positions} is more than the {longest} tokens of the longest input",
            f"rows of the low-rank pair behind it change no text, and a fusion still attends to them; {longest} gives the same texts their delta",
        )
    for entry in config.objectives:
        for choice, reason in build_objective(entry).doubts(config.num_virtual_tokens):
            announce(choice, reason)
    check_layers_read(config, backbone.num_layers)


def doubt_words(options: RunOptions) -> None:
    """Say that a head which reads no label words was given some; a suite may have them for its other methods."""
    if options.head == "verbalizer":
        return
    for name in ("template", "label_words", "label_pieces"):
        if (value := getattr(options, name)) != getattr(RunOptions, name):
            announce(
                f"{name}={shown(value)} makes no difference",
                f"head={options.head!r} reads no label words; head=verbalizer does",
            )


def doubt_rate(arguments: TrainingArguments) -> None:
    """Say where the learning rate is that of a slip."""
    rate = arguments.learning_rate
    if "adamw" in arguments.optim and rate > HIGHEST:
        announce(
            f"learning_rate={rate:g} is hardly meant",
            f"AdamW moves every trained number by about that much at each step; expected at most {HIGHEST:g}, 0.3 is high",
        )


def check_layers_read(config: SoftPromptConfig, num_layers: int) -> None:
    """Raise `SoftPromptError` where an objective reads layers that the prompt does not enter, or that its search may drop."""
    entered = [0] if config.placement == "input" else list(config.layers or range(num_layers))
    drops = config.placement == "gated" and config.budget < len(entered)
    for entry in config.objectives:
        wanted = entry.get("layers") or ()
        check_entered(entry["name"], wanted, entered)
        if wanted and drops:
            raise SoftPromptError(
                f"objective {entry['name']!r} reads the layers {list(wanted)}, but the search keeps {config.budget} of {len(entered)} and may drop them; leave its layers out, and it reads those that are kept."
            )
