"""What a run leaves: its result, in memory and as ``result.json`` has it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel

from ..._environment import environment
from ..._files import to_json, write_json
from ..._types import SoftPromptError, announce
from ...models.hub import OPTIONS_FILE
from ...models.scores import LOWER_IS_BETTER
from ...tuner import is_first_process
from ..keys.options import RunOptions
from ..prepare import Prepared
from .folder import writing


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves: the live model, its scores, and ``result.json`` as a dict."""

    model: PeftModel
    metrics: dict[str, float]
    document: dict[str, Any]
    folder: Path


@contextmanager
def in_memory() -> Iterator[None]:
    """What a user can do where the accelerator's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SoftPromptError(
            f"the accelerator's memory is too small for this run ({str(error).splitlines()[0]}); lower per_device_train_batch_size (and raise gradient_accumulation_steps) or max_length, or set gradient_checkpointing=True, and give another folder."
        ) from error


def claim(folder: Path, options: RunOptions) -> None:
    """Mark the folder as this run's."""
    PartialState().wait_for_everyone()  # each process has seen the folder free
    if is_first_process():
        with writing(folder):
            write_json(folder / OPTIONS_FILE, options.to_flat())


def named(scores: Mapping[str, Mapping[str, float]], prepared: Prepared, own: Iterable[str] = ()) -> dict[str, float]:
    """The scores of a trainer by split, under the names that they have in ``result.json``; those of a metric of the user's among them."""
    names = dict.fromkeys((*prepared.kind.scores(prepared.card.label_names), *own))
    return {
        f"{split} {name}": found[f"eval_{name}"]
        for split, found in scores.items()
        for name in names
        if f"eval_{name}" in found
    }


def generated(options: RunOptions, prepared: Prepared, model: PeftModel) -> dict[str, float]:
    """What is measured on the test rows alone, beside what the trainer measures."""
    if "test" not in prepared.encoded:
        return {}
    scores = prepared.kind.test_scores(model, prepared.tokenizer, prepared.task.test, options.max_length)
    return {f"test {name}": value for name, value in scores.items()}


@dataclass(frozen=True)
class Effort:
    """What training took, and how it went: what ``result.json`` says of it."""

    steps: int
    best_step: int | None
    chosen_by: str | None
    greater_is_better: bool
    learning_rate: float
    trained: int
    critics: int
    total: int
    history: list[dict[str, Any]]


def noted(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a trainer's log that ``result.json`` keeps; shares of terms stand beside the loss."""
    kept = {"eval_loss", "loss", "information head", "train_accuracy"}
    return [dict(entry) for entry in history if kept & entry.keys()]


def describe_run(
    options: RunOptions,
    prepared: Prepared,
    config: PeftConfig,
    metrics: dict[str, float],
    effort: Effort,
    times: Mapping[str, float],
) -> dict[str, Any]:
    """PEFT's method-comparison layout: run_info, train_info, meta_info."""
    weights = Path(options.output_dir) / "adapter_model.safetensors"
    by = [effort.chosen_by, prepared.kind.scores(prepared.card.label_names)[0]]
    return {
        "run_info": {
            "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "total_time": times["total_time"],
            "experiment_name": f"{options.method}/{prepared.task.name}-{options.shots or 'all'}-{options.seed}",
            "train_config": options.to_flat(),
            "peft_config": json.loads(
                to_json(config.to_dict(), default=lambda o: sorted(o) if isinstance(o, set) else str(o))
            ),
            "error_msg": "",
        },
        "train_info": {
            **metrics,
            "train_time": times["train_time"],
            "train_steps": effort.steps,
            "learning_rate": effort.learning_rate,
            "best_checkpoint_step": effort.best_step,
            "metric_for_best_model": effort.chosen_by,
            "greater_is_better": effort.greater_is_better,
            "file_size": weights.stat().st_size if weights.is_file() else None,
            "num_trainable_params": effort.trained,
            "num_critic_params": effort.critics,
            "num_total_params": effort.total,
            "probe": prepared.first_of(prepared.probe),
            "beats_probe": _beats("the linear probe", "take the probe", prepared.probe, by, metrics),
            **_against_template(prepared, by, metrics),
            "status": "success",
            "metrics": effort.history,
        },
        "meta_info": {
            "model_info": {
                "backbone": options.backbone,
                "model_type": prepared.model.config.model_type,
                "dtype": prepared.card.dtype,
                "pooling": prepared.card.pooling,
                "pairs": prepared.card.pairs,
                "features": prepared.card.features,
            },
            "dataset_info": {
                "label_names": prepared.card.label_names,
                **prepared.task.origin,
            },
            **environment(),
        },
    }


def _against_template(prepared: Prepared, by: Iterable[str | None], metrics: dict[str, float]) -> dict[str, Any]:
    """What template and label words have alone, where the head is of these."""
    if not (alone := prepared.zero_shot):
        return {}
    beats = _beats("template and label words alone", "take them as they are", alone, by, metrics)
    return {"zero_shot": prepared.first_of(alone), "beats_zero_shot": beats}


def _beats(
    what: str,
    take: str,
    before: Mapping[str, Mapping[str, float]],
    by: Iterable[str | None],
    metrics: Mapping[str, float],
) -> bool | None:
    """Whether the dev rows are read better than ``before`` the prompt, by the first score of ``by`` that both have. Says so if not.

    None where they have none.
    """
    found = before.get("dev", {})
    score = next((name for name in by if name in found and f"dev {name}" in metrics), None)
    if score is None:
        return None
    prompt, alone = metrics[f"dev {score}"], found[score]
    better = prompt < alone if score in LOWER_IS_BETTER else prompt > alone
    if not better:
        announce(
            f"the prompt did not beat {what} (dev {score} {prompt:.3f} against {alone:.3f})",
            f"{take}, more rows, another learning_rate, or another method",
        )
    return better
