"""One training run, from options to an adapter, a card and a result."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME

from .._types import NonFiniteError, SoftPromptError, announce
from ..data import Task, Verbalizer, collator, encode_classification, encode_completion, encode_seq2seq, load_task
from ..methods import Method, find_method
from ..results import environment, write_json
from ..tuner import SoftPromptConfig, find_backbone
from .assemble import TaskCard, backbone_path, build_model, load_tokenizer, read_config
from .card import write_model_card
from .classifier import PooledClassifier, fit_probe, frozen_features, start_head
from .generate import exact_match
from .options import RunOptions
from .trainer import PromptTrainer

CHECKPOINTS = "checkpoints"
OPTIONS_FILE = "run.json"
RELATIVE_RATE = 0.2  # AdamW moves every coordinate by about one learning rate a step; see learning_rate_for
HEAD_RATE = 1e-3  # a head that starts from a probe needs little


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves: the live model, its scores, and ``result.json`` as a dict."""

    model: PeftModel
    metrics: dict[str, float]
    document: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs before its method is attached."""

    task: Task
    card: TaskCard
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    encoded: dict[str, Dataset]
    probe: dict[str, float]
    fresh: list[str]


def learning_rate_for(method: Method, model: nn.Module) -> tuple[float, str]:
    """The default learning rate of ``method`` on ``model``, with its reason.

    Prompts live among the embeddings, so a step is a share of the embeddings' standard deviation:
    ``lr = min(0.3, 0.2 std(E))``. 0.3 is what Lester et al. use on T5.
    """
    if method.learning_rate is not None:
        return method.learning_rate, f"the usual start for {method.name}"
    embed = find_backbone(model).embed
    with torch.no_grad():
        sample = embed(
            torch.arange(0, embed.num_embeddings, max(1, embed.num_embeddings // 4096), device=embed.weight.device)
        )
    spread = sample.float().std().item()
    return min(
        0.3, float(f"{RELATIVE_RATE * spread:.1g}")
    ), f"{RELATIVE_RATE} of the standard deviation {spread:.3g} of the vocabulary's embeddings"


def train(
    options: RunOptions, resume: bool = False, callbacks: list[TrainerCallback] | None = None, progress: bool = True
) -> RunResult:
    """Tune a prompt (or a PEFT baseline) as ``options`` say, evaluate it on the test rows, and write it all down.

    Writes to ``options.output_dir``: the adapter (``adapter_config.json``, ``adapter_model.safetensors``), ``task.json``,
    the model card ``README.md``, ``result.json`` in PEFT's method-comparison layout, ``run.json`` and ``checkpoints/``.

    Args:
        options: see `RunOptions`.
        resume: continue from the newest checkpoint of the same options in ``output_dir``; on a CPU the resumed run equals
            the uninterrupted one bit for bit.
        callbacks: further callbacks of `transformers.Trainer`.
        progress: show the trainer's own progress bar.

    Raises:
        SoftPromptError: anything the user can mend: data, names, options, an output folder that holds another run.
        NonFiniteError: the loss stopped being finite; the last good adapter is in ``output_dir``.
    """
    started = time.perf_counter()
    folder = Path(options.output_dir)
    checkpoint = _claim(folder, options, resume)
    set_seed(options.seed)
    method = find_method(options.method)
    prepared = prepare(options)
    model = attach(options, method, prepared)
    arguments = _arguments(options, method, prepared, progress)
    trainer = _trainer(options, prepared, model, arguments, callbacks or [])
    write_json(folder / OPTIONS_FILE, options.to_flat())  # from here on the folder is this run's
    training_started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except NonFiniteError as error:
        model.save_pretrained(str(folder))
        prepared.card.write(folder)
        raise NonFiniteError(f"{error} The last good adapter is in {folder}.") from None
    train_time = time.perf_counter() - training_started
    metrics = {f"dev {key}": value for key, value in _evaluate(trainer, prepared.encoded["dev"]).items()}
    if "test" in prepared.encoded:
        metrics |= {f"test {key}": value for key, value in _test(options, prepared, trainer, model).items()}
    model.save_pretrained(str(folder))
    prepared.card.write(folder)
    document = _document(options, prepared, model, trainer, metrics, train_time, time.perf_counter() - started)
    write_model_card(folder, options, prepared.card, document)
    write_json(folder / "result.json", document)
    return RunResult(model, metrics, document, folder)


def prepare(options: RunOptions) -> Prepared:
    """Load data, tokenizer and backbone; put the head on, and start it from a linear probe if asked."""
    read_config(options.backbone)  # a mistyped name should not cost the reading of the data
    columns = {
        k: getattr(options, k)
        for k in ("text_column", "text_pair_column", "label_column", "prompt_column", "completion_column")
    }
    task = load_task(
        options.data,
        **columns,
        label_names=options.class_names,
        shots=options.shots,
        seed=options.seed,
        dev_fraction=options.dev_fraction,
        train_file=options.train_file,
        dev_file=options.dev_file,
        test_file=options.test_file,
        hub_config=options.hub_config,
    )
    tokenizer = load_tokenizer(options.backbone)
    head = options.head if task.kind == "classification" else "lm"
    verbalizer = None
    if head == "verbalizer":
        verbalizer = Verbalizer(tokenizer, str(options.template), options.label_words or {}, task.label_names)
    card = TaskCard(
        kind=task.kind,
        backbone=options.backbone,
        head=head,
        label_names=task.label_names,
        max_length=options.max_length,
        dtype=options.dtype,
        backbone_dropout=options.backbone_dropout,
        verbalizer=verbalizer.to_dict() if verbalizer else None,
        columns={f"{name}_column": column for name, column in task.origin["columns"].items() if column},
    )
    model, fresh = build_model(card, tokenizer, options.pooling)
    if isinstance(model, PooledClassifier):
        card = replace(card, pooling=model.pooling)
    encode = encoder_for(card, tokenizer, verbalizer, bool(model.config.is_encoder_decoder))
    splits = {"train": task.train, "dev": task.dev, "test": task.test}
    if task.test is not None and options.test_limit:
        splits["test"] = task.test.select(range(min(options.test_limit, len(task.test))))
    encoded = {name: encode(rows) for name, rows in splits.items() if rows is not None}
    encoded = {name: rows if name == "train" else by_length(rows) for name, rows in encoded.items()}
    probe: dict[str, float] = {}
    if isinstance(model, PooledClassifier) and options.head_init == "probe":
        probe = start_from_probe(model, encoded, tokenizer)
    return Prepared(task, card, tokenizer, model, encoded, probe, fresh)


def encoder_for(
    card: TaskCard, tokenizer: PreTrainedTokenizerBase, verbalizer: Verbalizer | None, encoder_decoder: bool
) -> Callable[[Dataset], Dataset]:
    """The function that turns this task's rows into model inputs."""
    if verbalizer is not None:
        return partial(verbalizer.encode, max_length=card.max_length)
    if card.kind == "classification":
        return partial(encode_classification, tokenizer, max_length=card.max_length)
    return partial(encode_seq2seq if encoder_decoder else encode_completion, tokenizer, max_length=card.max_length)


def batch_kind(card: TaskCard, model: PreTrainedModel) -> str:
    """Which collator a task's batches need."""
    if card.kind == "classification":
        return "classification"
    return "seq2seq" if model.config.is_encoder_decoder else "completion"


def by_length(rows: Dataset) -> Dataset:
    """The same rows, short ones first: a batch of rows of one length has little padding to compute."""
    return rows.select(np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable"))


def batches(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, kind: str, size: int = 64
) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches in the order of the rows."""
    yield from DataLoader(rows, batch_size=size, collate_fn=collator(tokenizer, kind))


def start_from_probe(
    model: PooledClassifier, encoded: dict[str, Dataset], tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Fit the linear probe on the training rows, start the head from it, and return its accuracies."""
    ordered = {**encoded, "train": by_length(encoded["train"])}  # dev and test are sorted already
    features = {
        name: frozen_features(model, batches(rows, tokenizer, "classification")) for name, rows in ordered.items()
    }
    labels = {name: np.asarray(rows["labels"]) for name, rows in ordered.items()}
    weight, bias = fit_probe(features["train"], labels["train"], model.config.num_labels)
    start_head(model, weight, bias)
    scores = {
        name: float(((features[name] @ weight.numpy().T + bias.numpy()).argmax(1) == labels[name]).mean())
        for name in features
    }
    announce(
        "head_init=probe",
        f"training starts from a linear probe with dev accuracy {scores['dev']:.3f}"
        if "dev" in scores
        else "training starts from a linear probe",
    )
    return scores


def attach(options: RunOptions, method: Method, prepared: Prepared) -> PeftModel:
    """Build the method's config and attach it; embedding-space methods get vocabulary and tokenizer from the backbone."""
    own = dict(options.method_options)
    if own.get("init") == "labels" and "init_text" not in own:
        own["init_text"] = prepared.card.label_names
    if own.get("init") in ("text", "labels"):
        own.setdefault("tokenizer_name_or_path", backbone_path(options.backbone))
    # PEFT saves modules called classifier or score by itself, but a stock head may have more (a pooler, a dense layer)
    if beside := [name for name in prepared.fresh if name.split(".")[0] not in ("classifier", "score")]:
        own["modules_to_save"] = sorted({*(own.get("modules_to_save") or []), *beside})
        announce(
            f"modules_to_save={beside}",
            "the backbone's checkpoint does not hold them, so they are trained and saved with the adapter",
        )
    try:
        config = method.build(
            task_type=prepared.card.task_type, base_model_name_or_path=backbone_path(options.backbone), **own
        )
    except TypeError as error:
        raise SoftPromptError(f"method {method.name!r}: {error}.") from error
    model = get_peft_model(prepared.model, config)
    if isinstance(config, SoftPromptConfig):
        longest = max((len(ids) for rows in prepared.encoded.values() for ids in rows["input_ids"]), default=0)
        limit = find_backbone(prepared.model).max_positions
        if limit is not None and longest + config.num_virtual_tokens > limit:
            raise SoftPromptError(
                f"the longest row has {longest} tokens; with {config.num_virtual_tokens} virtual tokens it passes the backbone's {limit} positions; set max_length={limit - config.num_virtual_tokens}."
            )
    return model


def _claim(folder: Path, options: RunOptions, resume: bool) -> str | None:
    """Check that the output folder is free, or this run's own; returns the checkpoint to resume from."""
    if folder.exists() and not folder.is_dir():
        raise SoftPromptError(
            f"--output {str(folder)!r} is a file; expected a folder that is new, empty or this run's own."
        )
    mine = json.loads(json.dumps(options.to_flat()))
    marker = folder / OPTIONS_FILE
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise SoftPromptError(
            f"--output {str(folder)!r} is not empty; pass --resume to continue that run, or another folder."
        )
    checkpoint = None
    if resume and marker.is_file():
        before = json.loads(marker.read_text(encoding="utf-8"))
        ignored = {"output_dir"}
        changed = sorted(
            key for key in before.keys() | mine.keys() if key not in ignored and before.get(key) != mine.get(key)
        )
        if changed:
            detail = ", ".join(f"{key}: {before.get(key)!r} then, {mine.get(key)!r} now" for key in changed)
            raise SoftPromptError(
                f"--resume: {folder} holds a run with other options ({detail}); use the same options or another folder."
            )
        if (folder / CHECKPOINTS).is_dir():
            checkpoint = _newest_checkpoint(folder / CHECKPOINTS)
    if resume:
        announce(
            "resume",
            f"from {checkpoint}"
            if checkpoint
            else f"no checkpoint in {folder / CHECKPOINTS}, starting from the beginning",
        )
    return checkpoint


def _newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; a kill may have cut one short."""
    found = [p for p in folder.iterdir() if re.fullmatch(r"checkpoint-\d+", p.name)]
    for path in sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # the trainer writes it last
            return str(path)
        except (OSError, json.JSONDecodeError):
            announce(f"resume skips {path.name}", "it was not written to its end")
    return None


def _arguments(options: RunOptions, method: Method, prepared: Prepared, progress: bool) -> TrainingArguments:
    given = dict(options.training)
    rows = len(prepared.encoded["train"])
    batch = given.setdefault("per_device_train_batch_size", 16)
    if "learning_rate" not in given:
        given["learning_rate"], reason = learning_rate_for(method, prepared.model)
        announce(f"learning_rate={given['learning_rate']:g}", reason)
    if "num_train_epochs" not in given and "max_steps" not in given:
        given["num_train_epochs"] = max(3, min(30, round(600 * batch / rows)))
        announce(
            f"num_train_epochs={given['num_train_epochs']}", f"about 600 steps on {rows} rows, between 3 and 30 epochs"
        )
    defaults = dict(
        warmup_steps=0.06,
        lr_scheduler_type="linear",
        per_device_eval_batch_size=64,
        eval_strategy="epoch",
        save_strategy=given.get("eval_strategy", "epoch"),
        logging_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy" if prepared.task.kind == "classification" else "loss",
        report_to="none",
        disable_tqdm=not progress,
        restore_callback_states_from_checkpoint=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    if prepared.encoded.get("dev") is None:
        raise SoftPromptError(
            "training needs a dev set to choose the best checkpoint; raise dev_fraction or give dev_file."
        )
    try:
        return TrainingArguments(
            output_dir=str(Path(options.output_dir) / CHECKPOINTS), seed=options.seed, **{**defaults, **given}
        )
    except (TypeError, ValueError) as error:
        raise SoftPromptError(f"TrainingArguments: {error}") from error


def _trainer(
    options: RunOptions,
    prepared: Prepared,
    model: PeftModel,
    arguments: TrainingArguments,
    callbacks: list[TrainerCallback],
) -> PromptTrainer:
    kind = batch_kind(prepared.card, prepared.model)
    if options.early_stopping_patience is not None:
        callbacks = [*callbacks, EarlyStoppingCallback(options.early_stopping_patience)]
    if not arguments.remove_unused_columns:
        raise SoftPromptError("remove_unused_columns=False is not supported by softprompt train.")
    trainer = PromptTrainer(
        model=model,
        args=arguments,
        train_dataset=prepared.encoded["train"],
        eval_dataset=prepared.encoded["dev"],
        data_collator=collator(prepared.tokenizer, kind),
        compute_metrics=accuracy if prepared.task.kind == "classification" else None,
        callbacks=callbacks,
        head_learning_rate=HEAD_RATE if options.head_learning_rate is None else options.head_learning_rate,
    )
    trainer.remove_callback(PrinterCallback)  # stdout belongs to results; the log is in result.json
    return trainer


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of rows whose largest logit is the label."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float((np.argmax(logits, axis=-1) == prediction.label_ids).mean())}


def _evaluate(trainer: PromptTrainer, rows: Dataset) -> dict[str, float]:
    found = trainer.evaluate(rows)
    return {key.removeprefix("eval_"): found[key] for key in ("eval_accuracy", "eval_loss") if key in found}


def _test(options: RunOptions, prepared: Prepared, trainer: PromptTrainer, model: PeftModel) -> dict[str, float]:
    scores = _evaluate(trainer, prepared.encoded["test"])
    if prepared.task.kind == "completion" and prepared.task.test is not None:
        rows = prepared.task.test.select(range(len(prepared.encoded["test"])))
        scores = {"accuracy": exact_match(model, prepared.tokenizer, rows, options.max_length), **scores}
    return scores


def _document(
    options: RunOptions,
    prepared: Prepared,
    model: PeftModel,
    trainer: PromptTrainer,
    metrics: dict[str, float],
    train_time: float,
    total_time: float,
) -> dict[str, Any]:
    """PEFT's method-comparison layout: run_info, train_info, meta_info."""
    trained, total = model.get_nb_trainable_parameters()
    config = model.peft_config[model.active_adapter]
    weights = Path(options.output_dir) / "adapter_model.safetensors"
    history = [dict(entry) for entry in trainer.state.log_history if "eval_loss" in entry or "loss" in entry]
    return {
        "run_info": {
            "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "total_time": total_time,
            "experiment_name": f"{options.method}/{prepared.task.name}-{options.shots or 'all'}-{options.seed}",
            "train_config": options.to_flat(),
            "peft_config": json.loads(
                json.dumps(config.to_dict(), default=lambda o: sorted(o) if isinstance(o, set) else str(o))
            ),
            "error_msg": "",
        },
        "train_info": {
            **metrics,
            "train_time": train_time,
            "train_steps": trainer.state.global_step,
            "learning_rate": trainer.args.learning_rate,
            "best_checkpoint_step": trainer.state.best_global_step,
            "file_size": weights.stat().st_size if weights.is_file() else None,
            "num_trainable_params": trained,
            "num_total_params": total,
            "probe": prepared.probe,
            "status": "success",
            "metrics": history,
        },
        "meta_info": {
            "model_info": {
                "backbone": options.backbone,
                "model_type": prepared.model.config.model_type,
                "dtype": options.dtype,
                "pooling": prepared.card.pooling,
            },
            "dataset_info": {
                "rows": {name: len(rows) for name, rows in prepared.encoded.items()},
                "label_names": prepared.card.label_names,
                **prepared.task.origin,
            },
            **environment(),
        },
    }
