"""One run for the tasks of one data set: a prompt and a head for each, trained in mixed batches over one backbone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import TrainerCallback, set_seed

from .._files import write_json, write_text
from .._types import NonFiniteError, announce
from ..data import Collate, WithAdapterNames
from ..models.classifier import PooledClassifier
from ..models.hub import CARD_FILE, OPTIONS_FILE, RESULT_FILE
from ..tuner import NarrowHead, copies, read_prompt
from .arguments import chosen_by
from .check_together import Part, Together, check_together
from .fit import Report, build_trainer, with_states
from .keys.options import RunOptions
from .loop.mixed import Learner, MixedTrainer
from .mechanism import mechanism
from .nearest import start_nearest
from .output.folder import writing
from .output.model_card import write_model_card
from .output.outcome import Effort, RunResult, claim, describe_run, generated, in_memory, named, noted
from .output.overview import overview, scores_of, sum_up
from .prepare import start_head


def train_together(
    options: RunOptions,
    folder: Path,
    resume: bool,
    callbacks: list[TrainerCallback],
    progress: bool,
    report: Report | None,
) -> RunResult:
    """Train a prompt for each task that ``options.task_column`` names; arguments and errors as for `softprompt.train`.

    Each task has a folder in ``folder`` with what a run of this task alone leaves there; ``result.json`` and ``README.md`` of
    ``folder`` sum them up.
    """
    started = time.perf_counter()
    set_seed(options.seed)
    run = check_together(options, resume, progress=progress)
    run = replace(run, parts=[_started(part) for part in run.parts])
    set_seed(options.seed)
    trainer = _trainer(run, attach(run.parts, run.options.seed), callbacks, report)
    claim(folder, run.options)
    training_started = time.perf_counter()
    with writing(folder), in_memory():
        try:
            trainer.train(resume_from_checkpoint=run.checkpoint)
        except NonFiniteError as error:
            for part in run.parts:
                _save(trainer.model, part)
            raise NonFiniteError(f"{error} The last good prompts are in the folders of {folder}.") from None
        train_time = time.perf_counter() - training_started
        documents, times = {}, {"train_time": train_time}
        for part in run.parts:
            times["total_time"] = time.perf_counter() - started
            documents[part.name] = _finish(trainer, part, times)
        document = sum_up(run.options, documents, trainer.state.log_history, times["total_time"])
        write_json(folder / RESULT_FILE, document)
        write_text(folder / CARD_FILE, overview(run.options, documents))
    metrics = scores_of(document)
    each = {f"{name}: {key}": value for name, own in documents.items() for key, value in scores_of(own).items()}
    return RunResult(trainer.model, {**each, **metrics}, document, folder)


def _started(part: Part) -> Part:
    """The task with its head started, and the adapter chosen from which its prompt starts."""
    prepared = start_head(part.options, part.prepared)
    config, starts = start_nearest(prepared, part.config)
    return replace(part, prepared=prepared, config=config, starts=starts)


def attach(parts: list[Part], seed: int) -> PeftModel:
    """One model with the prompts of all tasks, each with its own head, all trained."""
    heads = {part.adapter: part.prepared.model.classifier for part in parts if _is_pooled(part)}
    base = max(parts, key=lambda part: len(part.prepared.card.label_names)).prepared.model
    model: PeftModel | None = None
    for part in parts:
        set_seed(seed)  # each prompt starts where it would start if it were the first
        if model is None:
            model = get_peft_model(base, part.config, adapter_name=part.adapter)
        else:
            model.add_adapter(part.adapter, part.config)
    assert model is not None
    width = max((head.out_features for head in heads.values()), default=0)
    for wrapper in copies(model) if heads else []:
        for adapter, head in heads.items():
            wrapper.modules_to_save[adapter] = NarrowHead(head, width)
    learn_all(model, parts)
    return model


def learn_all(model: PeftModel, parts: list[Part]) -> None:
    """Let the prompts of all parts take gradients."""
    model.set_adapter(parts[0].adapter)
    model.set_requires_grad([part.adapter for part in parts], True)


def _is_pooled(part: Part) -> bool:
    return isinstance(part.prepared.model, PooledClassifier)


def _trainer(run: Together, model: PeftModel, callbacks: list[TrainerCallback], report: Report | None) -> MixedTrainer:
    parts = run.parts
    kind, plain = parts[0].prepared.kind, parts[0].prepared.kind.collator(parts[0].prepared.tokenizer)
    rows, learners = _named_rows(run, model, plain, report)
    learn_all(model, parts)
    return build_trainer(
        MixedTrainer,
        run.options,
        callbacks,
        model=model,
        args=run.arguments,
        train_dataset=rows,
        data_collator=WithAdapterNames(plain),
        eval_dataset=learners[0].dev,
        compute_metrics=kind.metrics(learners[0].label_names),
        learners=learners,
        chooses=run.chooses,
    )


def _named_rows(
    run: Together, model: PeftModel, collate: Collate, report: Report | None
) -> tuple[Dataset, list[Learner]]:
    """The training rows of all tasks, each with the name of its adapter, and the prompts with their dev rows."""
    device, rows, learners = run.arguments.device, [], []
    for part in run.parts:
        model.set_adapter(part.adapter)
        encoded, card = part.prepared.encoded, part.prepared.card
        train, dev, _ = with_states(run.options, model, encoded["train"], encoded["dev"], collate, device, report)
        rows.append(_with_name(train, part))
        learners.append(Learner(part.name, part.adapter, _with_name(dev, part), card.kind, card.label_names))
    return concatenate_datasets(rows), learners


def _with_name(rows: Dataset, part: Part) -> Dataset:
    return rows.add_column(WithAdapterNames.column, [part.adapter] * len(rows))


def _finish(trainer: MixedTrainer, part: Part, times: Mapping[str, float]) -> dict[str, Any]:
    """Score one prompt, write its folder, and return its document."""
    model, prepared = trainer.model, part.prepared
    learner = next(learner for learner in trainer.learners if learner.adapter == part.adapter)
    with trainer.restoring():
        found = {"dev": trainer.scores_of(learner, learner.dev)}
        if "test" in prepared.encoded:
            found["test"] = trainer.scores_of(learner, _with_name(prepared.encoded["test"], part))
    effort = _effort(trainer, part)
    model.set_adapter(part.adapter)
    metrics = named(found, prepared) | generated(part.options, prepared, model)
    _save(model, part)
    announce(f"task {part.name}", f"{part.folder} holds its prompt as step {effort.best_step or effort.steps} left it")
    document = describe_run(part.options, prepared, model.peft_config[part.adapter], metrics, effort, times)
    if part.starts:
        document["train_info"]["starts"] = part.starts
    if acted := mechanism(read_prompt(part.folder), [], None):
        document["train_info"]["mechanism"] = acted
    write_model_card(part.folder, part.options, prepared, document)
    write_json(part.folder / RESULT_FILE, document)
    write_json(part.folder / OPTIONS_FILE, part.options.to_flat())
    return document


def _effort(trainer: MixedTrainer, part: Part) -> Effort:
    choice, own = trainer.choices[part.adapter], _count(trainer.model, part.adapter)
    others = sum(_count(trainer.model, learner.adapter) for learner in trainer.learners) - own
    return Effort(
        steps=trainer.state.global_step,
        best_step=choice.step if trainer.chooses else None,
        chosen_by=chosen_by(trainer.args),
        greater_is_better=bool(trainer.args.greater_is_better),
        learning_rate=trainer.args.learning_rate,
        trained=own,
        critics=0,
        total=sum(p.numel() for p in trainer.model.parameters()) - others,
        history=noted(choice.history),
    )


def _count(model: nn.Module, adapter: str) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if f".{adapter}." in name)


def _save(model: PeftModel, part: Part) -> None:
    """Write one prompt as a run of its own does: PEFT puts an adapter of another name than "default" into a folder of that name."""
    model.save_pretrained(str(part.folder), selected_adapters=[part.adapter])
    made = part.folder / part.adapter
    for path in made.iterdir():
        shutil.move(path, part.folder / path.name)
    made.rmdir()
    part.prepared.card.write(part.folder)
