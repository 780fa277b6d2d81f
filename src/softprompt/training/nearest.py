"""A prompt that starts from the nearest of several trained ones: the one under which the loss of the new task is lowest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from datasets import Dataset
from peft import PeftConfig, get_peft_model
from peft.utils import CONFIG_NAME
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .._types import SoftPromptError, announce
from ..data import Collate, by_length, single_labels, stratified
from ..tuner import SoftPromptConfig, evaluating
from .keys.options import RunOptions
from .prepare import Prepared

ROWS, AT_ONCE = 256, 32  # training rows on which candidates are compared, and those of one batch
Config = TypeVar("Config", bound=PeftConfig)


def candidates(config: PeftConfig) -> list[str]:
    """The adapters among which ``init="adapter"`` is to choose; empty where the config names one, or starts otherwise.

    Raises:
        SoftPromptError: one of a list is no adapter, or a folder holds none.
    """
    if not isinstance(config, SoftPromptConfig) or config.init != "adapter":
        return []
    given = config.init_path
    if isinstance(given, list):
        for path in given:
            if not _is_adapter(Path(path)):
                raise SoftPromptError(
                    f"init_path: expected folders of trained prompts, got {path!r}, which has no {CONFIG_NAME}."
                )
        return list(given)
    folder = Path(str(given))
    if _is_adapter(folder) or not folder.is_dir():
        return []  # one adapter, or none: the prompt itself says so
    found = [str(path) for path in sorted(folder.iterdir()) if _is_adapter(path)]
    if not found:
        raise SoftPromptError(
            f"init_path={given!r}: expected a trained prompt, or a folder of such folders; there is no {CONFIG_NAME} in it, nor one folder below."
        )
    return found


def _is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file()


def check_nearest(options: RunOptions, prepared: Prepared, config: PeftConfig) -> None:
    """Refuse a choice among prompts that a head without knowledge would make.

    Raises:
        SoftPromptError: as `candidates`; or the head starts at random.
    """
    if candidates(config) and (prepared.fresh or (prepared.card.head == "pooled" and options.head_init != "probe")):
        raise SoftPromptError(
            f"init_path names several prompts, of which the one with the lowest loss is taken, and a head that starts at random (head={prepared.card.head!r}, head_init={options.head_init!r}) has a loss without meaning; use head='pooled' with head_init='probe', or name one prompt."
        )


def start_nearest(prepared: Prepared, config: Config) -> tuple[Config, dict[str, float]]:
    """Let a prompt that may start from several adapters start from the one with the lowest loss.

    The loss is the one at which training would start: that of up to 256 training rows, drawn by class, under the prompt and the
    head as it starts, without dropout. An adapter that does not fit the backbone or the prompt is left out, and said so.

    Returns:
        The config with one adapter, and the loss of each by its folder; empty where there was nothing to choose.

    Raises:
        SoftPromptError: none of the adapters fits.
    """
    paths = candidates(config)
    if not paths:
        return config, {}
    train = prepared.encoded["train"]
    picked = stratified(single_labels(train["labels"]), ROWS, seed=0) if len(train) > ROWS else range(len(train))
    rows, collate = by_length(train.select(picked)), prepared.kind.collator(prepared.tokenizer)
    losses: dict[str, float] = {}
    refused: list[SoftPromptError] = []
    for path in paths:
        with torch.random.fork_rng():  # the run that follows is the one that names this adapter alone
            try:
                losses[path] = _loss_from(prepared.model, replace(config, init_path=path), rows, collate)
            except SoftPromptError as error:
                refused.append(error)
                announce(f"{path} is left out", str(error))
    if not losses:
        raise refused[0]
    best = min(losses, key=lambda path: losses[path])
    others = ", ".join(f"{path} {loss:.4g}" for path, loss in losses.items() if path != best) or "none"
    announce(
        f"init_path={best}", f"under it the loss of {len(rows)} training rows is {losses[best]:.4g}; others: {others}"
    )
    return replace(config, init_path=best), losses


@torch.no_grad()
def _loss_from(model: PreTrainedModel, config: PeftConfig, rows: Dataset, collate: Collate) -> float:
    """The mean loss of rows at the start that a config describes; the model is as it was."""
    with torch.enable_grad():
        prompted = get_peft_model(model, config)
    try:
        total = 0.0
        with evaluating(prompted):
            for batch in DataLoader(rows, batch_size=AT_ONCE, collate_fn=collate):
                given = {name: value.to(prompted.device) for name, value in batch.items()}
                total += float(prompted(**given).loss) * len(given["labels"])
        return total / len(rows)
    finally:
        prompted.unload()
