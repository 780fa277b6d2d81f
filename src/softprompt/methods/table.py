"""The builder of each method in the catalogue."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import astuple, fields
from functools import cached_property
from importlib import import_module
from typing import Any, get_type_hints

from peft import PeftConfig

from ..catalog import CATALOG, Entry, find_entry
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
_FOUND = {"hidden_size", "num_layers", "backbone_type", "embedding_sample"}
_OURS = _PEFTS | _FOUND | {"prompt", "placement", "initialized", "target_modules"}


class Method(Entry):
    """A method of the catalogue with its builder."""

    @cached_property
    def build(self) -> Callable[..., PeftConfig]:
        """Makes a `PeftConfig` from hyper-parameters."""
        builder: Callable[..., PeftConfig] = getattr(import_module(f".{self.file}", __package__), self.function)
        return builder

    @cached_property
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


METHODS: dict[str, Method] = {name: Method(*astuple(entry)) for name, entry in CATALOG.items()}


def find_method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        SoftPromptError: no method has this name; the message suggests the nearest.
    """
    return METHODS[find_entry(name).name]
