"""One training run, from options to an adapter, a card and a result."""

from __future__ import annotations

import datetime
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from transformers import TrainerCallback, set_seed

from .._environment import environment
from .._files import to_json, write_json
from .._types import NonFiniteError, SoftPromptError, announce
from ..methods import Method, find_method
from ..models.completing import exact_match
from ..models.places import backbone_path
from ..models.precision import AUTO, automatic_dtype
from ..tuner import SoftPromptConfig, is_first_process, save_adapter
from ..watch.shape import read_topology, topology_summary
from .critics import active_objectives
from .fit import TOPOLOGY, Report, make_trainer, training_arguments
from .folder import OPTIONS_FILE, check_folder, only_run, recorded, writing
from .model_card import write_model_card
from .options import RunOptions, build_config
from .prepare import Prepared, prepare
from .search_phase import search_layers
from .states import check_below
from .trainer import PromptTrainer

EFFICIENT_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # set by accelerate launch: only the first process reads weights


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves: the live model, its scores, and ``result.json`` as a dict."""

    model: PeftModel
    metrics: dict[str, float]
    document: dict[str, Any]
    folder: Path


def train(
    options: RunOptions,
    resume: bool = False,
    callbacks: list[TrainerCallback] | None = None,
    progress: bool = True,
    report: Report | None = None,
) -> RunResult:
    """Tune a prompt (or a PEFT baseline) as ``options`` say, evaluate it on the test rows, and write it all down.

    Writes to ``options.output_dir``: the adapter (``adapter_config.json``, ``adapter_model.safetensors``), ``task.json``,
    the model card ``README.md``, ``result.json`` in PEFT's method-comparison layout, ``run.json`` and ``checkpoints/``. Of
    several processes (``accelerate launch``) the first one writes them, and all return the same result.

    Args:
        options: see `RunOptions`.
        resume: continue from the newest checkpoint of the same options in ``output_dir``; on a CPU the resumed run equals
            the uninterrupted one bit for bit.
        callbacks: further callbacks of `transformers.Trainer`.
        progress: show the trainer's own progress bar.
        report: told (what, done, in all) of work before training: states of the unprompted pass, states below the prompt.

    Raises:
        SoftPromptError: anything the user can mend: data, names, options, an output folder that holds another run.
        NonFiniteError: the loss stopped being finite; the last good adapter is in ``output_dir``.
    """
    folder = Path(options.output_dir)
    with only_run(folder):
        return _train(options, folder, resume, callbacks or [], progress, report)


def _train(
    options: RunOptions,
    folder: Path,
    resume: bool,
    callbacks: list[TrainerCallback],
    progress: bool,
    report: Report | None,
) -> RunResult:
    started = time.perf_counter()
    options = _with_dtype(folder, options, resume)
    checkpoint = check_folder(folder, options, resume)
    _load_everywhere()
    set_seed(options.seed)
    method = find_method(options.method)

    def claim() -> None:  # when training starts, and not before: a mistake found on the way must leave the folder free
        PartialState().wait_for_everyone()  # each process has found the folder free
        if is_first_process():
            with writing(folder):
                write_json(folder / OPTIONS_FILE, options.to_flat())

    prepared = prepare(options)
    config = configure(options, method, prepared)
    check_below(options, config, prepared)
    arguments = training_arguments(options, method, prepared, progress, folder, config)
    search = None
    if isinstance(config, SoftPromptConfig) and config.placement == "gated":
        search = search_layers(options, config, prepared, arguments, callbacks, folder, claim, report)
        rates = {group: rate for group, rate in config.learning_rates.items() if group != "gates"}
        config = replace(config, placement="deep", layers=search["layers"], learning_rates=rates)
        set_seed(options.seed)  # what comes now is the same whether the search ran in this process or in an earlier one
    model = get_peft_model(prepared.model, config)
    trainer = make_trainer(options, prepared, model, arguments, callbacks, report=report)
    claim()
    training_started = time.perf_counter()
    with writing(folder):
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
            train_time = time.perf_counter() - training_started
            with trainer.restoring():
                metrics = {f"dev {key}": value for key, value in _evaluate(trainer, trainer.eval_dataset).items()}
                if "test" in prepared.encoded:
                    metrics |= {f"test {key}": value for key, value in _test(options, prepared, trainer, model).items()}
        except NonFiniteError as error:
            _save(model, prepared, folder)
            raise NonFiniteError(f"{error} The last good adapter is in {folder}.") from None
        except torch.OutOfMemoryError as error:
            raise SoftPromptError(
                f"the accelerator's memory is too small for this run ({str(error).splitlines()[0]}); lower per_device_train_batch_size (and raise gradient_accumulation_steps) or max_length, or set gradient_checkpointing=True, and give another folder."
            ) from error
        _save(model, prepared, folder)
        document = _document(options, prepared, model, trainer, metrics, train_time, time.perf_counter() - started)
        if search is not None:
            document["train_info"]["search"] = search
        if records := read_topology(folder / TOPOLOGY):
            document["train_info"]["topology"] = topology_summary(records)
        if is_first_process():
            write_model_card(folder, options, prepared.card, document)
            write_json(folder / "result.json", document)
            if not (folder / OPTIONS_FILE).is_file():
                lost = f"{folder} was removed while the run was at work: checkpoints and records before that are lost"
                announce(f"{OPTIONS_FILE} is written again", lost)
                write_json(folder / OPTIONS_FILE, options.to_flat())
    PartialState().wait_for_everyone()
    return RunResult(model, metrics, document, folder)


def _load_everywhere() -> None:
    """Have every process read the backbone: learning rate, probe, prompt and unprompted states start from its weights."""
    if os.environ.get(EFFICIENT_LOADING, "false").lower() in ("true", "1"):
        os.environ[EFFICIENT_LOADING] = "false"
        announce("fsdp_cpu_ram_efficient_loading=false", "every process starts from the backbone's own weights")


def configure(options: RunOptions, method: Method, prepared: Prepared) -> PeftConfig:
    """Build the method's config; embedding-space methods get vocabulary and tokenizer from the backbone."""
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
    own |= {"task_type": prepared.card.task_type, "base_model_name_or_path": backbone_path(options.backbone)}
    config = build_config(method, own)
    if prepared.card.kind == "tokens" and config.peft_type in (PeftType.PROMPT_TUNING, PeftType.P_TUNING):
        raise SoftPromptError(
            f"method {method.name!r} cannot tag words: PEFT leaves the virtual tokens among the logits, so labels do not fit; use 'prompt_tuning'."
        )
    return config


def _with_dtype(folder: Path, options: RunOptions, resume: bool) -> RunOptions:
    """Put a real dtype in place of "auto": that of the run which goes on, else what suits this machine."""
    if options.dtype != AUTO:
        return options
    marker = folder / OPTIONS_FILE
    if resume and marker.is_file():
        dtype, reason = recorded(marker)["dtype"], f"{marker} of the run that goes on"
    else:
        dtype, reason = automatic_dtype(bool(options.training.get("use_cpu")))
    announce(f"dtype={dtype}", reason)
    return replace(options, dtype=dtype)


def _save(model: PeftModel, prepared: Prepared, folder: Path) -> None:
    save_adapter(model, folder)
    if is_first_process():
        prepared.card.write(folder)
    PartialState().wait_for_everyone()


def _evaluate(trainer: PromptTrainer, rows: Dataset) -> dict[str, float]:
    found = trainer.evaluate(rows)
    return {key.removeprefix("eval_"): found[key] for key in ("eval_accuracy", "eval_f1", "eval_loss") if key in found}


def _test(options: RunOptions, prepared: Prepared, trainer: PromptTrainer, model: PeftModel) -> dict[str, float]:
    scores = _evaluate(trainer, prepared.encoded["test"])
    if prepared.task.kind == "completion" and prepared.task.test is not None:
        found = exact_match(model, prepared.tokenizer, prepared.task.test, options.max_length)
        scores = {"accuracy": found, **scores}
    return scores


def _beats_probe(prepared: Prepared, metrics: dict[str, float]) -> bool | None:
    """Whether the dev rows are classified better than by the linear probe; None where there is no probe. Says so if not."""
    if "dev" not in prepared.probe or "dev accuracy" not in metrics:
        return None
    found, probe = metrics["dev accuracy"], prepared.probe["dev"]
    if found <= probe:
        announce(
            f"the prompt did not beat the linear probe (dev {found:.3f} against {probe:.3f})",
            "take the probe, more rows, another learning_rate, or another method",
        )
    return found > probe


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
    objectives = active_objectives(model)
    critics = 0 if objectives is None else sum(p.numel() for p in objectives.parameters())
    config = model.peft_config[model.active_adapter]
    weights = Path(options.output_dir) / "adapter_model.safetensors"
    noted = {"eval_loss", "loss", "information head", "train_accuracy"}
    history = [dict(entry) for entry in trainer.state.log_history if noted & entry.keys()]
    return {
        "run_info": {
            "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "total_time": total_time,
            "experiment_name": f"{options.method}/{prepared.task.name}-{options.shots or 'all'}-{options.seed}",
            "train_config": options.to_flat(),
            "peft_config": json.loads(
                to_json(config.to_dict(), default=lambda o: sorted(o) if isinstance(o, set) else str(o))
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
            "num_trainable_params": trained - critics,
            "num_critic_params": critics,
            "num_total_params": total - critics,
            "probe": prepared.probe,
            "beats_probe": _beats_probe(prepared, metrics),
            "status": "success",
            "metrics": history,
        },
        "meta_info": {
            "model_info": {
                "backbone": options.backbone,
                "model_type": prepared.model.config.model_type,
                "dtype": prepared.card.dtype,
                "pooling": prepared.card.pooling,
                "pairs": prepared.card.pairs,
            },
            "dataset_info": {
                "rows": {name: len(rows) for name, rows in prepared.encoded.items()},
                "label_names": prepared.card.label_names,
                **prepared.task.origin,
            },
            **environment(),
        },
    }
