"""What a run's folder holds for a report, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor

from .._documents import read_object
from .._types import SoftPromptError
from ..data import load_rows
from ..models import TaskCard
from ..search import read_gates
from ..watch import STATES, TOPOLOGY, read_states, read_topology
from .look import RESULT, look

GATES = "search/gates.jsonl"
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """One run: what it was, how it went, and what is missing.

    Attributes:
        name: short, and unlike the names of the other runs of a report.
        folder: of the run.
        facts: task, method, backbone, seed, dev, test, parameters, steps, seconds; None where the run does not say.
        curves: pairs (step, value) of everything that was logged, by its name in the log.
        records: of `softprompt.watch.read_topology`.
        gates: of `softprompt.search.read_gates`.
        search: layers, scores and gates of the search, as ``result.json`` has them.
        mechanism: whether the parts of the method acted.
        states: of `softprompt.watch.read_states`.
        classes: names of the classes, in the order of their numbers.
        seen: what `softprompt.look` says of the prompt; None where there is none to look at.
        missing: a sentence for each part that is not there, and why.
    """

    name: str
    folder: Path
    facts: dict[str, Any]
    curves: dict[str, Curve]
    records: list[dict[str, Any]] = field(default_factory=list)
    gates: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] = field(default_factory=dict)
    mechanism: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    seen: dict[str, Any] | None = None
    missing: list[str] = field(default_factory=list)


def read_runs(folders: Sequence[str | Path], backbone: str | None = None, data: str | Path | None = None) -> list[Run]:
    """Read the runs in ``folders``, in their order; what each virtual token is worth is measured on the rows of ``data``.

    Raises:
        SoftPromptError: a folder is not there, or no run has written it.
    """
    paths = [Path(folder) for folder in folders]
    found = [_read(path, name, backbone, data) for path, name in zip(paths, _short_names(paths), strict=True)]
    return found


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(of[-count:]) for of in parts]
        if len(set(names)) == len(names):
            return names
    raise SoftPromptError(f"expected different folders, got one of them twice: {', '.join(map(str, paths))}.")


def _read(folder: Path, name: str, backbone: str | None, data: str | Path | None) -> Run:
    if not folder.is_dir():
        raise SoftPromptError(f"{folder}: expected the folder of a run, as softprompt train writes it; there is none.")
    missing: list[str] = []
    if (folder / RESULT).is_file():
        document = read_object(folder / RESULT, "result of a run")
        info, history = _part(document, "train_info"), _part(document, "train_info").get("metrics") or []
    else:
        document, info = {}, {}
        history, at = _history_of_checkpoints(folder)
        if at is None:
            raise SoftPromptError(
                f"{folder}: expected {RESULT} or checkpoints, as softprompt train writes them; there are neither."
            )
        missing.append(f"The run did not end: there is no {RESULT}. What is shown comes from checkpoint {at}.")
    records, gates = read_topology(folder / TOPOLOGY), []
    if not records:
        missing.append("No structural evolution: the run did not record it (track=topology does).")
    elif len(records) == 1:
        missing.append("The structural evolution has one step only.")
    if (folder / GATES).is_file():
        gates = read_gates(folder / GATES)
    seen = _seen(folder, backbone, data, missing)
    config, seen_data = _part(document, "run_info").get("train_config") or {}, _part(document, "meta_info")
    facts = {
        "task": (seen_data.get("dataset_info") or {}).get("source") or config.get("data"),
        "method": config.get("method"),
        "backbone": config.get("backbone"),
        "seed": config.get("seed"),
        "shots": config.get("shots"),
        "dev": info.get("dev accuracy"),
        "test": info.get("test accuracy"),
        "parameters": info.get("num_trainable_params"),
        "steps": info.get("train_steps"),
        "seconds": info.get("train_time"),
        "chosen step": info.get("best_checkpoint_step"),
        "probe": (info.get("probe") or {}).get("test"),
    }
    return Run(
        name,
        folder,
        facts,
        _curves(history),
        records,
        gates,
        info.get("search") or {},
        info.get("mechanism") or (seen or {}).get("mechanism") or {},
        read_states(folder / STATES),
        list(map(str, (seen_data.get("dataset_info") or {}).get("label_names") or [])),
        seen,
        missing,
    )


def _seen(folder: Path, backbone: str | None, data: str | Path | None, missing: list[str]) -> dict[str, Any] | None:
    """Look at the prompt; what cannot be seen is added to ``missing``."""
    if data is not None:
        try:
            return look(folder, backbone, rows=_rows(folder, data))
        except SoftPromptError as error:
            missing.append(f"Not measured what the virtual tokens are worth: {error}")
    try:
        return look(folder, backbone)
    except SoftPromptError as error:
        missing.append(f"No look at the virtual tokens: {error}")
        return None


def _rows(folder: Path, data: str | Path) -> Dataset:
    """Labelled rows for the adapter in ``folder``, with the columns that it was trained on."""
    card = TaskCard.read(folder)
    return load_rows(data, label_names=card.label_names or None, kind=card.kind, **(card.columns or {}))


def _part(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _history_of_checkpoints(folder: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The log of the newest checkpoint, and its step; of a run that was killed nothing else is left."""
    states = {
        int(path.parent.name.rpartition("-")[2]): path
        for path in folder.glob("checkpoints/checkpoint-*/trainer_state.json")
        if path.parent.name.rpartition("-")[2].isdigit()
    }
    if not states:
        return [], None
    at = max(states)
    history = read_object(states[at], "trainer's state").get("log_history")
    return (history if isinstance(history, list) else []), at


_NOT_CURVES = {"step", "epoch", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


def _curves(history: list[dict[str, Any]]) -> dict[str, Curve]:
    """(step, value) by name. The last entry of a step counts; test rows, which are scored after the end, are left out."""
    found: dict[str, dict[int, float]] = {}
    evaluated: set[int] = set()
    for entry in history:
        step = entry.get("step")
        if not isinstance(step, int):
            continue
        if "eval_loss" in entry and (step in evaluated or (evaluated and step < max(evaluated))):
            continue  # the chosen checkpoint scored again: dev rows, then test rows
        if "eval_loss" in entry:
            evaluated.add(step)
        for key, value in entry.items():
            if (
                key not in _NOT_CURVES and isinstance(value, int | float) and not key.startswith(("train_", "total_"))
            ) or key == "train_accuracy":
                found.setdefault(key, {})[step] = float(value)
    return {key: sorted(points.items()) for key, points in found.items()}
