"""Objectives by name: how a config's plain entries become modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from .._types import SoftPromptError, did_you_mean
from ._base import Objective, ObjectiveSet
from .cloud import NormControl, PairControl
from .contrastive import SupervisedContrast
from .information import HeadInformation, LatentDivergence, RepresentationInformation
from .persistence import PersistenceObjective
from .ts_loss import TSLoss

OBJECTIVES: dict[str, type[Objective]] = {
    cls.name: cls
    for cls in (
        HeadInformation,
        RepresentationInformation,
        LatentDivergence,
        SupervisedContrast,
        TSLoss,
        PersistenceObjective,
        NormControl,
        PairControl,
    )
}
_BUILT = ("self", "critics", "hidden_size")


def objective(name: str, **fields: Any) -> dict[str, Any]:
    """An entry of ``SoftPromptConfig.objectives``: the name of an objective and its fields, checked.

    Raises:
        SoftPromptError: no such objective or field; the nearest is named.
    """
    if name not in OBJECTIVES:
        raise SoftPromptError(
            f"unknown objective {name!r}: expected one of {', '.join(OBJECTIVES)}.{did_you_mean(name, OBJECTIVES)}"
        )
    known = [field for field in inspect.signature(OBJECTIVES[name].__init__).parameters if field not in _BUILT]
    for field in fields:
        if field not in known:
            raise SoftPromptError(
                f"objective {name!r} has no field {field!r}: expected {', '.join(known)}.{did_you_mean(field, known)}"
            )
    return {"name": name, **fields}


def check_objectives(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check the entries of a config, as they come from code or from JSON."""
    checked = []
    for entry in entries:
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise SoftPromptError(
                f"objectives: expected entries such as softprompt.objective('head_information'), got {entry!r}."
            )
        checked.append(objective(**entry))
    if len(names := [entry["name"] for entry in checked]) != len(set(names)):
        raise SoftPromptError(f"objectives: each may stand once, got {', '.join(names)}.")
    return checked


def build_objectives(entries: Sequence[Mapping[str, Any]], hidden_size: int, seed: int | None = None) -> ObjectiveSet:
    """Make the modules; critics of one name are shared, and drawn from ``seed`` (None: torch's global generator)."""
    critics = nn.ModuleDict()

    def critic(name: str, make: Callable[[], nn.Module]) -> nn.Module:
        if name not in critics:
            critics[name] = make()
        return critics[name]

    made = []
    with nullcontext() if seed is None else torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        for entry in entries:
            fields = {key: value for key, value in entry.items() if key != "name"}
            build: Callable[..., Objective] = OBJECTIVES[entry["name"]]
            made.append(build(critics=critic, hidden_size=hidden_size, **fields))
        # low_cpu_mem_usage builds on meta; critics are not loaded with the adapter, so they are drawn
        if any(parameter.is_meta for parameter in critics.parameters()):
            critics.to_empty(device="cpu")
            for module in critics.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
    return ObjectiveSet(made, critics)
