"""The builder of each method in the catalogue."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, get_type_hints

from peft import PeftConfig

from ..catalog import CATALOG, find_entry
from ..tuner import SoftPromptConfig

# Config fields that the builder, the backbone or the run fills in
_PEFTS = {
    "peft_type",
    "auto_mapping",
    "task_type",
    "inference_mode",
    "base_model_name_or_path",
    "peft_version",
    "revision",
}
_OURS = _PEFTS | {"prompt", "placement", "initialized", "hidden_size", "num_layers", "backbone_type", "target_modules"}


@dataclass(frozen=True)
class Method:
    """A named builder.

    Attributes:
        build: makes a `PeftConfig` from hyper-parameters.
        paper, learning_rate: see `softprompt.catalog.Entry`.
        summary: the first line of the builder's docstring.
        parameters: names and defaults of its own hyper-parameters.
    """

    name: str
    build: Callable[..., PeftConfig]
    paper: str
    summary: str
    parameters: dict[str, Any]
    learning_rate: float | None = None

    @property
    def hints(self) -> dict[str, Any]:
        """Every keyword that the builder takes, with its type.

        These are its own hyper-parameters and the fields of its config that no run decides.
        """
        config = inspect.signature(self.build, eval_str=True).return_annotation
        decided = _OURS if issubclass(config, SoftPromptConfig) else _PEFTS
        signature = inspect.signature(self.build, eval_str=True).parameters
        fields_of = get_type_hints(config)
        taken = {f.name: fields_of[f.name] for f in fields(config) if f.name not in decided}
        return {**taken, **{name: signature[name].annotation for name in self.parameters}}

    @property
    def options(self) -> set[str]:
        """The names of the keywords in ``hints``."""
        return set(self.hints)


METHODS: dict[str, Method] = {
    entry.name: Method(
        entry.name,
        getattr(import_module(f".{entry.file}", __package__), entry.function),
        entry.paper,
        entry.summary,
        entry.parameters,
        entry.learning_rate,
    )
    for entry in CATALOG.values()
}


def find_method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        SoftPromptError: no method has this name; the message suggests the nearest.
    """
    return METHODS[find_entry(name).name]
