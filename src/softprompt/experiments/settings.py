"""A search of settings: a grid of values, a trial for each combination, and the run of the one that is best on dev rows."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._files import to_json, write_json
from .._types import SoftPromptError, announce
from ..training import RunOptions, RunResult, train
from ..training.folder import LOCK, RESULT, check_free, only_run, read_json, unwritable
from ..training.metric import Metric
from ..training.plan import plan
from ..training.prepare import read_task
from .cell import limited
from .executors import Executor, InProcess, ProcessPool
from .records import read_lines
from .runner import Watcher, run_jobs
from .trials import LINES, TRIAL_WORK, TRIALS, Trial, score_of

MOST = 1000  # trials of a search
SEARCH = "search.json"  # in the folder of the trials: the options that they share
LONGEST = 100  # characters of a folder's name
REFUSED = {
    "output_dir": "each trial has a folder of its own inside --output",
    "metric_for_best_model": "it is what the trials are compared by; set it for all of them with --set",
    "greater_is_better": "it says how the trials are compared; set it for all of them with --set",
}
OF_ROWS = {"data", "shots", "seed", "dev_fraction", "hub_config", "class_names", "blank_rows"}  # and columns and files


def search_settings(
    options: RunOptions,
    grid: Mapping[str, Sequence[Any]],
    resume: bool = False,
    executor: Executor | None = None,
    watcher: Watcher | None = None,
    metric: Metric | None = None,
) -> RunResult:
    """Train once with each combination of values, and leave the run of the one that is best on the dev rows.

    The best is that with the best ``metric_for_best_model``, of equal ones that with the lower dev loss, and then the first. Only its
    test rows are scored, after it was chosen. ``options.output_dir`` is then as if it had been trained alone, with ``trials`` in
    ``result.json``: setting, dev score, dev loss, status, seconds and folder of each. The trials lie in ``trials/``.

    Args:
        options: of every trial; see `RunOptions`.
        grid: key of a run, a method or TrainingArguments -> the values to try. The product is searched.
        resume: go on with a search that was stopped: finished trials stay, failed ones are tried again.
        executor: where trials run; in this process by default.
        watcher: told of every trial.
        metric: of the user's; see `softprompt.train`. A pool sends it to its processes, so it must be a function of a module.

    Returns:
        The best run, as `softprompt.train` returns it.

    Raises:
        SoftPromptError: a key or a value cannot be searched, the folder holds something else, or every trial failed.
    """
    trials, folder = trials_of(options, grid, metric), Path(options.output_dir)
    executor = executor or InProcess()
    _check_processes(executor, metric)
    if not resume:
        check_free(folder)
    with only_run(folder / TRIALS):
        lines = _run(trials, _shared(options, grid), folder, resume, executor, watcher)
        best = _choose(lines)
        with limited(executor.threads):
            return _take(trials[best], lines, best, folder)


def trials_of(options: RunOptions, grid: Mapping[str, Sequence[Any]], metric: Metric | None = None) -> list[Trial]:
    """The trials of a search, the values of the last key changing fastest; every combination is checked.

    Raises:
        SoftPromptError: as `search_settings`, for what can be known without reading rows.
    """
    if not grid:
        raise SoftPromptError("a search needs a key and its values, such as learning_rate=1e-3,3e-3,1e-2; got none.")
    for key, values in grid.items():
        _check_values(key, values)
    count = 1
    for values in grid.values():
        count *= len(values)
    if count > MOST:
        raise SoftPromptError(
            f"the search would have {count:,} trials ({' x '.join(str(len(values)) for values in grid.values())}): expected at most {MOST:,}; take fewer values."
        )
    base, seen, trials = options.to_flat(), set(), []
    for combination in itertools.product(*grid.values()):
        setting = dict(zip(grid, combination, strict=True))
        try:
            own = RunOptions.from_flat({**base, **setting})
        except SoftPromptError as error:
            raise SoftPromptError(f"trial {_words(setting)}: {error}") from error
        told = to_json(own.to_flat(), sort_keys=True, default=str)
        if told in seen:
            raise SoftPromptError(f"trial {_words(setting)} stands there twice; take one of its values out.")
        seen.add(told)
        place = Path(options.output_dir) / TRIALS / folder_name(setting)
        trials.append(Trial(setting, replace(own, output_dir=str(place)), metric))
    return trials


def folder_name(setting: Mapping[str, Any]) -> str:
    """The name of a trial's folder: its setting, with a few digits of a hash where a path cannot say it."""
    words = _words(setting)
    plain = re.sub(r"[^\w.,=+-]", "_", words)
    if plain == words and len(plain) <= LONGEST:
        return plain
    return f"{plain[:LONGEST]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def _words(setting: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in setting.items())


def _check_values(key: str, values: Sequence[Any]) -> None:
    if key in REFUSED:
        raise SoftPromptError(f"{key} cannot be searched: {REFUSED[key]}.")
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise SoftPromptError(f"{key}: expected a list of values to try, got {values!r:.100}.")
    if len(values) < 2:
        got = f"the one value {values[0]!r}" if values else "none"
        raise SoftPromptError(
            f"{key}: expected at least two values to search, got {got}; a value of every trial is set with --set."
        )


def _check_processes(executor: Executor, metric: Metric | None) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SoftPromptError(
            "a search runs its trials in processes of its own: expected one process, got a launcher's; start it without accelerate or torchrun, with --workers."
        )
    if isinstance(executor, ProcessPool) and metric is not None:
        try:
            pickle.dumps(metric)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise SoftPromptError(
                f"metric: it cannot be sent to the processes of a pool ({error}); define it as a function of a module, or search in one process."
            ) from error


def _shared(options: RunOptions, grid: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    flat = {key: value for key, value in options.to_flat().items() if key != "output_dir" and key not in grid}
    shared: dict[str, Any] = json.loads(to_json(flat, default=str))
    return shared


def _run(
    trials: Sequence[Trial],
    shared: dict[str, Any],
    folder: Path,
    resume: bool,
    executor: Executor,
    watcher: Watcher | None,
) -> list[dict[str, Any]]:
    """Run the trials that have not come to their end yet; the newest line of each, in their order."""
    place = folder / TRIALS
    known = _known(place) if resume else {}
    todo = [trial for trial in trials if known.get(trial.folder.name, {}).get("status") != "done"]
    if resume:
        _check_same(folder, shared)
    if len(todo) == len(trials):
        _check_rows(trials)
        _check_first(trials, resume)
    write_json(place / SEARCH, {"options": shared})
    if watcher is not None:
        skipped = Counter({"done": len(trials) - len(todo)}) if len(todo) < len(trials) else Counter()
        watcher.begin(str(folder), len(todo), skipped)
    if todo:
        run_jobs(todo, place / LINES, executor, watcher, TRIAL_WORK)
    lines = _known(place)
    return [lines[trial.folder.name] for trial in trials]


def _known(place: Path) -> dict[str, dict[str, Any]]:
    """The newest line of each trial by its name."""

    def key_of(line: dict[str, Any]) -> str:
        return str(line["name"])

    lines = read_lines(place / LINES, key_of, "a trial as softprompt train --search writes it")
    return {key_of(line): line for line in lines}


def _check_same(folder: Path, shared: dict[str, Any]) -> None:
    """Refuse to go on in a folder that holds a run of its own, or the search of another run."""
    path = folder / TRIALS / SEARCH
    if not path.is_file():
        others = [entry for entry in folder.iterdir() if entry.name not in (TRIALS, LOCK)]
        if others:
            raise SoftPromptError(
                f"--resume: {folder} holds {others[0].name}, but no search; resume that run without --search, or give another folder."
            )
        return
    before = read_json(path, "it says what is searched there, so give another folder").get("options", {})
    changed = sorted(key for key in before.keys() | shared.keys() if before.get(key) != shared.get(key))
    if changed:
        detail = ", ".join(f"{key}: {before.get(key)!r} then, {shared.get(key)!r} now" for key in changed)
        raise SoftPromptError(
            f"--resume: {folder} holds a search with other options ({detail}); use the same options or another folder."
        )


def _check_rows(trials: Sequence[Trial]) -> None:
    """Refuse a search whose trials would be compared on different dev rows."""
    keys = [key for key in trials[0].setting if key in OF_ROWS or key.endswith(("_column", "_file"))]
    first: Any = None
    seen = set()
    for trial in trials if keys else ():
        chosen = to_json([trial.setting[key] for key in keys], default=str)
        if chosen in seen:
            continue
        seen.add(chosen)
        task = read_task(trial.options)
        rows = None if task.dev is None else task.dev.to_list()
        first = first or (rows, task.label_names)
        if first != (rows, task.label_names):
            raise SoftPromptError(
                f"{', '.join(keys)}: the trials would be compared on different dev rows, so their scores say nothing of each other; take {keys[0]} out, or give all of them the same dev rows (dev_file)."
            )


def _check_first(trials: Sequence[Trial], resume: bool) -> None:
    """Check without computing that some trial can run; a mistake that all of them share is said once."""
    first: SoftPromptError | None = None
    for trial in trials:
        try:
            plan(trial.options, resume and trial.folder.exists(), trial.metric)
            return
        except SoftPromptError as error:
            first = first or error
    assert first is not None
    raise first


def _choose(lines: Sequence[dict[str, Any]]) -> int:
    """The number of the trial that is best on the dev rows.

    Raises:
        SoftPromptError: every trial failed, or they were scored by different measures.
    """
    done = [number for number, line in enumerate(lines) if line["status"] == "done"]
    if not done:
        errors = Counter(line["error"] for line in lines)
        (error, count), more = errors.most_common(1)[0], len(errors) - 1
        raise SoftPromptError(
            f"all {len(lines)} trials of the search failed, {count} of them so: {error}{f' ({more} other errors are in {TRIALS}/{LINES})' if more else ''}"
        )
    measures = {lines[number]["metric"]: lines[number]["greater_is_better"] for number in done}
    if len(measures) > 1:
        raise SoftPromptError(
            f"the trials were scored by different measures ({', '.join(measures)}); set metric_for_best_model for all of them."
        )
    (greater_is_better,) = measures.values()
    best = done[0]
    for number in done[1:]:
        if score_of(lines[number]).beats(score_of(lines[best]), greater_is_better):
            best = number
    return best


def _take(trial: Trial, lines: Sequence[dict[str, Any]], best: int, folder: Path) -> RunResult:
    """Make ``folder`` the run of a trial, score its test rows, and write down what was tried."""
    line = lines[best]
    announce(f"{_words(trial.setting)} is kept", f"dev {line['metric']} {line['dev']:.4f}, of {len(lines)} trials")
    try:
        for left in {entry.name for entry in folder.glob(f"{TRIALS}/*/*")} - {LOCK}:  # of another trial, chosen before
            stale = folder / left
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
        shutil.copytree(trial.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LOCK))
    except OSError as error:
        raise unwritable(folder, error) from error
    result = train(replace(trial.options, output_dir=str(folder)), resume=True, progress=False, metric=trial.metric)
    kept = ("setting", "status", "error", "metric", "dev", "dev_loss", "seconds", "folder")
    result.document["trials"] = [
        {**{key: line[key] for key in kept}, "chosen": number == best} for number, line in enumerate(lines)
    ]
    write_json(folder / RESULT, result.document)
    return result
