"""Objectives by name: how a config's plain entries become objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from .._types import SoftPromptError, check_choice, did_you_mean
from ._base import Objective, ObjectiveSet
from .cloud import NormControl, PairControl
from .contrastive import SupervisedContrast
from .information import HeadInformation, LatentDivergence, RepresentationInformation
from .persistence import PersistenceObjective, Scale
from .shares import Balance
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


def objective(name: str, **fields: Any) -> dict[str, Any]:
    """Make an entry of ``SoftPromptConfig.objectives``: the name of an objective and its fields, checked.

    Raises:
        SoftPromptError: there is no such objective or field (the message names the nearest), or a field cannot have that value.
    """
    entry = _known(name, **fields)
    with torch.device("cpu"):  # low_cpu_mem_usage makes configs on meta, where no value can be looked at
        made = OBJECTIVES[name](**fields)
    return {**entry, **{field: getattr(made, field) for field in fields}}


def _known(name: str, **fields: Any) -> dict[str, Any]:
    """An entry whose name and fields there are; what the fields hold is not looked at."""
    check_choice("objective", name, OBJECTIVES)
    known = [field.name for field in dataclasses.fields(OBJECTIVES[name])]
    for field in fields:
        if field not in known:
            raise SoftPromptError(
                f"objective {name!r} has no field {field!r}: expected {', '.join(known)}.{did_you_mean(field, known)}"
            )
    given, usual = (
        fields.get("weight"),
        next(f.default for f in dataclasses.fields(OBJECTIVES[name]) if f.name == "weight"),
    )
    if fields.get("share") is not None and given not in (None, usual):
        raise SoftPromptError(
            f"objective {name!r} takes a weight or a share of the gradient, got weight={given!r} and share={fields['share']!r}; drop one of them."
        )
    return {"name": name, **fields}


def check_objectives(entries: Sequence[Mapping[str, Any]], trained: bool = True) -> list[dict[str, Any]]:
    """Check the entries of a config, as they come from code or from JSON.

    Where nothing is ``trained`` their values may be any: an adapter that was trained with them must load for ever.
    """
    checked = []
    for entry in entries:
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise SoftPromptError(
                f"objectives: expected entries such as softprompt.objective('head_information'), got {entry!r}."
            )
        checked.append((objective if trained else _known)(**entry))
    if len(names := [entry["name"] for entry in checked]) != len(set(names)):
        raise SoftPromptError(f"objectives: each may stand once, got {', '.join(names)}.")
    return checked


def build_objective(entry: Mapping[str, Any]) -> Objective:
    """Make the objective of one checked entry."""
    return OBJECTIVES[entry["name"]](**{key: value for key, value in entry.items() if key != "name"})


def build_objectives(
    entries: Sequence[Mapping[str, Any]], hidden_size: int, seed: int | None = None, **schedule: Any
) -> ObjectiveSet:
    """Make the objectives and their critics; critics are drawn from ``seed`` (None: torch's global generator).

    Args:
        entries: of a config, checked.
        hidden_size: H of the backbone.
        seed: of the critics.
        **schedule: ``share_every`` and ``first`` of the `ObjectiveSet`.
    """
    objectives = [build_objective(entry) for entry in entries]
    with nullcontext() if seed is None else torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        made = ObjectiveSet(objectives, hidden_size, **schedule)
        # low_cpu_mem_usage builds on meta; critics are not loaded with the adapter, so they are drawn
        if any(tensor.is_meta for tensor in made.state_dict().values()):
            made.to_empty(device="cpu")
            for module in made.modules():
                if isinstance(module, nn.Linear | Balance | Scale):
                    module.reset_parameters()
    return made
