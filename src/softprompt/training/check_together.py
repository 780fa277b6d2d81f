"""Everything for which a run of several tasks is refused, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import PartialState
from datasets import concatenate_datasets
from transformers import TrainingArguments

from .._types import SoftPromptError, Tally, announce
from ..data import load_tasks
from ..methods import find_method
from ..models.hub import CARD_FILE, OPTIONS_FILE, RESULT_FILE
from ..tuner import SoftPromptConfig
from .arguments import BATCH, LARGEST, scored_when, training_arguments, try_out
from .check import configure, with_dtype
from .keys.options import RunOptions
from .metric import Metric
from .nearest import check_nearest
from .output.checkpoints import CHECKPOINTS
from .output.folder import LOCK, check_folder
from .prepare import Prepared, asked_of_data, gather

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
