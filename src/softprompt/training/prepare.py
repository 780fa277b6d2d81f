"""What a run needs before its method is attached: rows, tokens, backbone, head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .._types import SoftPromptError, announce, check_choice
from ..data import (
    PAD_TO,
    Task,
    Verbalizer,
    batches,
    by_length,
    load_task,
    load_tasks,
)
from ..models.assemble import build_model
from ..models.classifier import PooledClassifier, choose_pairs
from ..models.features import choose_features
from ..models.heads import HEADS
from ..models.hub import OPTIONS_FILE
from ..models.kinds import COLUMNS, KINDS, Kind, OfTexts
from ..models.marked import check_marked, know_marker
from ..models.places import backbone_path, load_tokenizer, read_config
from ..models.probe import score_template, start_from_probe
from ..models.task_card import TaskCard
from ..models.verbalized import VerbalizedClassifier, word_place
from ..objectives import OBJECTIVES, OF_ONE_INPUT
from ..tuner import Backbone, find_backbone
from .keys.options import RunOptions
from .metric import Metric
from .output.folder import recorded

READING = (  # keys of a run that say how the rows of its data are read
    *(f"{column}_column" for column in COLUMNS),
    "class_names",
    "kind",
    "dev_fraction",
    "train_file",
    "dev_file",
    "test_file",
    "hub_config",
    "blank_rows",
)
UNCHOSEN = "training rows choose layers by their classes, and rows of a {} task do not have one class each"


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs before its method is attached.

    Attributes:
        task: rows of text.
        card: how they are read.
        tokenizer: of the backbone.
        model: backbone and head.
        encoded: rows of token ids by split; all but "train" are sorted by length.
        probe: scores by split of the linear probe from which the head starts; empty where it starts from none.
        zero_shot: scores by split of template and label words alone; empty of another head.
        fresh: modules of the head that no checkpoint holds.
        metric: of the user's, beside the scores of the kind; or None.
    """

    task: Task
    card: TaskCard
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    encoded: dict[str, Dataset]
    probe: dict[str, dict[str, float]]
    fresh: list[str]
    metric: Metric | None = None
    zero_shot: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What is special about the kind of task."""
        return KINDS[self.card.kind]

    def first_of(self, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The kind's first score on each split."""
        first = self.kind.scores(self.card.label_names)[0]
        return {split: found[first] for split, found in scores.items()}

    def without_test(self) -> Prepared:
        """The same without test rows."""
        return replace(self, encoded={name: rows for name, rows in self.encoded.items() if name != "test"})


def prepare(options: RunOptions) -> Prepared:
    """Load data, tokenizer and backbone; put the head on, and start it from a linear probe if asked."""
    return start_head(options, gather(options))


def asked_of_data(options: RunOptions) -> dict[str, Any]:
    """What `load_task` is asked for."""
    return {**reading_of(vars(options)), "shots": options.shots, "seed": options.seed}


def reading_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `load_task` among the flat keys of a run that say how rows are read."""
    return {"label_names" if key == "class_names" else key: flat[key] for key in READING if key in flat}


def read_task(options: RunOptions) -> Task:
    """The rows of a run."""
    return load_task(options.data, **asked_of_data(options))


def task_of_run(folder: Path) -> tuple[str, str] | None:
    """The column of tasks and the task of the prompt in ``folder``, where it was trained beside others; else None."""
    return _task_in(recorded(folder / OPTIONS_FILE), folder) if (folder / OPTIONS_FILE).is_file() else None


def _task_in(recorded_options: Mapping[str, Any], folder: Path) -> tuple[str, str] | None:
    column = recorded_options.get("task_column")
    return None if column is None else (str(column), Path(str(recorded_options.get("output_dir") or folder)).name)


def rows_of_run(folder: Path, data: str, **columns: str) -> Task | None:
    """The rows of the run in ``folder``, drawn as it drew them; None where no run lies there, or it had other data than ``data``.

    Raises:
        SoftPromptError: the data has changed, so that its rows cannot be read, or are none of the run's task.
    """
    if not (folder / OPTIONS_FILE).is_file():
        return None
    flat = recorded(folder / OPTIONS_FILE)
    options = RunOptions.from_flat(flat)
    if data != options.data and Path(data).resolve() != Path(options.data).resolve():
        return None
    options = replace(options, data=data, **columns)  # type: ignore[arg-type]
    if (of_task := _task_in(flat, folder)) is None:
        return read_task(options)
    column, name = of_task
    tasks = load_tasks(data, column, **asked_of_data(options))
    check_choice("task of the run", name, tuple(tasks))  # each has a folder of its name; the data may have changed
    return tasks[name]


def gather(
    options: RunOptions, weights: bool = True, task: Task | None = None, beside: PreTrainedModel | None = None
) -> Prepared:
    """Load data, tokenizer and backbone, and put the head on; nothing is computed.

    Args:
        weights: read the backbone's; without them it is its architecture alone.
        task: rows that are loaded already.
        beside: a model of the same options, whose backbone this one shares.

    Raises:
        SoftPromptError: data, columns, classes, backbone, head or lengths do not fit together.
    """
    config = read_config(options.backbone)  # first: a mistyped name should not cost the reading of the data
    task = read_task(options) if task is None else task
    tokenizer = load_tokenizer(options.backbone)
    marker = None if options.marker is None else know_marker(tokenizer, options.marker)
    kind = KINDS[task.kind]
    head = kind.choose_head(options.head)
    verbalizer = None
    if head == "verbalizer":
        words, pieces = options.label_words or {}, options.label_pieces
        place = word_place(config)
        verbalizer = Verbalizer(tokenizer, str(options.template), words, task.label_names, pieces, place)
    card = TaskCard(
        kind=task.kind,
        backbone=options.backbone,
        head=head,
        label_names=task.label_names,
        max_length=options.max_length,
        cut=_cut_for(options, kind, head),
        dtype=options.dtype,
        backbone_dropout=options.backbone_dropout,
        verbalizer=verbalizer.to_dict() if verbalizer else None,
        pairs=pairs_for(options, task, head),
        features=features_for(options, head, kind),
        columns={f"{name}_column": column for name, column in task.origin["columns"].items() if column},
    )
    if beside is None:
        model, fresh = build_model(card, tokenizer, options.pooling, weights, options.attn_implementation)
    else:
        below = beside.backbone if isinstance(beside, PooledClassifier) else beside
        model, fresh = HEADS[head].put(below, card, tokenizer, options.pooling), []
    card = replace(card, max_length=room_for_text(options, find_backbone(model)))
    if isinstance(model, PooledClassifier):
        card = replace(card, pooling=model.pooling, features=None if model.features is None else list(model.features))
    encode = kind.encoder(card, tokenizer, verbalizer, bool(model.config.is_encoder_decoder))
    task = task.with_test_rows(options.test_limit)
    splits = {"train": task.train, "dev": task.dev, "test": task.test}
    encoded = {name: encode(rows) for name, rows in splits.items() if rows is not None}
    if marker is not None:
        check_marked(encoded, marker, str(options.marker))
    encoded = {name: rows if name == "train" else by_length(rows) for name, rows in encoded.items()}
    return Prepared(task, card, tokenizer, model, encoded, {}, fresh)


def start_head(options: RunOptions, prepared: Prepared, test: bool = True) -> Prepared:
    """Choose the layers that a pooled head reads, and start it from a linear probe, if asked; or score label words as they are.

    Without ``test`` leave test rows out.
    """
    if not test and "test" in prepared.encoded:
        started = start_head(options, prepared.without_test())
        if started.probe:  # a loader of the test rows draws from the random state from which training goes on
            next(batches(prepared.encoded["test"], prepared.tokenizer, prepared.kind.name), None)
        return started
    if isinstance(prepared.model, VerbalizedClassifier):
        alone = score_template(prepared.model, prepared.encoded, prepared.tokenizer, prepared.kind)
        return replace(prepared, zero_shot=alone)
    if not isinstance(prepared.model, PooledClassifier):
        return prepared
    chosen_by_rows = options.features == "auto" and prepared.kind.one_label
    if chosen_by_rows and LAST_LAYER.found(options, prepared.card.head) is None:
        features, reason = choose_features(prepared.model, prepared.encoded["train"], prepared.tokenizer)
        announce(f"features={'last' if features is None else features}", reason)
        prepared.model.read_layers(features)
        prepared = replace(prepared, card=replace(prepared.card, features=features))
    if options.head_init != "probe":
        return prepared
    probe = start_from_probe(prepared.model, prepared.encoded, prepared.tokenizer, prepared.kind)
    if any(entry["name"] == "head_information" and entry.get("rows") == "mean" for entry in _objectives(options)):
        announce(
            "the objective 'head_information' starts at nothing",
            "it reads the mean of the head's rows, and those of a probe sum to 0; exact=False reads the direction of each class, head_init=random gives it a head to compare with",
        )
    return replace(prepared, probe=probe)


def room_for_text(options: RunOptions, backbone: Backbone) -> int:
    """Tokens per row: ``max_length``, or what the backbone's positions leave beside the virtual tokens.

    Raises:
        SoftPromptError: more than that was asked for.
    """
    limit = backbone.max_positions
    virtual = getattr(options.config(), "num_virtual_tokens", 0)
    if limit is None or -(-options.max_length // PAD_TO) * PAD_TO + virtual <= limit:
        return options.max_length
    room = (limit - virtual) // PAD_TO * PAD_TO  # batches are padded up to a multiple, and padding takes positions, too
    beside = f"{backbone.model_type} has {limit} positions, {virtual} of them for virtual tokens"
    if room < PAD_TO:
        raise SoftPromptError(
            f"num_virtual_tokens={virtual} leaves no room for text: {backbone.model_type} has {limit} positions; use a shorter prompt."
        )
    if options.max_length != RunOptions.max_length:
        raise SoftPromptError(f"max_length={options.max_length}: {beside}; set max_length={room}.")
    announce(f"max_length={room}", beside)
    return room


def pairs_for(options: RunOptions, task: Task, head: str) -> str | None:
    """How the head sees rows of two texts, None for rows of one; "auto" chooses, and says so.

    Raises:
        SoftPromptError: texts apart beside something that reads states of single inputs.
    """
    if "text_pair" not in task.train.column_names:
        return None
    single = ONE_INPUT.found(options, head)
    if options.pairs == "apart" and single is not None:
        raise SoftPromptError(
            f"pairs='apart' compares the states of two inputs, but {single}; use pairs='joined' or drop the other."
        )
    if options.pairs != "auto":
        return options.pairs
    if not HEADS[head].compares:
        return "joined"
    pairs, reason = choose_pairs(backbone_path(options.backbone))
    if pairs == "apart" and single is not None:
        pairs, reason = "joined", single
    announce(f"pairs={pairs}", reason)
    return pairs


def _cut_for(options: RunOptions, kind: Kind, head: str) -> str:
    """What longer texts lose.

    Raises:
        SoftPromptError: the middle, of rows that are no texts under a pooled or stock head.
    """
    if options.cut != "end" and (not isinstance(kind, OfTexts) or head == "verbalizer"):
        raise SoftPromptError(
            f"cut={options.cut!r} keeps head and tail of whole texts under head='pooled' or 'stock': expected such a task, got {kind.name} with head={head!r}; use cut='end'."
        )
    return options.cut


def features_for(options: RunOptions, head: str, kind: Kind) -> list[int] | None:
    """The layers that the head reads, None for the last one; where the training rows choose them, None until they have.

    Raises:
        SoftPromptError: layers beside something that knows the last one alone.
    """
    if options.features == "last":
        return None
    why = LAST_LAYER.found(options, head)
    if isinstance(options.features, str):
        why = why or (None if kind.one_label else UNCHOSEN.format(kind.name))
        if why is not None:
            announce("features=last", why)
        return None
    if why is not None:
        raise SoftPromptError(
            f"features={options.features} lets the head read several layers, but {why}; use features='last' or drop the other."
        )
    return options.features


@dataclass(frozen=True)
class _Alone:
    """What a run may hold that reads one kind of state alone, where an option would have the head read others.

    Attributes:
        heads: those that can read others.
        needs: what an objective reads that comes of this kind of state alone.
        head, cache, track, objective: what is said of each, after its name.
    """

    heads: frozenset[str]
    needs: frozenset[str]
    head: str
    cache: str
    track: str
    objective: str

    def found(self, options: RunOptions, head: str) -> str | None:
        """The first of a run's parts that reads this kind of state alone, in words; None for none."""
        if head not in self.heads:
            return f"head={head!r} {self.head}"
        if options.cache_below != "none":
            return f"cache_below={options.cache_below!r} {self.cache}"
        if options.tracks("mi"):
            return f"track={options.track!r} {self.track}"
        for name in (entry["name"] for entry in _objectives(options)):
            if name in OBJECTIVES and OBJECTIVES[name].needs & self.needs:
                return f"the objective {name!r} {self.objective}"
        return None


LAST_LAYER = _Alone(
    heads=frozenset({"pooled"}),
    needs=frozenset({"head_rows"}),
    head="reads the last one",
    cache="leaves lower layers out",
    track="compares rows of the head with states of the last one",
    objective="compares rows of the head with states of the last one",
)
ONE_INPUT = _Alone(
    heads=frozenset(name for name, head in HEADS.items() if head.compares),
    needs=OF_ONE_INPUT,
    head="reads one",
    cache="keeps the states of one",
    track="compares a state with that of the same input without prompt",
    objective="compares a state with that of the same input, or with rows of the head",
)


def _objectives(options: RunOptions) -> list[dict[str, Any]]:
    """The objectives of a run: of its method, and those that the user adds."""
    return getattr(options.config(), "objectives", [])
