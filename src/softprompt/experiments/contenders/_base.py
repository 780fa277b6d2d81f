"""What a contender is and leaves, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from transformers import TrainingArguments

from ..._types import SoftPromptError
from ...models.classifier import check_layers
from ...models.places import read_config
from ...models.probe import logits_of_rows
from ...training import RunOptions
from ...training.arguments import refusing, scored_when
from ...training.keys.options import ARGUMENTS
from ...training.prepare import Prepared

SPLITS = ("dev", "test")  # that a cell is scored on
RUN_KEYS = frozenset(RunOptions.hints())
COMMON_KEYS = RUN_KEYS | ARGUMENTS.keys()  # options that do not belong to one method


@dataclass(frozen=True)
class Outcome:
    """What a trained contender leaves.

    Attributes:
        dev, test: accuracy of the chosen checkpoint.
        parameters: number of trained parameters, with the head.
        steps: steps of the optimizer.
        learning_rate: None where nothing is trained by steps.
        curve: pairs [step, dev accuracy], one per evaluation in training.
        train_seconds: seconds of training alone.
        extra: what a method has to say beside that, as JSON.
        predictions: computes the true and the predicted class index of every test row when it is called.
    """

    dev: float
    test: float
    parameters: int
    steps: int
    learning_rate: float | None
    curve: list[list[float]]
    train_seconds: float
    predictions: Callable[[], tuple[list[int], list[int]]]
    extra: dict[str, Any] = field(default_factory=dict)


def as_run(flat: Mapping[str, Any]) -> RunOptions:
    """Read the options of a contender that is no method of the library; the one that stands in for it attaches nothing."""
    known = {key: value for key, value in flat.items() if key != "method" and key in COMMON_KEYS}
    return RunOptions.from_flat({**known, "method": "prompt_tuning"})


@dataclass(frozen=True)
class Contender:
    """A name that ``method`` can have in a suite.

    Attributes:
        name: of the contender.
        keys: flat options that it takes.
        has_rate: whether it has a learning rate to tune.
        run: trains and tests it by flat options.
        check: raises `SoftPromptError` for options that cannot work.
        ready: raises `SoftPromptError` when a package that it needs is not installed.
        gathered: the options of the run that gathers its rows, backbone and head; None where it does so by itself.
    """

    name: str
    keys: frozenset[str]
    has_rate: bool
    run: Callable[[dict[str, Any]], Outcome]
    check: Callable[[dict[str, Any]], None]
    ready: Callable[[], None] = lambda: None
    gathered: Callable[[Mapping[str, Any]], RunOptions] | None = as_run


def dev_curve(history: list[dict[str, Any]]) -> list[list[float]]:
    """Return pairs [step, dev accuracy] of a run's history, whose last two entries are the chosen checkpoint on dev and test."""
    scored = [entry for entry in history if "eval_accuracy" in entry]
    return [[entry["step"], entry["eval_accuracy"]] for entry in scored[:-2] if entry["step"] > 0]


def rows_said(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Say where the rows came from: how many, from which files, and how many inputs stand in two splits."""
    return {"rows": origin["rows"], "files": origin["files"], "overlap": origin["overlap"]}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def predictions(prepared: Prepared, split: str) -> tuple[list[int], list[int]]:
    """Return true and predicted classes of the rows of ``split``, by a model that holds all its weights."""
    rows = prepared.encoded[split]
    return list(rows["labels"]), logits_of_rows(prepared.model, rows, prepared.tokenizer).argmax(-1).tolist()


def check_probed_head(name: str, flat: dict[str, Any]) -> None:
    """Refuse another head than the pooled one that starts from the probe."""
    for key, expected in (("head", "pooled"), ("head_init", "probe")):
        if flat.get(key, expected) != expected:
            raise SoftPromptError(f"method {name!r}: expected {key}={expected!r}, got {flat[key]!r}; take it out.")
    check_common(as_run(flat))


def check_common(options: RunOptions) -> None:
    """Check that the layers that the head reads are there, and that `TrainingArguments` takes what it is given."""
    if isinstance(options.features, list):
        check_layers(options.features, facts(options.backbone).get_text_config().num_hidden_layers)
    with refusing():
        TrainingArguments(output_dir="unused", **{**scored_when(options.training), **options.training, "use_cpu": True})


@lru_cache(maxsize=8)
def facts(backbone: str) -> Any:
    """Read the backbone's config, once for all methods of a suite."""
    return read_config(backbone)
