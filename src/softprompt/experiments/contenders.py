"""What can take part in a comparison: every method of the library, and four that are no adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, TrainingArguments, set_seed

from .._types import SoftPromptError, check_choice
from ..data import batches, by_length
from ..methods import METHODS, find_method
from ..models.classifier import check_layers
from ..models.places import read_config
from ..models.probe import fit_probe, head_features, logits_of_rows, set_head
from ..search import check_budget
from ..serving import Predictor
from ..training import PromptTrainer, RunOptions, train
from ..training.doubts import check_layers_read
from ..training.fit import make_trainer, refusing, scored_when, training_arguments, try_out
from ..training.keys.options import ARGUMENTS
from ..training.loop.refit import choose_head_fit
from ..training.prepare import Prepared, prepare, read_task
from ..tuner import Backbone, SoftPromptConfig, check_fits, find_backbone
from . import setfit

RATE = 5e-5  # of full fine-tuning
DEAD = 1e-6  # a feature's spread, as a share of the median, below which it is none
_PRECISION = {"bfloat16": "bf16", "float16": "fp16"}
_PROMPTS_ONLY = {"track", "search_epochs"}
SPLITS = ("dev", "test")  # that a cell is scored on
_RUN_KEYS = frozenset(RunOptions.hints())
COMMON_KEYS = _RUN_KEYS | ARGUMENTS.keys()  # options that do not belong to one method


@dataclass(frozen=True)
class Outcome:
    """What a trained contender leaves.

    Attributes:
        dev, test: accuracy of the chosen checkpoint.
        parameters: number of trained parameters, with the head.
        steps: steps of the optimizer.
        learning_rate: None where nothing is trained by steps.
        curve: pairs [step, dev accuracy], one per evaluation in training.
        train_seconds: seconds of training alone.
        extra: what a method has to say beside that, as JSON.
        predictions: computes the true and the predicted class index of every test row when it is called.
    """

    dev: float
    test: float
    parameters: int
    steps: int
    learning_rate: float | None
    curve: list[list[float]]
    train_seconds: float
    predictions: Callable[[], tuple[list[int], list[int]]]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """A name that ``method`` can have in a suite.

    Attributes:
        name: of the contender.
        keys: flat options that it takes.
        has_rate: whether it has a learning rate to tune.
        run: trains and tests it by flat options.
        check: raises `SoftPromptError` for options that cannot work.
        ready: raises `SoftPromptError` when a package that it needs is not installed.
    """

    name: str
    keys: frozenset[str]
    has_rate: bool
    run: Callable[[dict[str, Any]], Outcome]
    check: Callable[[dict[str, Any]], None]
    ready: Callable[[], None] = lambda: None


def find_contender(name: str) -> Contender:
    """Look a contender up by name.

    Raises:
        SoftPromptError: there is no such contender; the message names the nearest.
    """
    if name in METHODS:
        keys = COMMON_KEYS.union(find_method(name).hints)
        return Contender(name, keys, True, run_adapter, check_adapter)
    check_choice("method", name, (*METHODS, *_OTHERS))
    return _OTHERS[name]


# Adapters ------------------------------------------------------------------------------------------------------------


def run_adapter(flat: dict[str, Any]) -> Outcome:
    """Run a method of `softprompt.methods.METHODS` by `softprompt.train`."""
    options = RunOptions.from_flat(flat)
    result = train(options, progress=False)
    info, run = result.document["train_info"], result.document["run_info"]
    search = info.get("search") or {}
    extra = {
        "probe": info["probe"],
        "zero_shot": info.get("zero_shot"),
        "best_step": info["best_checkpoint_step"],
        "last": _last(info.get("last")),
        "critic_parameters": info["num_critic_params"],
        "mechanism": _acted(info.get("mechanism") or {}) or None,
        "layers": run["peft_config"].get("layers"),
        "gates": search.get("gates"),
        "gate_gradients": search.get("gradients"),
        "layer_scores": search.get("scores"),
        "layer_score": search.get("layer_score"),
        "search_steps": search.get("steps"),
        "train_curve": train_curve(info["metrics"]) or None,
        "topology": info.get("topology", {}).get("layers"),
        **_rows(result.document["meta_info"]["dataset_info"]),
    }
    return Outcome(
        dev=info["dev accuracy"],
        test=info["test accuracy"],
        parameters=info["num_trainable_params"],
        steps=info["train_steps"],
        learning_rate=info["learning_rate"],
        curve=dev_curve(info["metrics"]),
        train_seconds=info["train_time"] + search.get("seconds", 0.0),
        extra={key: value for key, value in extra.items() if value is not None},
        predictions=partial(_predicted_again, options, result.folder),
    )


def check_adapter(flat: dict[str, Any]) -> None:
    """Build the method's config, the prompt's shapes and the trainer's arguments without data or model."""
    options = RunOptions.from_flat(flat)
    config = options.config()
    if isinstance(config, SoftPromptConfig):
        _check_shapes(config, options.backbone)
    _check_common(options)


def _check_shapes(config: SoftPromptConfig, backbone: str) -> None:
    """Check that the prompt fits the backbone's architecture, and make it without its numbers, so that its shapes are checked."""
    # whether there is room for text too, a cell finds out: suites go on whose cells have failed for lack of it
    found = replace(_architecture(backbone), max_positions=None)
    check_fits(config, found)
    if config.placement == "gated":
        check_budget(config.budget, found.num_layers if config.layers is None else len(config.layers))
    check_layers_read(config, found.num_layers)
    with torch.device("meta"):
        replace(config, hidden_size=found.hidden_size, num_layers=found.num_layers).build()


@lru_cache(maxsize=8)
def _architecture(backbone: str) -> Backbone:
    """The backbone without its weights, once for all methods of a suite."""
    with torch.device("meta"):
        return find_backbone(AutoModel.from_config(_facts(backbone)))


@lru_cache(maxsize=8)
def _facts(backbone: str) -> Any:
    """Read the backbone's config, once for all methods of a suite."""
    return read_config(backbone)


def _acted(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What a run notes of its mechanism, without what a search of layers found: a cell has that under names of its own."""
    return {name: value for name, value in figures.items() if not name.startswith("layer_")}


def _last(scores: Mapping[str, float] | None) -> dict[str, float] | None:
    """Accuracy of what the last step left, under the names that a cell has for the chosen checkpoint."""
    return None if scores is None else {split: scores[f"{split} accuracy"] for split in SPLITS}


def dev_curve(history: list[dict[str, Any]]) -> list[list[float]]:
    """Return pairs [step, dev accuracy] of a run's history, whose last two entries are the chosen checkpoint on dev and test."""
    scored = [entry for entry in history if "eval_accuracy" in entry]
    return [[entry["step"], entry["eval_accuracy"]] for entry in scored[:-2] if entry["step"] > 0]


def train_curve(history: list[dict[str, Any]]) -> list[list[float]]:
    """Return pairs [step, accuracy on the training rows] of a run that tracks it."""
    return [[entry["step"], entry["train_accuracy"]] for entry in history if "train_accuracy" in entry]


def _predicted_again(options: RunOptions, folder: Path) -> tuple[list[int], list[int]]:
    rows = read_task(options).with_test_rows(options.test_limit).test
    assert rows is not None  # a cell has test rows: it was tested on them
    predictor = Predictor(folder)
    names = predictor.card.label_names
    return list(rows["label"]), [names.index(line["label"]) for line in predictor.predict(rows.to_list())]


def _rows(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Say where the rows came from: how many, from which files, and how many inputs stand in two splits."""
    return {"rows": origin["rows"], "files": origin["files"], "overlap": origin["overlap"]}


# Zero shots, probe and full fine-tuning ------------------------------------------------------------------------------


def run_zero_shot(flat: dict[str, Any]) -> Outcome:
    """Ask the frozen language model by its template and label words; no row trains or chooses anything."""
    return _run_frozen(flat, lambda prepared: (prepared.zero_shot, 0))


def run_probe(flat: dict[str, Any]) -> Outcome:
    """Fit logistic regression on pooled frozen features, from which the head of every other run starts.

    The strength of its penalty is fixed (scikit-learn's C = 1 / H on standardised features), so dev rows choose nothing.
    """
    return _run_frozen(flat, lambda prepared: (prepared.probe, _count(prepared.model.classifier)))


def _run_frozen(flat: dict[str, Any], found: Callable[[Prepared], tuple[dict[str, float], int]]) -> Outcome:
    """Prepare a run and train nothing; ``found`` says the scores by split, and how many parameters were fitted."""
    options = _run_options(flat)
    set_seed(options.seed)
    started = time.perf_counter()
    prepared = prepare(options)
    seconds = time.perf_counter() - started
    scores, parameters = found(prepared)
    return Outcome(
        dev=scores["dev"],
        test=scores["test"],
        parameters=parameters,
        steps=0,
        learning_rate=None,
        curve=[],
        train_seconds=seconds,
        extra=_rows(prepared.task.origin),
        predictions=partial(_predictions, prepared, "test"),
    )


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def run_full_finetuning(flat: dict[str, Any]) -> Outcome:
    """Train all weights of backbone and head, from the probe on, with the trainer that prompts have.

    With a verbalizer there is no head and no probe: all weights of the language model train. Else the head has
    ``head_learning_rate``, as beside an adapter. Weights are float32; ``dtype`` is the precision of the computation (autocast),
    because steps of this size vanish in half precision.
    """
    options = _run_options({**flat, "dtype": "float32"})
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
        parameters=_count(prepared.model),
        steps=trainer.state.global_step,
        learning_rate=arguments.learning_rate,
        curve=dev_curve(trainer.state.log_history),
        train_seconds=seconds,
        extra={
            **({"probe": prepared.probe} if prepared.probe else {}),
            "best_step": trainer.state.best_global_step,
            **({"last": last} if options.score_last else {}),
            **_rows(prepared.task.origin),
        },
        predictions=partial(_predictions, prepared, "test"),
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


def _predictions(prepared: Prepared, split: str) -> tuple[list[int], list[int]]:
    """Return true and predicted classes of the rows of ``split``, by a model that holds all its weights."""
    rows = prepared.encoded[split]
    return list(rows["labels"]), logits_of_rows(prepared.model, rows, prepared.tokenizer).argmax(-1).tolist()


def _run_options(flat: Mapping[str, Any]) -> RunOptions:
    """Read the options of a contender that is no method of the library; the one that stands in for it attaches nothing."""
    known = {key: value for key, value in flat.items() if key != "method" and key in COMMON_KEYS}
    return RunOptions.from_flat({**known, "method": "prompt_tuning"})


def _check_zero_shot(flat: dict[str, Any]) -> None:
    """Refuse a head that must be trained: only label words can be asked for as they are."""
    if flat.get("head") != "verbalizer":
        raise SoftPromptError(
            f"method 'zero_shot': expected head='verbalizer' with template and label_words, got head={flat.get('head', 'pooled')!r}."
        )
    _check_common(_run_options(flat))


def _check_full_finetuning(flat: dict[str, Any]) -> None:
    """Refuse a head that is neither label words nor the pooled one that starts from the probe."""
    if flat.get("head") == "verbalizer":
        _check_common(_run_options(flat))
    else:
        _check_probed_head("full_finetuning", flat)


def _check_probed_head(name: str, flat: dict[str, Any]) -> None:
    """Refuse another head than the pooled one that starts from the probe."""
    for key, expected in (("head", "pooled"), ("head_init", "probe")):
        if flat.get(key, expected) != expected:
            raise SoftPromptError(f"method {name!r}: expected {key}={expected!r}, got {flat[key]!r}; take it out.")
    _check_common(_run_options(flat))


def _check_common(options: RunOptions) -> None:
    """Check that the backbone and the layers that the head reads are there, and that `TrainingArguments` takes what it is given."""
    facts = _facts(options.backbone).get_text_config()
    if isinstance(options.features, list):
        check_layers(options.features, facts.num_hidden_layers)
    with refusing():
        TrainingArguments(output_dir="unused", **{**scored_when(options.training), **options.training, "use_cpu": True})


# SetFit --------------------------------------------------------------------------------------------------------------


def run_setfit(flat: dict[str, Any]) -> Outcome:
    """Run SetFit by its own package; see `softprompt.experiments.setfit`."""
    known = {key: value for key, value in flat.items() if key in _RUN_KEYS}
    options = _run_options(known)
    task = read_task(options).with_test_rows(options.test_limit)
    own = {key: flat[key] for key in setfit.DEFAULTS if flat.get(key) is not None}
    tuned = setfit.train_setfit(options, task, {**setfit.DEFAULTS, **own})
    return Outcome(
        dev=float(np.mean(tuned.dev_predicted == tuned.dev_true)),
        test=float(np.mean(tuned.test_predicted == tuned.test_true)),
        parameters=tuned.parameters,
        steps=tuned.steps,
        learning_rate=tuned.learning_rate,
        curve=[[tuned.steps, float(np.mean(tuned.dev_predicted == tuned.dev_true))]],
        train_seconds=tuned.train_seconds,
        extra=_rows(task.origin),
        predictions=lambda: (tuned.test_true.tolist(), tuned.test_predicted.tolist()),
    )


def check_setfit(flat: dict[str, Any]) -> None:
    for key, least in (("num_iterations", 1), ("num_epochs", 1), ("batch_size", 2), ("max_steps", -1)):
        value = flat.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise SoftPromptError(f"method 'setfit': {key}: expected a whole number from {least}, got {value!r}.")
    known = {key: value for key, value in flat.items() if key in _RUN_KEYS or key == "learning_rate"}
    _check_common(_run_options(known))


_STEPS_ONLY = {"head_learning_rate", "early_stopping_patience", "backbone_dropout", "score_last"}
_PLAIN = _RUN_KEYS - _PROMPTS_ONLY - _STEPS_ONLY
_OTHERS = {
    contender.name: contender
    for contender in (
        Contender("zero_shot", _PLAIN, False, run_zero_shot, _check_zero_shot),
        Contender("probe", _PLAIN, False, run_probe, partial(_check_probed_head, "probe")),
        Contender("full_finetuning", COMMON_KEYS - _PROMPTS_ONLY, True, run_full_finetuning, _check_full_finetuning),
        Contender(
            "setfit",
            _PLAIN - {"head", "head_init", "pooling"} | frozenset(setfit.DEFAULTS),
            True,
            run_setfit,
            check_setfit,
            setfit.require_setfit,
        ),
    )
}
