"""The trainer of a run, and what it reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from .._types import SoftPromptError
from ..data import Collate
from ..prompts import Prompt
from ..tuner import find_state
from ..watch import Watched, watchers
from .arguments import chosen_by, refusing
from .keys.options import RunOptions
from .loop.critics import active_objectives
from .loop.refit import HeadFitCallback
from .loop.trainer import PromptTrainer
from .metric import WithMetric
from .prepare import Prepared
from .states import add_below, add_unprompted, needs_unprompted

Report = Callable[[str, int, int], None]
Own = TypeVar("Own", bound=PromptTrainer)
HEAD_RATE = 1e-3  # a head that starts from a probe needs little


def make_trainer(
    options: RunOptions,
    prepared: Prepared,
    model: PreTrainedModel | PeftModel,
    arguments: TrainingArguments,
    callbacks: list[TrainerCallback],
    fits_head: bool = False,
    rows: Dataset | None = None,
    report: Report | None = None,
) -> PromptTrainer:
    """A trainer on the prepared training rows, or on ``rows``, with the columns that the model's objectives read.

    With ``options.score_last`` it scores what its last step leaves on the dev rows and the test rows.

    Args:
        fits_head: fit the head before each evaluation instead of training it.
        report: told (what, done, in all) while states are computed.
    """
    kind, names = prepared.kind, prepared.card.label_names
    collate = kind.collator(prepared.tokenizer)
    rows, dev = prepared.encoded["train"] if rows is None else rows, prepared.encoded["dev"]
    run = Watched(rows, dev, collate, Path(arguments.output_dir).parent)
    chosen = watchers(options.track, kind, find_state(model) is not None)
    callbacks = [*callbacks, *(watcher.made_for(run) for watcher in chosen)]
    rows, dev, collate = with_states(options, model, rows, dev, collate, arguments.device, report)
    fitted: dict[str, float] = {}
    if fits_head:
        callbacks, fitted = [*callbacks, HeadFitCallback(rows, collate)], {"head_learning_rate": 0.0}
    trainer = build_trainer(
        PromptTrainer,
        options,
        callbacks,
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=dev,
        data_collator=collate,
        compute_metrics=kind.metrics(names) if prepared.metric is None else _with_metric(prepared, arguments),
        preprocess_logits_for_metrics=kind.kept,
        last_on={"dev": dev, **_test_rows(prepared)} if options.score_last else None,
        **fitted,
    )
    _refuse_parts(trainer, bool(chosen) or fits_head)
    return trainer


def build_trainer(own: type[Own], options: RunOptions, callbacks: list[TrainerCallback], **given: Any) -> Own:
    """A trainer of the class ``own``, with what every run has: early stopping, the head's rate, and nothing printed."""
    if options.early_stopping_patience is not None:
        callbacks = [*callbacks, EarlyStoppingCallback(options.early_stopping_patience)]
    rate = HEAD_RATE if options.head_learning_rate is None else options.head_learning_rate
    with refusing():
        trainer = own(callbacks=callbacks, **{"head_learning_rate": rate, **given})
    trainer.remove_callback(PrinterCallback)  # stdout belongs to results; the log is in result.json
    return trainer


def _with_metric(prepared: Prepared, arguments: TrainingArguments) -> WithMetric:
    assert prepared.metric is not None
    best = chosen_by(arguments) or "loss"  # a search of layers chooses no checkpoint
    return WithMetric(prepared.metric, prepared.kind, prepared.card.label_names, best)


def _test_rows(prepared: Prepared) -> dict[str, Dataset]:
    return {name: rows for name, rows in prepared.encoded.items() if name == "test"}


def with_states(
    options: RunOptions,
    model: nn.Module,
    rows: Dataset,
    dev: Dataset,
    collate: Collate,
    device: torch.device,
    report: Report | None,
) -> tuple[Dataset, Dataset, Collate]:
    """Training and dev rows with the states of the frozen backbone that training reads, and what collates them."""

    def told(what: str) -> Callable[[int, int], None] | None:
        return None if report is None else partial(report, what)

    if needs_unprompted(model):
        model.to(device)
        rows = add_unprompted(model, rows, collate, progress=told("unprompted states"))
        prompt = _prompt_of(model)
        if prompt is not None and prompt.reads_unprompted:
            dev = add_unprompted(model, dev, collate, progress=told("unprompted states"))
    if options.cache_below != "none":
        model.to(device)
        how, progress = options.cache_below, told("states below the prompt")
        (rows, dev), collate = add_below(model, [rows, dev], collate, how, progress=progress)
    return rows, dev, collate


def _refuse_parts(trainer: PromptTrainer, whole: bool) -> None:
    """Refuse FSDP where something needs a prompt or a head ``whole``, or the prompt has gates.

    This is not known before there is a trainer: its Accelerator decides by arguments, environment and number of processes.
    """
    prompt = _prompt_of(trainer.model)
    if trainer.is_fsdp_enabled and (whole or (prompt is not None and prompt.gate_logits is not None)):
        raise SoftPromptError(
            "FSDP leaves each process a part of prompt and head, which track, a search of layers and head_fit='probe' need whole: expected track='none', named layers and head_fit='gradient'; or use DDP (fsdp off)."
        )
    objectives = active_objectives(trainer.model)
    if trainer.is_fsdp_enabled and objectives is not None and (shares := list(objectives.balances)):
        raise SoftPromptError(
            f"FSDP runs one backward pass for each forward pass, and the share of {', '.join(shares)} in the gradient is measured by further ones: expected weights in place of shares (tsloss: share=null; infoprompt: gamma and beta); or use DDP (fsdp off)."
        )


def _prompt_of(model: nn.Module) -> Prompt | None:
    """The active prompt of a model, if it has one."""
    state = find_state(model)
    return None if state is None else state.active_prompt()
