"""Full fine-tuning: all weights of backbone and head, with the trainer that prompts have."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from ...data import batches, by_length
from ...methods import find_method
from ...models.probe import fit_probe, head_features, set_head
from ...training import PromptTrainer
from ...training.arguments import training_arguments, try_out
from ...training.fit import make_trainer
from ...training.loop.refit import choose_head_fit
from ...training.prepare import Prepared, prepare
from ._base import SPLITS, Outcome, as_run, check_common, check_probed_head, count, dev_curve, predictions, rows_said

RATE = 5e-5
DEAD = 1e-6  # a feature's spread, as a share of the median, below which it is none
_PRECISION = {"bfloat16": "bf16", "float16": "fp16"}


def run_full_finetuning(flat: dict[str, Any]) -> Outcome:
    """Train all weights of backbone and head, from the probe on, with the trainer that prompts have.

    With a verbalizer there is no head and no probe: all weights of the language model train. Else the head has
    ``head_learning_rate``, as beside an adapter. Weights are float32; ``dtype`` is the precision of the computation (autocast),
    because steps of this size vanish in half precision.
    """
    options = as_run({**flat, "dtype": "float32"})
    given = {"learning_rate": RATE, "save_only_model": True, **options.training}
    if precision := _PRECISION.get(flat.get("dtype", "float32")):
        given[precision] = True
    options = replace(options, training=given)
    set_seed(options.seed)
    prepared = prepare(options)
    if options.head == "pooled":
        _start_on_living_features(prepared)
    set_seed(options.seed)
    # the method is asked for its learning rate only where the options have none
    arguments = training_arguments(
        options, find_method(options.method), prepared, progress=False, folder=Path(options.output_dir)
    )
    try_out(options, arguments, prepared.model, len(prepared.encoded["train"]))
    fits_head = choose_head_fit(options.head_fit, options.head_learning_rate, prepared.model) == "probe"
    trainer = make_trainer(options, prepared, prepared.model, arguments, [], fits_head)
    if options.head == "pooled":
        trainer.optimizer = _optimizer(trainer, prepared.model)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    scores = {split: trainer.evaluate(prepared.encoded[split])["eval_accuracy"] for split in SPLITS}
    last, scored = scores, trainer.last_scores
    if scored is not None:
        last = {split: scored[split]["eval_accuracy"] for split in SPLITS}
    return Outcome(
        dev=scores["dev"],
        test=scores["test"],
        parameters=count(prepared.model),
        steps=trainer.state.global_step,
        learning_rate=arguments.learning_rate,
        curve=dev_curve(trainer.state.log_history),
        train_seconds=seconds,
        extra={
            **({"probe": prepared.first_of(prepared.probe)} if prepared.probe else {}),
            "best_step": trainer.state.best_global_step,
            **({"last": last} if options.score_last else {}),
            **rows_said(prepared.task.origin),
        },
        predictions=partial(predictions, prepared, "test"),
    )


def _start_on_living_features(prepared: Prepared) -> None:
    """Start the head from a probe that leaves out features without spread.

    all-MiniLM-L6-v2 has three features with a scale of 1e-9 to 1e-33. Standardised, they are features like others, and a
    probe's weights on them are up to 1e30. Frozen layers do not mind; the gradient of the layer below is infinite, so clipping
    would take every step away.
    """
    rows, head = by_length(prepared.encoded["train"]), prepared.model.classifier
    features = head_features(prepared.model, head, batches(rows, prepared.tokenizer, "classification"))
    spread = features.std(0)
    features[:, spread < DEAD * np.median(spread)] = 0.0
    set_head(head, *fit_probe(features, np.asarray(rows["labels"]), prepared.model.config.num_labels))


def _optimizer(trainer: PromptTrainer, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Make an optimizer in which the head learns at its own rate, as the heads of adapters do."""
    optimizer, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    rates = {"backbone": trainer.args.learning_rate, "classifier": trainer.head_learning_rate}
    decay = trainer.args.weight_decay
    groups = [
        {"name": name, "params": list(model.get_submodule(name).parameters()), "lr": rate, "weight_decay": decay}
        for name, rate in rates.items()
    ]
    return optimizer(groups, **options)


def check_full_finetuning(flat: dict[str, Any]) -> None:
    """Refuse a head that is neither label words nor the pooled one that starts from the probe."""
    if flat.get("head") == "verbalizer":
        check_common(as_run(flat))
    else:
        check_probed_head("full_finetuning", flat)
