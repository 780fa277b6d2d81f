"""The keys of a run in words: name, type, default and meaning, read from where they are defined."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, dataclass, fields
from typing import Any

from transformers import TrainingArguments

from ...methods import find_method
from ...tuner import SoftPromptConfig
from ...typed import describe
from .options import ARGUMENTS, CHOICES, DECIDED, RunOptions

# what most runs touch
MAIN = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "warmup_steps",
    "lr_scheduler_type",
    "max_grad_norm",
    "label_smoothing_factor",
    "gradient_checkpointing",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_total_limit",
    "metric_for_best_model",
    "load_best_model_at_end",
    "report_to",
    "use_cpu",
    "dataloader_num_workers",
)


@dataclass(frozen=True)
class Key:
    """One key, in words."""

    name: str
    type: str
    default: str
    meaning: str


def run_keys() -> list[Key]:
    """The run's own keys."""
    meanings, defaults = documented(RunOptions.__doc__), {f.name: f.default for f in fields(RunOptions)}
    return [
        Key(
            name,
            f"one of {', '.join(CHOICES[name])}" if name in CHOICES else describe(hint),
            str(defaults[name]),
            meanings[name],
        )
        for name, hint in RunOptions.hints().items()
    ]


def method_keys(method: str) -> list[Key]:
    """The keywords of a method: the builder's own first, then the other fields of its config."""
    chosen = find_method(method)
    config = inspect.signature(chosen.build, eval_str=True).return_annotation
    meanings = documented(config.__doc__) | documented(inspect.getdoc(chosen.build))
    defaults = {f.name: f.default for f in fields(config)} | chosen.parameters
    own = [*chosen.parameters, *sorted(chosen.hints.keys() - chosen.parameters.keys())]
    if issubclass(config, SoftPromptConfig):
        built = chosen.build()
        own = [name for name in own if name in chosen.parameters or built.idle_by(name) not in ("prompt", "placement")]
    return [Key(name, describe(chosen.hints[name]), _default(defaults[name]), meanings.get(name, "")) for name in own]


def training_keys(every: bool = False) -> list[Key]:
    """The fields of TrainingArguments that a run takes; the main ones, or every one."""
    chosen = [name for name in ARGUMENTS if name not in DECIDED and name not in RunOptions.hints()] if every else MAIN
    known = {f.name: f for f in fields(TrainingArguments)}
    meanings = documented(TrainingArguments.__doc__)
    return [
        Key(name, describe(ARGUMENTS[name]), _default(known[name].default), meanings.get(name) or _help(known[name]))
        for name in chosen
    ]


def documented(docstring: str | None) -> dict[str, str]:
    """The meaning of each argument of a docstring in Google's form; one line may name several."""
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(docstring or "").splitlines():
        start = re.match(r"^ +([\w, *`]+?)(?: \([^:]*\))?: ?(.*)$", line)
        if start and all(re.fullmatch(r"\*{0,2}`?\w+`?", name.strip()) for name in start[1].split(",")):
            names = [name.strip().strip("`*") for name in start[1].split(",")]
            meanings |= dict.fromkeys(names, start[2].strip())
        elif line.startswith(" ") and names:
            meanings |= {name: f"{meanings[name]} {line.strip()}".strip() for name in names}
        else:
            names = []
    return meanings


def _help(field: Any) -> str:
    return " ".join(str(field.metadata.get("help", "")).split())


def _default(value: Any) -> str:
    return "" if value is MISSING else str(value)
