"""The settings of a run: flat keys, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from .._types import SoftPromptError, check_choice, did_you_mean
from ..methods import find_method
from ..tuner import PAIRINGS, POOLINGS
from .embedded import EMBEDDED
from .precision import AUTO

HEADS = ("pooled", "stock", "verbalizer")
HEAD_FITS = ("auto", "gradient", "probe")
TRACKS = ("mi", "topology", "accuracy")


@dataclass(frozen=True)
class RunOptions:
    """One training run.

    Three kinds of keys share one flat namespace: the fields below, the keywords of the method's builder (``method_options``)
    and the fields of `transformers.TrainingArguments` (``training``).

    Args:
        backbone: folder or hub name; "minilm" is the embedded sentence encoder.
        data: file, folder, hub name, or "messages" (embedded).
        method: a name of `softprompt.methods.METHODS`.
        output_dir: where everything goes.
        shots: rows per class, drawn with ``seed`` (completions and rows of tagged words are one class); None trains on all.
        seed: of data sampling, initial prompt, and training.
        head: classification head: "pooled" (pooling plus linear), "stock" (AutoModelForSequenceClassification) or
            "verbalizer" (masked language model with label words). Tagged words take AutoModelForTokenClassification.
        pooling: "mean", "cls" or "last"; "auto" is what a sentence encoder's files say (of a folder, or of a hub name), else "last" in
            a causal stack and "mean" in an encoder.
        pairs: how a pooled head sees rows of two texts: "joined" in one input, or "apart", which compares the states of two;
            "auto" is "apart" on sentence encoders, where nothing else of the run reads states of single inputs.
        head_init: "probe" (logistic regression on frozen features) or "random".
        head_learning_rate: of the head; None means 1e-3.
        head_fit: how a pooled head learns, "gradient" (with the prompt) or "probe" (logistic regression on the prompted states
            of the training rows, anew before each evaluation); "auto" is "probe" with the objective "contrastive".
        template, label_words: of the verbalizer.
        max_length: tokens per row.
        dtype: of the backbone, "float32", "bfloat16", "float16", or "auto": bfloat16 where the hardware is fast at it (CUDA
            from Ampere on, CPUs with AMX-BF16 or AVX512-BF16), else float32. Prompts and heads stay float32.
        backbone_dropout: keep the frozen backbone's dropout on in training; off is faster and trains few vectors better.
        early_stopping_patience: evaluations without a better dev score before training stops; None never stops early.
        search_epochs: epochs of the search of layers, on half of the rows; None means as many as training takes.
        track: what to record over training, several joined by commas: "mi" notes after each evaluation how much the prompt tells the
            head and changes the representation (lower bounds of the mutual information, in nats), "accuracy" the accuracy on
            the training rows (classification only), "topology" records the prompt's persistent homology after each
            epoch to topology.jsonl.gz; "all" is everything that the rows allow.
        cache_below: "memory" or "disk" keeps the states of all training and dev tokens at the prompt's first layer, so that the
            layers below it run once and not at every step; only for a prompt that enters above layer 0, such as layers=[3, 4].
        cache_below_limit: MiB that these states may take.
        text_column, text_pair_column, label_column, prompt_column, completion_column: names in the data.
        tokens_column, tags_column: names in the data, of the words of a row and of their tags: lists, so not in csv or tsv.
        class_names: label or tag names by index, where the data has none.
        dev_fraction: share of training rows that becomes the dev set where the data has none.
        train_file, dev_file, test_file: files inside a folder with other names.
        hub_config: configuration of a hub data set.
        blank_rows: "refuse" rows without text, label or completion, or "drop" them; their number is announced.
        test_limit: test rows used, each class in proportion and the same ones in every run; None means all (generation is slow).
    """

    method: str = "ept"
    backbone: str = EMBEDDED
    data: str = "messages"
    output_dir: str = "output"
    shots: int | None = None
    seed: int = 42
    head: str = "pooled"
    pooling: str = "auto"
    pairs: str = "auto"
    head_init: str = "probe"
    head_learning_rate: float | None = None
    head_fit: str = "auto"
    template: str | None = None
    label_words: dict[str, Any] | None = None
    max_length: int = 128
    dtype: str = AUTO
    backbone_dropout: bool = False
    early_stopping_patience: int | None = None
    search_epochs: int | None = None
    track: str = "none"
    cache_below: str = "none"
    cache_below_limit: int = 2048
    text_column: str = "text"
    text_pair_column: str = "text_pair"
    label_column: str = "label"
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    tokens_column: str = "tokens"
    tags_column: str = "tags"
    class_names: list[str] | None = None
    dev_fraction: float = 0.1
    train_file: str | None = None
    dev_file: str | None = None
    test_file: str | None = None
    hub_config: str | None = None
    blank_rows: str = "refuse"
    test_limit: int | None = None
    method_options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> RunOptions:
        """Sort flat keys into fields, builder keywords and training arguments.

        Raises:
            SoftPromptError: an unknown key (the nearest valid one is named), or a value of the wrong type.
        """
        own = {f.name for f in fields(cls)} - {"method_options", "training"}
        method = find_method(str(flat.get("method", cls.method)))
        trainer = {f.name for f in fields(TrainingArguments)}
        values: dict[str, Any] = {"method_options": {}, "training": {}}
        for key, value in flat.items():
            if key in own:
                values[key] = value
            elif key in method.options:
                values["method_options"][key] = value
            elif key in trainer:
                values["training"][key] = value
            else:
                raise SoftPromptError(
                    f"unknown key {key!r}: expected an option of the run, of method {method.name!r} or of TrainingArguments.{did_you_mean(key, own | method.options | trainer)}"
                )
        return cls(**values)._checked()

    def to_flat(self) -> dict[str, Any]:
        """The flat form, without keys that stand at their default."""
        named = asdict(self)
        extra = {**named.pop("method_options"), **named.pop("training")}
        defaults = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        return {
            **{k: v for k, v in named.items() if k in ("method", "backbone", "data", "seed") or v != defaults.get(k)},
            **extra,
        }

    def tracks(self, what: str) -> bool:
        """Whether ``what`` of `TRACKS` is recorded."""
        return self.track == "all" or what in self._tracks()

    def _tracks(self) -> list[str]:
        return [name.strip() for name in str(self.track).split(",")]

    def _checked(self) -> RunOptions:
        check_choice("head", self.head, HEADS)
        check_choice("pooling", self.pooling, ("auto", *POOLINGS))
        check_choice("pairs", self.pairs, ("auto", *PAIRINGS))
        for name in self._tracks():
            check_choice("track", name, ("none", *TRACKS, "all") if name == self.track else TRACKS)
        check_choice("cache_below", self.cache_below, ("none", "memory", "disk"))
        check_choice("head_fit", self.head_fit, HEAD_FITS)
        check_choice("head_init", self.head_init, ("probe", "random"))
        check_choice("dtype", self.dtype, (AUTO, "float32", "bfloat16", "float16"))
        for key, least in (
            ("shots", 1),
            ("max_length", 2),
            ("early_stopping_patience", 1),
            ("search_epochs", 1),
            ("test_limit", 1),
            ("cache_below_limit", 1),
        ):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise SoftPromptError(f"{key}: expected a whole number of at least {least}, got {value!r}.")
        if not isinstance(self.seed, int):
            raise SoftPromptError(f"seed: expected a whole number, got {self.seed!r}.")
        if not 0 < self.dev_fraction < 1:
            raise SoftPromptError(f"dev_fraction: expected a number between 0 and 1, got {self.dev_fraction!r}.")
        for key, value in self.training.items():
            if key in ("learning_rate", "num_train_epochs") and (isinstance(value, (bool, str)) or value <= 0):
                raise SoftPromptError(f"{key}: expected a positive number, got {value!r}.")
        if self.head == "verbalizer" and (not self.template or not self.label_words):
            raise SoftPromptError(
                "head='verbalizer' needs template (like \"{text} It was {mask}.\") and label_words (class name to word)."
            )
        return self


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a flat ``run.yaml``.

    Raises:
        SoftPromptError: no such file, not YAML, or not a mapping of keys to values.
    """
    path = Path(path)
    if not path.is_file():
        raise SoftPromptError(f"--config {str(path)!r}: no such file.")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SoftPromptError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise SoftPromptError(f"{path}: expected flat 'key: value' lines, got {type(document).__name__}.")
    return _number(document)


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse ``key=value``; the value is read as YAML, and 1e-3 is a number.

    Raises:
        SoftPromptError: no '=' or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SoftPromptError(f"--set {text!r}: expected key=value.")
    try:
        return key.strip(), _number(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise SoftPromptError(
            f"--set {text!r}: the value is not valid YAML ({' '.join(str(error).split())})."
        ) from error


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-3 for a word; people do not."""
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value
