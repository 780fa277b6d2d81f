"""SetFit: contrastive fine-tuning of a sentence encoder, then logistic regression on its embeddings."""

from __future__ import annotations

import time
from typing import Any

import datasets
import numpy as np
import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..._types import SoftPromptError
from ...data import Task
from ...models.places import backbone_path, load_tokenizer
from ...training import RunOptions
from ...training.prepare import read_task
from ._base import RUN_KEYS, Outcome, as_run, check_common, count, rows_said

# the paper's: one epoch over pairs, R = 20 of either kind per row, batches of 16
DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "num_iterations": 20,
    "num_epochs": 1,
    "batch_size": 16,
    "max_steps": -1,
}


def require_setfit() -> None:
    """Raise `SoftPromptError` when the package is not installed."""
    try:
        import setfit  # noqa: F401
    except ImportError as error:
        raise SoftPromptError(
            f"method 'setfit' needs the package setfit ({error}); run: pip install 'softprompt[setfit]', or leave it out with --skip setfit."
        ) from error


def run_setfit(flat: dict[str, Any]) -> Outcome:
    """Run SetFit by its own package."""
    options = as_run({key: value for key, value in flat.items() if key in RUN_KEYS})
    task = read_task(options).with_test_rows(options.test_limit)
    own = {key: flat[key] for key in DEFAULTS if flat.get(key) is not None}
    return train_setfit(options, task, {**DEFAULTS, **own})


def check_setfit(flat: dict[str, Any]) -> None:
    for key, least in (("num_iterations", 1), ("num_epochs", 1), ("batch_size", 2), ("max_steps", -1)):
        value = flat.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise SoftPromptError(f"method 'setfit': {key}: expected a whole number from {least}, got {value!r}.")
    known = {key: value for key, value in flat.items() if key in RUN_KEYS or key == "learning_rate"}
    check_common(as_run(known))


def train_setfit(options: RunOptions, task: Task, own: dict[str, Any]) -> Outcome:
    """Train SetFit (Tunstall et al. 2022, arXiv 2209.11055) by the package ``setfit``.

    Pairs of training rows, of one class or of two, move the encoder: the loss is the MSE between their cosine similarity and 1
    or 0. Then a logistic regression reads its embeddings. No dev row chooses anything.

    Args:
        options: backbone, seed, max_length, dtype.
        task: the rows.
        own: SetFit's own options, see `DEFAULTS`; ``learning_rate`` is the encoder's.

    Differs from the paper: the tokenizer's separator joins a pair of texts. ``dtype`` is the precision of the computation
    (autocast); weights are float32.
    """
    require_setfit()
    from setfit import SetFitModel, Trainer, TrainingArguments
    from setfit import logging as words

    words.set_verbosity_error()

    if task.dev is None or task.test is None:
        raise SoftPromptError(f"task {task.name}: expected dev and test rows.")
    separator = load_tokenizer(options.backbone).sep_token or ""
    set_seed(options.seed)
    model = SetFitModel.from_pretrained(backbone_path(options.backbone))
    model.model_body.max_seq_length = options.max_length
    if options.attn_implementation is not None:
        model.model_body[0].auto_model.set_attn_implementation(options.attn_implementation)
    arguments = TrainingArguments(
        output_dir=options.output_dir,
        body_learning_rate=own["learning_rate"],
        num_iterations=own["num_iterations"],
        num_epochs=own["num_epochs"],
        batch_size=own["batch_size"],
        max_steps=own["max_steps"],
        seed=options.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        show_progress_bar=False,
    )
    rows = datasets.Dataset.from_dict({"text": _texts(task.train, separator), "label": list(task.train["label"])})
    started = time.perf_counter()
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    for prints in (
        ProgressCallback,
        PrinterCallback,
    ):  # transformers chooses by its own verbosity; stdout belongs to results
        trainer.st_trainer.remove_callback(prints)
    half = options.dtype != "float32"
    device = trainer.st_trainer.args.device.type
    dtype = getattr(torch, options.dtype) if half else None
    # without the cache: inside one context it would keep the first step's weights for all later ones
    with torch.autocast(device, dtype=dtype, enabled=half, cache_enabled=False):
        trainer.train()
        seconds = time.perf_counter() - started
        predicted = [
            np.asarray(model.predict(_texts(part, separator), as_numpy=True, show_progress_bar=False))
            for part in (task.dev, task.test)
        ]
    head = model.model_head.coef_.size + model.model_head.intercept_.size
    true = list(task.test["label"])
    dev, test = (
        float(np.mean(found == np.asarray(part["label"])))
        for found, part in zip(predicted, (task.dev, task.test), strict=True)
    )
    steps = trainer.st_trainer.state.global_step
    return Outcome(
        dev=dev,
        test=test,
        parameters=count(model.model_body) + head,
        steps=steps,
        learning_rate=own["learning_rate"],
        curve=[[steps, dev]],
        train_seconds=seconds,
        extra=rows_said(task.origin),
        predictions=lambda: (true, predicted[1].tolist()),
    )


def _texts(rows: datasets.Dataset, separator: str) -> list[str]:
    if "text_pair" not in rows.column_names:
        return list(rows["text"])
    return [f"{first} {separator} {second}" for first, second in zip(rows["text"], rows["text_pair"], strict=True)]
