"""One training run, from options to an adapter, a card and a result."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import TrainerCallback, set_seed

from .._documents import read_object
from .._files import write_json
from .._types import NonFiniteError, SoftPromptError, announce
from ..models.hub import OPTIONS_FILE, RESULT_FILE
from ..tuner import SoftPromptConfig, is_first_process, read_prompt, save_adapter
from ..watch import TOPOLOGY, read_topology, topology_summary
from .arguments import chosen_by
from .check import Plan, check_run
from .check_together import refuse_beside
from .fit import Report, make_trainer
from .keys.options import RunOptions
from .loop.critics import active_objectives
from .loop.trainer import PromptTrainer
from .mechanism import mechanism
from .metric import Metric, WithMetric
from .nearest import start_nearest
from .output.folder import only_run, writing
from .output.model_card import write_model_card
from .output.outcome import Effort, RunResult, claim, describe_run, generated, in_memory, named, noted
from .prepare import Prepared, start_head
from .search_phase import LayerPhase
from .together import train_together

EFFICIENT_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # set by accelerate launch: only the first process reads weights


def train(
    options: RunOptions,
    resume: bool = False,
    callbacks: list[TrainerCallback] | None = None,
    progress: bool = True,
    report: Report | None = None,
    metric: Metric | None = None,
    test: bool = True,
) -> RunResult:
    """Tune a prompt (or a PEFT baseline) as ``options`` say, evaluate it on the test rows, and write it all down.

    Writes to ``options.output_dir``: the adapter (``adapter_config.json``, ``adapter_model.safetensors``), ``task.json``,
    the model card ``README.md``, ``result.json`` in PEFT's method-comparison layout, ``run.json`` and ``checkpoints/``. Of
    several processes (``accelerate launch``) the first one writes them, and all return the same result. With
    ``options.task_column`` each task has a folder of its own in there; see `softprompt.training.together.train_together`.

    Args:
        options: see `RunOptions`.
        resume: continue from the newest checkpoint of the same options in ``output_dir``; on a CPU the resumed run equals
            the uninterrupted one bit for bit.
        callbacks: further callbacks of `transformers.Trainer`.
        progress: show the trainer's own progress bar.
        report: told (what, done, in all) of work before training: states of the unprompted pass, states below the prompt.
        metric: a function (predictions, labels) -> number, or numbers by name, computed in every evaluation under its own name, which
            ``metric_for_best_model`` may say (``greater_is_better`` says which way). It reads the shares [N, C] that the model gives
            the classes and the class indices [N]; of tagged words the names of the tags of each row.
        test: score the test rows. Without it they are left alone until the finished run is resumed with it, which
            does not train again.

    Raises:
        SoftPromptError: anything the user can mend: data, names, options, an output folder that holds another run.
        NonFiniteError: the loss stopped being finite; the last good adapter is in ``output_dir``.
    """
    folder = Path(options.output_dir)
    if options.task_column is not None:
        refuse_beside(metric, test)
        with only_run(folder):
            return train_together(options, folder, resume, callbacks or [], progress, report)
    with only_run(folder):
        return _train(options, folder, resume, callbacks or [], progress, report, metric, test)


def _train(
    options: RunOptions,
    folder: Path,
    resume: bool,
    callbacks: list[TrainerCallback],
    progress: bool,
    report: Report | None,
    metric: Metric | None,
    test: bool,
) -> RunResult:
    started = time.perf_counter()
    _load_everywhere()
    set_seed(options.seed)
    plan = check_run(options, resume, progress=progress, metric=metric)
    ended = _ended(folder, plan.checkpoint)
    plan = replace(plan, prepared=start_head(plan.options, plan.prepared, test))
    config, starts = start_nearest(plan.prepared, plan.config)
    plan = replace(plan, config=config)
    options, prepared = plan.options, plan.prepared
    search = LayerPhase(plan, callbacks, folder, report) if plan.searches else None
    trainer = None if search else _attach(plan, plan.config, callbacks, report)
    claim(folder, options)  # not before: a mistake that is met on the way must leave the folder free
    selection = search.run() if search else None
    if selection is not None:
        set_seed(options.seed)  # what comes now is the same whether the search ran in this process or in an earlier one
        trainer = _attach(plan, _on_layers(plan.config, selection), callbacks, report)
    assert trainer is not None
    model = trainer.model
    with writing(folder), in_memory():
        try:
            train_time = _tune(trainer, plan, ended)
            with trainer.restoring():
                scored = _evaluate(trainer, prepared)
                metrics = scored | generated(options, prepared, model)
        except NonFiniteError as error:
            _save(model, prepared, folder)
            raise NonFiniteError(f"{error} The last good adapter is in {folder}.") from None
        _save(model, prepared, folder)
        times = {"train_time": train_time, "total_time": time.perf_counter() - started}
        document = describe_run(options, prepared, model.active_peft_config, metrics, _effort(model, trainer), times)
        if options.score_last:
            document["train_info"]["last"] = (
                scored if trainer.last_scores is None else named(trainer.last_scores, prepared, _own(trainer))
            )
        if starts:
            document["train_info"]["starts"] = starts
        if selection is not None:
            document["train_info"]["search"] = selection
        # from the file: of a prompt in memory each process may hold a part
        prompt = read_prompt(folder) if isinstance(model.active_peft_config, SoftPromptConfig) else None
        terms = getattr(model.active_peft_config, "objectives", ())
        if acted := mechanism(prompt, trainer.state.log_history, selection, terms):
            document["train_info"]["mechanism"] = acted
        if records := read_topology(folder / TOPOLOGY):
            document["train_info"]["topology"] = topology_summary(records)
        if is_first_process():
            write_model_card(folder, options, prepared, document)
            write_json(folder / RESULT_FILE, document)
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


class _Ended(NamedTuple):
    """What ``result.json`` says of a training that has come to its end: its seconds, and its log."""

    seconds: float
    history: list[dict[str, Any]]


def _ended(folder: Path, checkpoint: str | None) -> _Ended | None:
    """The training whose last step is in ``checkpoint``; None where it has not come to its end."""
    path = folder / RESULT_FILE
    if checkpoint is None or not path.is_file():
        return None
    try:
        info = read_object(path, "result of a run")["train_info"]
        if Path(checkpoint).name != f"checkpoint-{info['train_steps']}":
            return None
        return _Ended(float(info["train_time"]), [dict(entry) for entry in info["metrics"]])
    except (SoftPromptError, KeyError, TypeError, ValueError):  # nothing that this run has written
        return None


def _tune(trainer: PromptTrainer, plan: Plan, ended: _Ended | None) -> float:
    """Train, or take up a training that has come to its end; the seconds that it took."""
    if ended is not None and not trainer.is_fsdp_enabled:
        trainer.take_up(str(plan.checkpoint), ended.history)
        return ended.seconds
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=plan.checkpoint)
    return time.perf_counter() - started


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
    found = {split: trainer.evaluate(part) for split, part in rows.items() if part is not None}
    return named(found, prepared, _own(trainer))


def _own(trainer: PromptTrainer) -> tuple[str, ...]:
    """The names of the scores of a metric of the user's."""
    return trainer.compute_metrics.own if isinstance(trainer.compute_metrics, WithMetric) else ()


def _effort(model: PeftModel, trainer: PromptTrainer) -> Effort:
    trained, total = model.get_nb_trainable_parameters()
    objectives = active_objectives(model)
    critics = 0 if objectives is None else sum(p.numel() for p in objectives.parameters())
    return Effort(
        steps=trainer.state.global_step,
        best_step=trainer.state.best_global_step,
        chosen_by=chosen_by(trainer.args),
        greater_is_better=bool(trainer.args.greater_is_better),
        learning_rate=trainer.args.learning_rate,
        trained=trained - critics,
        critics=critics,
        total=total - critics,
        history=noted(trainer.state.log_history),
    )
