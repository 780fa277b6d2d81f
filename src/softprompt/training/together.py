"""One run for the tasks of one data set: a prompt and a head for each, trained in mixed batches over one backbone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from .._files import write_json, write_text
from .._types import NonFiniteError, SoftPromptError, Tally, announce
from ..data import Collate, WithAdapterNames, load_tasks
from ..methods import find_method
from ..models.classifier import PooledClassifier
from ..models.hub import CARD_FILE, OPTIONS_FILE, RESULT_FILE
from ..tuner import NarrowHead, SoftPromptConfig, copies, read_prompt
from .check import configure, with_dtype
from .fit import (
    BATCH,
    LARGEST,
    Report,
    build_trainer,
    chosen_by,
    scored_when,
    training_arguments,
    try_out,
    with_states,
)
from .keys.options import RunOptions
from .loop.mixed import Learner, MixedTrainer
from .mechanism import mechanism
from .metric import Metric
from .nearest import check_nearest, start_nearest
from .output.checkpoints import CHECKPOINTS
from .output.folder import LOCK, check_folder, writing
from .output.model_card import write_model_card
from .output.outcome import Effort, RunResult, claim, describe_run, generated, in_memory, named, noted
from .prepare import Prepared, asked_of_data, gather, start_head

KINDS_TOGETHER = ("classification", "completion")
RESERVED = (CHECKPOINTS, OPTIONS_FILE, RESULT_FILE, CARD_FILE, LOCK)  # what else lies in the folder of the run
# what acts on the rows of one prompt alone: whether options ask for it, what they ask for, and what to do
ALONE: tuple[tuple[Callable[[RunOptions], bool], str, str], ...] = (
    (lambda o: o.head in ("stock", "verbalizer"), "head={o.head!r} has one head for all rows", "use head='pooled'"),
    (
        lambda o: o.features == "auto",
        "features='auto' chooses the layers of one head by its rows",
        "name layers, such as features=[3, 4], or leave it out",
    ),
    (
        lambda o: o.head_fit == "probe",
        "head_fit='probe' fits one head on all rows",
        "use head_fit='gradient'; heads start from a probe of their own rows as it is",
    ),
    (lambda o: o.track != "none", "track={o.track!r} records one prompt", "leave it out"),
    (lambda o: o.cache_below != "none", "cache_below={o.cache_below!r} keeps states for one prompt", "leave it out"),
    (lambda o: o.score_last, "score_last=True scores one prompt", "leave it out"),
    (lambda o: o.class_weights is not None, "class_weights weigh the classes of one task", "leave them out"),
    (
        lambda o: bool(o.training.get("label_smoothing_factor")),
        "label_smoothing_factor shares a row's weight among the classes of one task",
        "leave it out",
    ),
    (
        lambda o: bool(o.training.get("fsdp")),
        "FSDP leaves each process a part of a prompt, and mixed batches run in one process",
        "leave fsdp out",
    ),
)


@dataclass(frozen=True)
class Part:
    """One task of the run.

    Attributes:
        name: of the task, and of its folder.
        adapter: the name of its prompt in the model, which must be no word of torch's.
        options: of the run, with the task's folder.
        prepared: its rows, and its own head on the backbone of all.
        config: of its prompt.
        starts: loss by adapter, of several from which the prompt might start.
    """

    name: str
    adapter: str
    options: RunOptions
    prepared: Prepared
    config: SoftPromptConfig
    starts: dict[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its prompt goes."""
        return Path(self.options.output_dir)


@dataclass(frozen=True)
class Together:
    """A run of several tasks against which nothing speaks, before anything is computed.

    Attributes:
        options: with a dtype in the place of "auto".
        checkpoint: where a resumed run goes on, or None.
        parts: the tasks.
        arguments: of the trainer.
        chooses: whether each prompt keeps its best state.
    """

    options: RunOptions
    checkpoint: str | None
    parts: list[Part]
    arguments: TrainingArguments
    chooses: bool


def refuse_beside(metric: Metric | None, test: bool = True) -> None:
    """Raise `SoftPromptError` for arguments of `softprompt.train` that say something of one prompt alone."""
    if metric is not None or not test:
        raise SoftPromptError(
            "task_column trains several prompts in one run, each with its own classes: expected no metric and no search of settings beside it; drop one of the two."
        )


def check_together(options: RunOptions, resume: bool = False, weights: bool = True, progress: bool = False) -> Together:
    """Check all that can be checked of a run of several tasks without computing; arguments as for `check_run`.

    Raises:
        SoftPromptError: the first thing that speaks against the run.
    """
    _refuse(options)
    folder = Path(options.output_dir)
    options = with_dtype(folder, options, resume)
    checkpoint = check_folder(folder, options, resume)
    parts = _gather(options, weights)
    evaluates = options.training.get("eval_strategy") != "no"  # which is enough: the best states stay in memory
    chooses = bool(options.training.get("load_best_model_at_end", evaluates))
    options = _with_batch(options, len(parts))
    widest = max((part.prepared for part in parts), key=lambda prepared: len(prepared.card.label_names))
    rows = concatenate_datasets([part.prepared.encoded["train"] for part in parts])
    joint = replace(widest, encoded={**widest.encoded, "train": rows})
    fixed = {
        "load_best_model_at_end": False,
        "save_strategy": scored_when(options.training)["save_strategy"],
    }
    mine = {key: value for key, value in options.training.items() if key not in fixed}
    arguments = training_arguments(
        replace(options, training=mine),
        find_method(options.method),
        joint,
        progress,
        folder,
        parts[0].config,
        **fixed,
    )
    try_out(options, arguments, joint.model, len(rows))
    return Together(options, checkpoint, parts, arguments, chooses)


def _refuse(options: RunOptions) -> None:
    """Refuse what acts on the rows of one prompt alone."""
    trained = f"task_column={options.task_column!r} trains several prompts in mixed batches"
    for asks, what, instead in ALONE:
        if asks(options):
            raise SoftPromptError(f"{trained}, and {what.format(o=options)}; {instead}, or train each task by itself.")
    config = options.config()
    why = None
    if not isinstance(config, SoftPromptConfig):
        why = "is PEFT's, whose prompts stand in no mixed batch; choose a method of softprompt"
    elif config.placement == "gated":
        why = "searches layers, with rows of one task; name layers, such as method deep_prompts with layers=[3, 4]"
    elif config.objectives:
        why = (
            "has objectives, which read whole batches of one task; choose a method without, such as ept or deep_prompts"
        )
    if why is not None:
        raise SoftPromptError(f"{trained}, and method {options.method!r} {why}, or train each task by itself.")
    if PartialState().num_processes > 1:
        raise SoftPromptError(
            f"{trained} in one process, got {PartialState().num_processes}; start it without a launcher."
        )


def _gather(options: RunOptions, weights: bool) -> list[Part]:
    """The tasks, each with rows and a head of its own, over one backbone."""
    with Tally() as tally:  # what is said of one task is said of the others, too
        parts = _parts(options, weights)
    tally.say()
    return parts


def _parts(options: RunOptions, weights: bool) -> list[Part]:
    parts: list[Part] = []
    method, beside = find_method(options.method), None
    for name, task in load_tasks(options.data, str(options.task_column), **asked_of_data(options)).items():
        if name.lower() in {taken.lower() for taken in RESERVED}:
            raise SoftPromptError(f"task {name!r}: the folder of a run has a file of this name; rename the task.")
        if task.kind not in KINDS_TOGETHER:
            raise SoftPromptError(
                f"task {name!r} is a {task.kind} task: expected tasks of kind {' or '.join(KINDS_TOGETHER)} for mixed batches; train it by itself."
            )
        if parts and task.kind != (kind := parts[0].prepared.task.kind):
            raise SoftPromptError(
                f"tasks of one run are of one kind: {parts[0].name!r} is a {kind} task, {name!r} a {task.kind} task; train them by themselves."
            )
        prepared = gather(options, weights, task, beside)
        if prepared.encoded.get("dev") is None:
            raise SoftPromptError(
                f"task {name!r} has no dev rows to choose its checkpoint by; raise dev_fraction or give dev_file rows of it."
            )
        options = replace(options, pooling=prepared.card.pooling or options.pooling)  # said once
        config = configure(options, method, prepared)
        check_nearest(options, prepared, config)
        assert isinstance(config, SoftPromptConfig)  # _refuse saw to it
        own = replace(options, output_dir=str(Path(options.output_dir) / name))
        parts.append(Part(name, f"task{len(parts):03}", own, prepared, config))
        beside = parts[0].prepared.model
    _check_alike(parts)
    return parts


def _check_alike(parts: list[Part]) -> None:
    if len(parts) < 2:
        raise SoftPromptError(
            f"task_column={parts[0].options.task_column!r} names one task, {parts[0].name!r}: expected two or more; leave task_column out."
        )
    pairs = {part.name: part.prepared.card.pairs or "joined" for part in parts}
    if len(set(pairs.values())) > 1:
        raise SoftPromptError(
            f"tasks of one run read texts in one way, got pairs={', '.join(f'{how} of {name}' for name, how in pairs.items())}; set pairs=joined."
        )


def _with_batch(options: RunOptions, tasks: int) -> RunOptions:
    """As many rows of each task in a batch, in the mean, as a run of one task has, up to a limit."""
    if "per_device_train_batch_size" in options.training:
        return options
    size = min(BATCH * tasks, LARGEST)
    announce(f"per_device_train_batch_size={size}", f"{tasks} tasks share a batch, which is {BATCH} rows of one task")
    return replace(options, training={**options.training, "per_device_train_batch_size": size})


# Training ------------------------------------------------------------------------------------------------------------


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
        document = _summary(run, trainer, documents, times)
        write_json(folder / RESULT_FILE, document)
        write_text(folder / CARD_FILE, _overview(run, documents))
    metrics = {key: value for key, value in document["train_info"].items() if key.startswith(("dev ", "test "))}
    each = {f"{name}: {key}": value for name, own in documents.items() for key, value in _scores(own).items()}
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


# What is left --------------------------------------------------------------------------------------------------------


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


def _scores(document: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in document["train_info"].items() if key.startswith(("dev ", "test "))}


def _means(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean over the tasks of each score that all of them have."""
    return {key: sum(own[key] for own in found) / len(found) for key in found[0] if all(key in own for own in found)}


def _summary(
    run: Together, trainer: MixedTrainer, documents: Mapping[str, dict[str, Any]], times: Mapping[str, float]
) -> dict[str, Any]:
    """The document of the whole run: means over the tasks, and the figures of each."""
    options, each = run.options, {name: document["train_info"] for name, document in documents.items()}
    first = next(iter(documents.values()))
    kept = {"best_checkpoint_step", "num_trainable_params", "file_size", "probe", "beats_probe"}
    kept |= {"zero_shot", "beats_zero_shot"}  # of label words
    return {
        "run_info": {
            **first["run_info"],
            "total_time": times["total_time"],
            "experiment_name": f"{options.method}/{len(each)} tasks-{options.shots or 'all'}-{options.seed}",
            "train_config": options.to_flat(),
        },
        "train_info": {
            **_means([_scores(document) for document in documents.values()]),
            **{key: first["train_info"][key] for key in ("train_time", "train_steps", "learning_rate", "status")},
            "num_trainable_params": sum(info["num_trainable_params"] for info in each.values()),
            "probe": _means([info["probe"] for info in each.values()]),
            "tasks": {
                name: {**_scores(documents[name]), **{key: value for key, value in info.items() if key in kept}}
                for name, info in each.items()
            },
            "metrics": noted(trainer.state.log_history),
        },
        "meta_info": {
            **first["meta_info"],
            "dataset_info": {
                "source": options.data,
                "tasks": {name: document["meta_info"]["dataset_info"] for name, document in documents.items()},
            },
        },
    }


def _overview(run: Together, documents: Mapping[str, dict[str, Any]]) -> str:
    """``README.md`` of the whole run."""
    found = {name: _scores(document) for name, document in documents.items()}
    keys = [key for key in next(iter(found.values())) if all(key in own for own in found.values())]
    lines = [f"| [{name}]({name}) | {' | '.join(f'{own[key]:.4f}' for key in keys)} |" for name, own in found.items()]
    table = "\n".join([f"| task | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|", *lines])
    return f"""# {run.options.method} on {len(found)} tasks

A soft prompt for each task, trained in one run over one frozen backbone. Each folder is an adapter by itself.

{table}
"""
