"""The settings of a run: flat keys, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from peft import PeftConfig
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..._types import SoftPromptError, check_choice, did_you_mean
from ...data import CUTS, PIECES, as_text
from ...data.split import Draw
from ...methods import Method, find_method
from ...models.embedded import EMBEDDED
from ...models.precision import AUTO
from ...tuner import PAIRINGS, POOLINGS, SoftPromptConfig
from ...typed import conform
from ...watch import tracked
from .yaml_values import from_yaml

FEATURES = ("last", "auto")
CHOICES = {
    "head": ("pooled", "stock", "verbalizer"),
    "pooling": ("auto", *POOLINGS),
    "pairs": ("auto", *PAIRINGS),
    "cache_below": ("none", "memory", "disk"),
    "head_fit": ("auto", "gradient", "probe"),
    "head_init": ("probe", "random"),
    "label_pieces": PIECES,
    "cut": CUTS,
    "dtype": (AUTO, "float32", "bfloat16", "float16"),
}
# (least) or (None, above) of a number
AT_LEAST_0, AT_LEAST_1, POSITIVE = (0,), (1,), (None, 0)
BOUNDS: dict[str, tuple[Any, ...]] = {
    "max_length": (2,),
    **dict.fromkeys(
        ("seed", "head_learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "warmup_ratio", "data_seed"),
        AT_LEAST_0,
    ),
    **dict.fromkeys(
        (
            "shots",
            "early_stopping_patience",
            "search_epochs",
            "test_limit",
            "cache_below_limit",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "save_total_limit",
            "r",
            "bottleneck",
            "num_virtual_tokens",
        ),
        AT_LEAST_1,
    ),
    **dict.fromkeys(("learning_rate", "num_train_epochs", "eval_steps", "save_steps", "logging_steps"), POSITIVE),
}
BALANCED = "balanced"
TRACKERS = ("tensorboard", "wandb", "trackio")  # extras of the package
SHARES = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
ARGUMENTS: dict[str, Any] = get_type_hints(TrainingArguments)
ARGUMENTS = {f.name: ARGUMENTS[f.name] for f in fields(TrainingArguments)}
# keys of TrainingArguments that a run decides itself: when they are refused, and why
DECIDED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "label_names": (
        lambda value: True,
        "the names of the classes are class_names here, such as class_names=[neg, pos]",
    ),
    "remove_unused_columns": (lambda value: value is False, "softprompt train hands over the model's columns alone"),
    "resume_from_checkpoint": (lambda value: value is not None, "a run goes on with --resume (resume=True in Python)"),
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict"),
        (lambda value: value is False, "softprompt train trains, evaluates and tests; drop it"),
    ),
}


@dataclass(frozen=True)
class RunOptions:
    """One training run.

    Three kinds of keys share one flat namespace: the fields below, the keywords of the method's builder (``method_options``)
    and the fields of `transformers.TrainingArguments` (``training``).

    Args:
        backbone: folder or hub name; "minilm" is the embedded sentence encoder, "masked-lm" and "causal-lm" the embedded language models.
        data: file, folder, hub name, or "messages" (embedded); on the command line there is no default.
        method: a name of `softprompt.methods.METHODS`.
        output_dir: where everything goes.
        shots: rows per class, drawn with ``seed`` (completions and rows of tagged words are one class); None trains on all.
        seed: of data sampling, initial prompt, and training.
        head: classification head: "pooled" (pooling plus linear), "stock" (AutoModelForSequenceClassification) or
            "verbalizer" (a language model with label words). Tagged words take AutoModelForTokenClassification.
        pooling: "mean", "cls" or "last"; "auto" is what a sentence encoder's files say (of a folder, or of a hub name), else "last" in
            a causal stack and "mean" in an encoder.
        pairs: how a pooled head sees rows of two texts: "joined" in one input, or "apart", which compares the states of two;
            "auto" is "apart" on sentence encoders, where nothing else of the run reads states of single inputs.
        features: layers whose pooled states a pooled head reads: "last", a list such as [3, 4, 5, 6] (0 is what enters the first layer),
            or "auto", which chooses among a few sets of layers by leave-one-out on the training rows.
        head_init: "probe" (logistic regression on frozen features) or "random".
        head_learning_rate: of the head; None means 1e-3.
        head_fit: how a pooled head learns, "gradient" (with the prompt) or "probe" (logistic regression on the prompted states
            of the training rows, anew before each evaluation); "auto" is "probe" with the objective "contrastive".
        template, label_words: of the verbalizer.
        label_pieces: "one" refuses a label word that is several tokens, "mean" takes the mean of their logits at the mask.
        marker: a token of the tokenizer that texts do not need, such as "[unused1]", written into each text (or the template) where the
            prompt is to stand; None puts it in front of the text.
        max_length: tokens per row.
        cut: what a longer text loses under a "pooled" or "stock" head: "end", or "middle", which keeps a quarter of the tokens from its
            head and the rest from its tail (arXiv 1905.05583).
        dtype: of the backbone, "float32", "bfloat16", "float16", or "auto": bfloat16 where the hardware is fast at it (CUDA
            from Ampere on, CPUs with AMX-BF16 or AVX512-BF16), else float32. Prompts and heads stay float32.
        attn_implementation: of the backbone in training, as transformers names it ("eager", "sdpa", "flash_attention_2"); None is its
            own choice. In bfloat16 on a CPU without AMX "eager" may be the fastest: one to two thirds more steps in the same time.
        backbone_dropout: keep the frozen backbone's dropout on in training; off is faster and trains few vectors better.
        early_stopping_patience: evaluations without a better dev score before training stops; None never stops early. A tie is
            no better score, though of tied checkpoints the one with the lower dev loss, and then the later, is kept.
        score_last: score what the last step leaves on dev and test rows, too (``last`` in result.json), beside the chosen
            checkpoint; without the scores that generate text.
        search_epochs: epochs of the search of layers, on half of the rows; None means as many as training takes.
        track: what to record over training, several joined by commas: "mi" notes after each evaluation how far the prompt stands
            from text and prompted states from unprompted ones (lower bounds of divergences, in nats), "accuracy" the accuracy on
            the training rows (classification only), "states" what a pooled head reads of dev rows before and after training, "topology" records the prompt's persistent homology after each
            epoch to topology.jsonl.gz; "all" is everything that the rows allow.
        cache_below: "memory" or "disk" keeps the states of all training and dev tokens at the prompt's first layer, so that the
            layers below it run once and not at every step; only for a prompt that enters above layer 0, such as layers=[3, 4].
        cache_below_limit: MiB that these states may take.
        text_column, text_pair_column, label_column, prompt_column, completion_column: names in the data.
        tokens_column, tags_column: names in the data, of the words of a row and of their tags: lists, so not in csv or tsv.
        messages_column: name in the data, of a conversation: a list of {"role", "content"} that ends with the assistant's message.
        task_column: name in the data, of the task of a row: one run then trains a prompt for each task, each on its own rows, classes and
            splits, in mixed batches over one backbone (kinds "classification" and "completion"); None is one task.
        kind: of task: "classification", "multilabel" (a list of labels for each row), "regression" (a number), "completion", "tokens" or "chat";
            None is what the columns show, where numbers are names of classes.
        class_names: label or tag names by index, where the data has none.
        class_weights: of the classes in the training loss: "balanced", or weights by name, others 1; None weighs all alike. In a
            "multilabel" task they weigh the rows that have the class.
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
    features: str | list[int] = "last"
    head_init: str = "probe"
    head_learning_rate: float | None = None
    head_fit: str = "auto"
    template: str | None = None
    label_words: dict[str, Any] | None = None
    label_pieces: str = "one"
    marker: str | None = None
    max_length: int = 128
    cut: str = "end"
    dtype: str = AUTO
    attn_implementation: str | None = None
    backbone_dropout: bool = False
    early_stopping_patience: int | None = None
    score_last: bool = False
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
    messages_column: str = "messages"
    task_column: str | None = None
    kind: str | None = None
    class_names: list[str] | None = None
    class_weights: str | dict[str, float] | None = None
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
        own = cls.hints()
        method = find_method(str(flat.get("method", cls.method)))
        of_method = method.hints
        values: dict[str, Any] = {"method_options": {}, "training": {}}
        for key, value in flat.items():
            if key in CHOICES:
                values[key] = value
            elif key in own:
                values[key] = conform(key, _with_names(key, value), own[key], *BOUNDS.get(key, ()))
            elif key in of_method:
                values["method_options"][key] = conform(key, value, of_method[key], *BOUNDS.get(key, ()))
            elif key in ARGUMENTS:
                values["training"][key] = _argument(key, value)
            else:
                raise SoftPromptError(
                    f"unknown key {key!r}: expected an option of the run, of method {method.name!r} or of TrainingArguments.{did_you_mean(key, {*own, *of_method, *ARGUMENTS})}"
                )
        return cls(**values)._checked()

    @classmethod
    def hints(cls) -> dict[str, Any]:
        """The run's own keys, with their types."""
        hints = get_type_hints(cls)
        return {f.name: hints[f.name] for f in fields(cls) if f.name not in ("method_options", "training")}

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
        """Whether the watcher ``what`` records."""
        return what in tracked(str(self.track))

    def _checked(self) -> RunOptions:
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        tracked(str(self.track))
        if isinstance(self.features, str):
            check_choice("features", self.features, FEATURES)
        if isinstance(self.class_weights, str):
            check_choice("class_weights", self.class_weights, (BALANCED,))
        Draw(self.shots, self.seed, self.dev_fraction)  # which refuses what rows cannot be drawn by
        if self.head == "verbalizer" and (not self.template or not self.label_words):
            raise SoftPromptError(
                "head='verbalizer' needs template (like \"{text} It was {mask}.\") and label_words (class name to word)."
            )
        check_reports(self.training)
        self._check_method()
        return self

    def config(self) -> PeftConfig:
        """The method's config, with words in place of the classes that only the data knows."""
        given = dict(self.method_options)
        words = {"init_text": ["the", "classes"]} if given.get("init") == "labels" else {}
        return build_config(find_method(self.method), {**words, **given})

    def _check_method(self) -> None:
        """Build the method's config, so that what it refuses is refused before anything is loaded."""
        given, config = self.method_options, self.config()
        if not isinstance(config, SoftPromptConfig):
            if self.marker is not None:
                raise SoftPromptError(
                    f"marker={self.marker!r}: method {self.method!r} is PEFT's and places no prompt inside a text; leave marker out, or choose a method of softprompt."
                )
            return
        if "marker_token_id" in given:
            raise SoftPromptError(
                f"marker_token_id={given['marker_token_id']}: a run names the token itself, such as marker='[unused1]', so that it can be written into texts."
            )
        own = find_method(self.method).parameters
        idle = config.idle({key: given[key] for key in sorted(given.keys() - own.keys())})
        if idle:
            named = ", ".join(
                f"{key}={given[key]!r} (with {why}={getattr(config, why)!r})" for key, why in idle.items()
            )
            them = "it" if len(idle) == 1 else "them"
            raise SoftPromptError(
                f"{named}: a prompt of method {self.method!r} makes no use of {them} here; drop {them}, or choose another method."
            )


def build_config(method: Method, given: Mapping[str, Any]) -> PeftConfig:
    """The method's config.

    Raises:
        SoftPromptError: what the builder, or PEFT, refuses.
    """
    try:
        return method.build(**given)
    except SoftPromptError:
        raise
    except (TypeError, ValueError) as error:
        raise SoftPromptError(f"method {method.name!r}: {' '.join(str(error).split())}") from error


def check_reports(training: Mapping[str, Any]) -> None:
    """Refuse trackers whose package is missing, which the trainer would find out after all preparation."""
    asked = training.get("report_to") or []
    for name in [asked] if isinstance(asked, str) else asked:
        if name in ("none", "all"):
            continue
        check_choice("report_to", name, ["none", "all", *INTEGRATION_TO_CALLBACK])
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            how = f'run: pip install "softprompt[{name}]"' if name in TRACKERS else "install it"
            raise SoftPromptError(
                f"report_to={name}: its package is not installed ({' '.join(str(error).split())[:200]}); {how}, or set report_to=none."
            ) from error


def _with_names(key: str, value: Any) -> Any:
    """Class names as texts where YAML has read them as whole numbers."""
    if key == "class_names" and isinstance(value, list):
        return [as_text(name, key) for name in value]
    if key not in ("label_words", "class_weights") or not isinstance(value, dict):
        return value
    named = {as_text(name, key): of_class for name, of_class in value.items()}
    if len(named) < len(value):
        raise SoftPromptError(f"{key}: a class is there twice, as a number and as a text, in {value}; keep one.")
    return named


def _argument(key: str, value: Any) -> Any:
    """A field of TrainingArguments, of its type and inside its bounds."""
    if key in DECIDED and DECIDED[key][0](value):
        raise SoftPromptError(f"{key}={value!r}: {DECIDED[key][1]}.")
    if key == "max_steps" and value != -1:  # -1 is the trainer's own word for none
        return conform(key, value, int, least=1)
    if key in SHARES and not 0 <= conform(key, value, float) < 1:
        raise SoftPromptError(f"{key}: expected a number of at least 0 and below 1, got {value!r}.")
    if key == "fsdp":  # takes true, too, which its type does not say
        return value
    return conform(key, value, ARGUMENTS[key], *BOUNDS.get(key, ()))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a flat ``run.yaml``.

    Raises:
        SoftPromptError: no such file, not YAML, or not a mapping of keys to values.
    """
    path = Path(path)
    if not path.is_file():
        raise SoftPromptError(f"--config {str(path)!r}: no such file.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SoftPromptError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
    document = from_yaml(text, f"{path}:")
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise SoftPromptError(f"{path}: expected flat 'key: value' lines, got {type(document).__name__}.")
    return document


def to_yaml(options: RunOptions) -> str:
    """Every key with its value, defaults among them, as flat YAML: what `read_yaml` reads makes the same run."""
    own = {name: getattr(options, name) for name in RunOptions.hints()}
    method = {**find_method(options.method).parameters, **options.method_options}
    return yaml.safe_dump({**own, **method, **options.training}, sort_keys=False, allow_unicode=True)


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse ``key=value``; the value is read as YAML, and 1e-3 is a number.

    Raises:
        SoftPromptError: no '=' or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SoftPromptError(f"--set {text!r}: expected key=value.")
    if key.strip() == "marker" and value.strip()[:1] not in ("'", '"'):
        return "marker", value.strip() or None  # tokens such as [unused1] and ? mean something else in YAML
    return key.strip(), from_yaml(value, f"--set {text!r}: the value is")
