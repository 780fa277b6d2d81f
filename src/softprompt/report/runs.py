"""What a run's folder holds for a report, and what it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset
from peft.utils import CONFIG_NAME
from torch import Tensor

from .._documents import read_object
from .._types import SoftPromptError
from ..data import load_rows
from ..models import TaskCard, adapter_folder
from ..models.hub import GATES_FILE, OPTIONS_FILE, RESULT_FILE
from ..search import read_gates
from ..watch import STATES, TOPOLOGY, read_states, topology_records
from .evolution import evolution
from .look import look

LARGEST = 1e300  # a number beyond it cannot be drawn
T = TypeVar("T")
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """One run: what it was, how it went, and what is missing.

    Attributes:
        name: short, and unlike the names of the other runs of a report.
        folder: of the run.
        facts: task, method, backbone, seed, dev, test, parameters, steps, seconds; None where the run does not say.
        settings: flat options of the run.
        curves: pairs (step, value) of everything that was logged, by its name in the log.
        records: of `softprompt.watch.read_topology`.
        evolution: of `softprompt.report.evolution.evolution`; empty without records.
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
    settings: dict[str, Any]
    curves: dict[str, Curve]
    records: list[dict[str, Any]] = field(default_factory=list)
    evolution: dict[str, Any] = field(default_factory=dict)
    gates: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] = field(default_factory=dict)
    mechanism: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    seen: dict[str, Any] | None = None
    missing: list[str] = field(default_factory=list)


def read_runs(folders: Sequence[str | Path], backbone: str | None = None, data: str | Path | None = None) -> list[Run]:
    """Read the runs in ``folders`` (or of these names on the hub), in their order; what each virtual token is worth is measured on the rows of ``data``.

    Of several runs one that cannot be read is there with the reason alone.

    Raises:
        SoftPromptError: a folder is not there, or none of them is that of a run; or ``data`` is no file.
    """
    names = _short_names([Path(folder) for folder in folders])
    paths = [adapter_folder(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise SoftPromptError(
                f"{path}: expected the folder of a run, as softprompt train writes it; there is none."
            )
    if data is not None and not Path(data).is_file():
        raise SoftPromptError(
            f"--data {data}: expected a file of labelled rows, got no such file; name one, or leave it out."
        )
    found, refused = [], []
    for path, name in zip(paths, names, strict=True):
        try:
            found.append(_read(path, name, backbone, data))
        except SoftPromptError as error:
            refused.append(error)
            found.append(Run(name, path, {}, {}, {}, missing=[f"This run cannot be read: {error}"]))
    if len(refused) == len(found):
        raise refused[0]
    return found


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise SoftPromptError(f"expected different folders, got one of them twice: {', '.join(map(str, paths))}.")

    def ends(count: int) -> list[tuple[str, ...]]:
        return [own[-count:] for own in parts]

    counts = [next(n for n in range(1, len(own) + 1) if ends(n).count(own[-n:]) == 1) for own in parts]
    return ["/".join(own[-count:]) for own, count in zip(parts, counts, strict=True)]


def _read(folder: Path, name: str, backbone: str | None, data: str | Path | None) -> Run:
    missing: list[str] = []
    if (folder / RESULT_FILE).is_file():
        document, at = read_object(folder / RESULT_FILE, "result of a run"), None
        info = _part(document, "train_info")
        history = _during(info.get("metrics"), 2 if "test loss" in info else 1)
        if not history and not info.get("train_steps"):
            missing.append(f"{RESULT_FILE} has no log of a training: it is not as softprompt train writes it.")
    else:
        document, info, history, at = _without_result(folder, missing)
    config, about = _part(_part(document, "run_info"), "train_config"), _part(document, "meta_info")
    rows = _part(about, "dataset_info")
    records, drawn = _records(folder, at, missing)
    gates = _gates(folder, missing)
    states = _states(folder, missing)
    seen = _seen(folder, backbone, data, missing)
    search = _part(info, "search")
    chosen = info.get("metric_for_best_model")
    # what older runs, and those that are chosen by their loss, are known by
    score = str(chosen) if f"dev {chosen}" in info and chosen != "loss" else "accuracy"
    facts = {
        "task": rows.get("source") or config.get("data"),
        **{key: config.get(key) for key in ("method", "backbone", "seed", "shots", "num_virtual_tokens")},
        "rows": "/".join(str(_part(rows, "rows").get(split, "-")) for split in ("train", "dev", "test"))
        if rows
        else None,
        "score": score,
        "dev": _number(info.get(f"dev {score}")),
        "test": _number(info.get(f"test {score}")),
        "parameters": _number(info.get("num_trainable_params")),
        "learning_rate": _number(info.get("learning_rate")),
        "steps": _number(info.get("train_steps")) or at,
        "seconds": _sum(_number(info.get("train_time")), _number(search.get("seconds"))),
        "chosen step": _number(info.get("best_checkpoint_step")),
        "probe": _number(_part(info, "probe").get("test")),
        "zero_shot": _number(_part(info, "zero_shot").get("test")),
    }
    mechanism = _part(info, "mechanism") or (seen or {}).get("mechanism") or {}
    names = rows.get("label_names")
    classes = [str(name) for name in names] if isinstance(names, list) else []
    return Run(
        name,
        folder,
        facts,
        config,
        _curves(history),
        records,
        drawn,
        gates,
        search,
        mechanism,
        states,
        classes,
        seen,
        missing,
    )


def _without_result(
    folder: Path, missing: list[str]
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], int | None]:
    """What is left of a run that did not end: its settings, and the log of its newest whole checkpoint."""
    history, at = _history_of_checkpoints(folder)
    if at is None and not (folder / CONFIG_NAME).is_file():
        raise SoftPromptError(
            f"{folder}: expected {RESULT_FILE}, checkpoints or an adapter, as softprompt train writes them; there are none."
        )
    config: dict[str, Any] = {}
    if (folder / OPTIONS_FILE).is_file():
        config = _checked(missing, "settings", lambda: read_object(folder / OPTIONS_FILE, "record of settings"), config)
    left = "its adapter alone" if at is None else f"checkpoint {at}"
    missing.append(f"The run did not end: there is no {RESULT_FILE}. What is shown comes from {left}.")
    return {"run_info": {"train_config": config}}, {}, history, at


def _records(folder: Path, at: int | None, missing: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records of the structural evolution up to the step ``at`` of what is shown, and what is drawn of them."""
    found, whole = topology_records(folder / TOPOLOGY)
    drawn: dict[str, Any] = {}
    try:
        records = [record for record in found if at is None or record["step"] <= at]
        if records:
            drawn = evolution(records)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        records, whole = [], False
    if not whole:
        missing.append(f"{TOPOLOGY} is cut short or damaged; {len(records)} of its records can be read.")
    elif not records:
        missing.append("No structural evolution: none was recorded (--track topology does, of this library's prompts).")
    if len(records) == 1:
        missing.append("The structural evolution has one step only.")
    if records and records[-1]["prompt"].shape[1] == 1:
        missing.append("One virtual token for each layer has no structure: its barcode and diagram are empty.")
    return records, drawn


def _gates(folder: Path, missing: list[str]) -> list[dict[str, Any]]:
    if not (folder / GATES_FILE).is_file():
        return []
    nothing: list[dict[str, Any]] = []
    lines = _checked(missing, "gates of the search", lambda: read_gates(folder / GATES_FILE), nothing)
    count = len(lines[0]["gates"]) if lines and _is_gates(lines[0]) else 0
    whole = [line for line in lines if _is_gates(line) and len(line["gates"]) == count]
    if not whole or len(whole) < len(lines):
        missing.append(f"{GATES_FILE} is damaged; {len(whole)} of its lines can be read.")
    return whole


def _is_gates(line: object) -> bool:
    return (
        isinstance(line, dict)
        and isinstance(line.get("step"), int)
        and isinstance(line.get("gates"), list)
        and all(_number(gate) is not None for gate in line["gates"])
    )


def _states(folder: Path, missing: list[str]) -> dict[str, Tensor]:
    """States [N, H] and labels [N] of dev rows, where the file holds them."""
    nothing: dict[str, Tensor] = {}
    found = _checked(missing, "states of the rows", lambda: read_states(folder / STATES), nothing)
    if not found:
        return nothing
    labels, clouds = found.get("labels"), [found[key] for key in ("before", "after") if key in found]
    labelled = labels is not None and labels.ndim == 1 and len(labels) > 1
    if labels is not None and labelled and clouds and all(_is_finite_matrix(cloud, len(labels)) for cloud in clouds):
        return found
    missing.append(f"{STATES} does not hold finite states [N, H] and labels [N]; remove it.")
    return nothing


def _is_finite_matrix(cloud: Tensor, rows: int) -> bool:
    return cloud.ndim == 2 and len(cloud) == rows and cloud.shape[1] > 1 and bool(cloud.isfinite().all())


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


def _number(value: object) -> float | int | None:
    """A finite number, or nothing; JSON may hold more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < LARGEST else None


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _history_of_checkpoints(folder: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The log of the newest whole checkpoint, and its step; of a run that was killed nothing else is left."""
    states = {
        int(path.parent.name.rpartition("-")[2]): path
        for path in folder.glob("checkpoints/checkpoint-*/trainer_state.json")
        if path.parent.name.rpartition("-")[2].isdigit()
    }
    for at in sorted(states, reverse=True):
        try:
            history = read_object(states[at], "trainer's state").get("log_history")
        except SoftPromptError:
            continue  # the kill fell into its writing; an older one is whole
        return _entries(history), at
    return [], None


def _checked(missing: list[str], what: str, read: Callable[[], T], without: T) -> T:
    """What ``read`` gives; a file that it refuses is named in ``missing``."""
    try:
        return read()
    except (SoftPromptError, KeyError, TypeError, ValueError) as error:
        missing.append(f"No {what}: {error}")
        return without


def _entries(history: object) -> list[dict[str, Any]]:
    """The entries of a log that are what a trainer writes."""
    return [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []


def _during(history: object, scored: int) -> list[dict[str, Any]]:
    """The log up to where the chosen checkpoint was scored: on dev rows, and on test rows where there are some (``scored`` times)."""
    entries = _entries(history)
    evaluations = [i for i, entry in enumerate(entries) if "eval_loss" in entry]
    return entries[: evaluations[-scored]] if len(evaluations) >= scored else entries


_NOT_CURVES = {"step", "epoch", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
_NOT_CURVES |= {"num_input_tokens_seen", "train_runtime", "train_loss", "total_flos"}


def _curves(history: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """(step, value) by name; the last entry of a step counts."""
    found: dict[str, dict[int, float]] = {}
    for entry in history:
        step = entry.get("step")
        if not isinstance(step, int) or _number(step) is None:
            continue
        for key, value in entry.items():
            if key not in _NOT_CURVES and _number(value) is not None and not str(key).endswith("_per_second"):
                found.setdefault(str(key), {})[step] = float(value)
    return {key: sorted(points.items()) for key, points in found.items()}
