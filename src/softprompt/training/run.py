"""One training run, from options to an adapter, a card and a result."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import TrainerCallback, set_seed

from .._environment import environment
from .._files import to_json, write_json
from .._types import NonFiniteError, SoftPromptError, announce
from ..tuner import SoftPromptConfig, is_first_process, read_prompt, save_adapter
from ..watch import TOPOLOGY, read_topology, topology_summary
from .check import Plan, check_run
from .critics import active_objectives
from .fit import Report, make_trainer
from .folder import OPTIONS_FILE, only_run, writing
from .mechanism import mechanism
from .model_card import write_model_card
from .options import RunOptions
from .prepare import Prepared, start_head
from .search_phase import LayerPhase
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
    _load_everywhere()
    set_seed(options.seed)
    plan = check_run(options, resume, progress=progress)
    plan = replace(plan, prepared=start_head(plan.options, plan.prepared))
    options, prepared = plan.options, plan.prepared
    search = LayerPhase(plan, callbacks, folder, report) if plan.searches else None
    trainer = None if search else _attach(plan, plan.config, callbacks, report)
    _claim(folder, options)  # not before: a mistake that is met on the way must leave the folder free
    selection = search.run() if search else None
    if selection is not None:
        set_seed(options.seed)  # what comes now is the same whether the search ran in this process or in an earlier one
        trainer = _attach(plan, _on_layers(plan.config, selection), callbacks, report)
    assert trainer is not None
    model = trainer.model
    training_started = time.perf_counter()
    with writing(folder):
        try:
            trainer.train(resume_from_checkpoint=plan.checkpoint)
            train_time = time.perf_counter() - training_started
            with trainer.restoring():
                scored = _evaluate(trainer, prepared)
                metrics = scored | _generated(options, prepared, model)
        except NonFiniteError as error:
            _save(model, prepared, folder)
            raise NonFiniteError(f"{error} The last good adapter is in {folder}.") from None
        except torch.OutOfMemoryError as error:
            raise SoftPromptError(
                f"the accelerator's memory is too small for this run ({str(error).splitlines()[0]}); lower per_device_train_batch_size (and raise gradient_accumulation_steps) or max_length, or set gradient_checkpointing=True, and give another folder."
            ) from error
        _save(model, prepared, folder)
        document = _document(options, prepared, model, trainer, metrics, train_time, time.perf_counter() - started)
        if options.score_last:
            document["train_info"]["last"] = (
                scored if trainer.last_scores is None else _named(trainer.last_scores, prepared)
            )
        if selection is not None:
            document["train_info"]["search"] = selection
        # from the file: of a prompt in memory each process may hold a part
        prompt = read_prompt(folder) if isinstance(model.active_peft_config, SoftPromptConfig) else None
        if acted := mechanism(prompt, trainer.state.log_history, selection):
            document["train_info"]["mechanism"] = acted
        if records := read_topology(folder / TOPOLOGY):
            document["train_info"]["topology"] = topology_summary(records)
        if is_first_process():
            write_model_card(folder, options, prepared, document)
            write_json(folder / "result.json", document)
            if not (folder / OPTIONS_FILE).is_file():
                lost = f"{folder} was removed while the run was at work: checkpoints and records before that are lost"
                announce(f"{OPTIONS_FILE} is written again", lost)
                write_json(folder / OPTIONS_FILE, options.to_flat())
    PartialState().wait_for_everyone()
    return RunResult(model, metrics, document, folder)


def _attach(plan: Plan, config: PeftConfig, callbacks: list[TrainerCallback], report: Report | None) -> PromptTrainer:
    """The trainer of the run, on its model with the method attached."""
    model = get_peft_model(plan.prepared.model, config)
    return make_trainer(plan.options, plan.prepared, model, plan.arguments, callbacks, plan.fits_head, report=report)


def _on_layers(config: PeftConfig, selection: dict[str, Any]) -> PeftConfig:
    """The config of the prompt that a search leaves; it says what ranked the layers."""
    assert isinstance(config, SoftPromptConfig)
    rates = {group: rate for group, rate in config.learning_rates.items() if group != "gates"}
    searched = {"layer_score": selection["layer_score"], "gate_optimizer": selection.get("gate_optimizer", "adam")}
    return replace(config, placement="deep", layers=selection["layers"], learning_rates=rates, **searched)


def _claim(folder: Path, options: RunOptions) -> None:
    """Mark the folder as this run's."""
    PartialState().wait_for_everyone()  # each process has seen the folder free
    if is_first_process():
        with writing(folder):
            write_json(folder / OPTIONS_FILE, options.to_flat())


def _load_everywhere() -> None:
    """Have every process read the backbone: learning rate, probe, prompt and unprompted states start from its weights."""
    if os.environ.get(EFFICIENT_LOADING, "false").lower() in ("true", "1"):
        os.environ[EFFICIENT_LOADING] = "false"
        announce("fsdp_cpu_ram_efficient_loading=false", "every process starts from the backbone's own weights")


def _save(model: PeftModel, prepared: Prepared, folder: Path) -> None:
    save_adapter(model, folder)
    if is_first_process():
        prepared.card.write(folder)
    PartialState().wait_for_everyone()


def _evaluate(trainer: PromptTrainer, prepared: Prepared) -> dict[str, float]:
    """What the trainer measures on the dev rows, and on the test rows where there are any."""
    rows = {"dev": trainer.eval_dataset, "test": prepared.encoded.get("test")}
    return _named({split: trainer.evaluate(part) for split, part in rows.items() if part is not None}, prepared)


def _named(scores: Mapping[str, Mapping[str, float]], prepared: Prepared) -> dict[str, float]:
    """The scores of a trainer by split, under the names that they have in ``result.json``."""
    names = prepared.kind.scores(prepared.card.label_names)
    return {
        f"{split} {name}": found[f"eval_{name}"]
        for split, found in scores.items()
        for name in names
        if f"eval_{name}" in found
    }


def _generated(options: RunOptions, prepared: Prepared, model: PeftModel) -> dict[str, float]:
    """What is measured on the test rows alone, beside what the trainer measures."""
    if "test" not in prepared.encoded:
        return {}
    scores = prepared.kind.test_scores(model, prepared.tokenizer, prepared.task.test, options.max_length)
    return {f"test {name}": value for name, value in scores.items()}


def _beats_probe(prepared: Prepared, metrics: dict[str, float]) -> bool | None:
    """Whether the dev rows are read better than by the linear probe; None where there is no probe. Says so if not."""
    score = f"dev {prepared.kind.scores(prepared.card.label_names)[0]}"
    if "dev" not in prepared.probe or score not in metrics:
        return None
    prompt, probe = metrics[score], prepared.probe["dev"]
    if prompt <= probe:
        announce(
            f"the prompt did not beat the linear probe (dev {prompt:.3f} against {probe:.3f})",
            "take the probe, more rows, another learning_rate, or another method",
        )
    return prompt > probe


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
    noted = {"eval_loss", "loss", "information head", "train_accuracy"}  # shares of terms stand beside the loss
    history = [dict(entry) for entry in trainer.state.log_history if noted & entry.keys()]
    return {
        "run_info": {
            "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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
                "features": prepared.card.features,
            },
            "dataset_info": {
                "rows": {name: len(rows) for name, rows in prepared.encoded.items()},
                "label_names": prepared.card.label_names,
                **prepared.task.origin,
            },
            **environment(),
        },
    }
