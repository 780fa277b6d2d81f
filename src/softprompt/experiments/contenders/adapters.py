"""Every method of the library, run as `softprompt.train` runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from ...search import check_budget
from ...serving import Predictor
from ...training import RunOptions, train
from ...training.doubts import check_layers_read
from ...training.prepare import read_task
from ...tuner import Backbone, SoftPromptConfig, check_fits, find_backbone
from ._base import SPLITS, Outcome, check_common, dev_curve, facts, rows_said


def run_adapter(flat: dict[str, Any]) -> Outcome:
    """Run a method of `softprompt.methods.METHODS` by `softprompt.train`."""
    options = RunOptions.from_flat(flat)
    result = train(options, progress=False)
    info, run = result.document["train_info"], result.document["run_info"]
    search = info.get("search") or {}
    extra = {
        "probe": info["probe"],
        "zero_shot": info.get("zero_shot"),
        "best_step": info["best_checkpoint_step"],
        "last": _last(info.get("last")),
        "critic_parameters": info["num_critic_params"],
        "mechanism": _acted(info.get("mechanism") or {}) or None,
        "layers": run["peft_config"].get("layers"),
        "gates": search.get("gates"),
        "gate_gradients": search.get("gradients"),
        "layer_scores": search.get("scores"),
        "layer_score": search.get("layer_score"),
        "search_steps": search.get("steps"),
        "train_curve": train_curve(info["metrics"]) or None,
        "topology": info.get("topology", {}).get("layers"),
        **rows_said(result.document["meta_info"]["dataset_info"]),
    }
    return Outcome(
        dev=info["dev accuracy"],
        test=info["test accuracy"],
        parameters=info["num_trainable_params"],
        steps=info["train_steps"],
        learning_rate=info["learning_rate"],
        curve=dev_curve(info["metrics"]),
        train_seconds=info["train_time"] + search.get("seconds", 0.0),
        extra={key: value for key, value in extra.items() if value is not None},
        predictions=partial(_predicted_again, options, result.folder),
    )


def check_adapter(flat: dict[str, Any]) -> None:
    """Build the method's config, the prompt's shapes and the trainer's arguments without data or model."""
    options = RunOptions.from_flat(flat)
    config = options.config()
    if isinstance(config, SoftPromptConfig):
        _check_shapes(config, options.backbone)
    check_common(options)


def _check_shapes(config: SoftPromptConfig, backbone: str) -> None:
    """Check that the prompt fits the backbone's architecture, and make it without its numbers, so that its shapes are checked."""
    # whether there is room for text too, is checked before cells run: suites are read whose cells have failed for lack of it
    found = replace(_architecture(backbone), max_positions=None)
    check_fits(config, found)
    if config.placement == "gated":
        check_budget(config.budget, found.num_layers if config.layers is None else len(config.layers))
    check_layers_read(config, found.num_layers)
    with torch.device("meta"):
        replace(config, hidden_size=found.hidden_size, num_layers=found.num_layers).build()


@lru_cache(maxsize=8)
def _architecture(backbone: str) -> Backbone:
    """The backbone without its weights, once for all methods of a suite."""
    with torch.device("meta"):
        return find_backbone(AutoModel.from_config(facts(backbone)))


def _acted(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What a run notes of its mechanism, without what a search of layers found: a cell has that under names of its own."""
    return {name: value for name, value in figures.items() if not name.startswith("layer_")}


def _last(scores: Mapping[str, float] | None) -> dict[str, float] | None:
    """Accuracy of what the last step left, under the names that a cell has for the chosen checkpoint."""
    return None if scores is None else {split: scores[f"{split} accuracy"] for split in SPLITS}


def train_curve(history: list[dict[str, Any]]) -> list[list[float]]:
    """Return pairs [step, accuracy on the training rows] of a run that tracks it."""
    return [[entry["step"], entry["train_accuracy"]] for entry in history if "train_accuracy" in entry]


def _predicted_again(options: RunOptions, folder: Path) -> tuple[list[int], list[int]]:
    rows = read_task(options).with_test_rows(options.test_limit).test
    assert rows is not None  # a cell has test rows: it was tested on them
    predictor = Predictor(folder)
    names = predictor.card.label_names
    return list(rows["label"]), [names.index(line["label"]) for line in predictor.predict(rows.to_list())]
