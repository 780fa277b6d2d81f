"""A search of settings: a grid of values, a trial for each combination, and the run of the one that is best on dev rows."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._documents import read_object
from .._files import to_json, write_json
from .._types import SoftPromptError, announce
from ..models.hub import RESULT_FILE
from ..training import RunOptions, RunResult, train
from ..training.metric import Metric
from ..training.output.folder import LOCK, check_free, only_run, unwritable
from ..training.plan import plan
from ..training.prepare import READING, read_task
from .cell import limited
from .executors import Executor, InProcess, ProcessPool
from .records import check_score, read_lines
from .runner import Watcher, check_one_process, run_jobs
from .space import Chosen, Everything, Grid, Space, words
from .trials import LINES, TRIAL_WORK, TRIALS, Trial, score_of

SEARCH = "search.json"  # in the folder of the trials: the options that they share


def search_settings(
    options: RunOptions,
    grid: Grid,
    resume: bool = False,
    executor: Executor | None = None,
    watcher: Watcher | None = None,
    metric: Metric | None = None,
    count: int | None = None,
) -> RunResult:
    """Train once with each combination of values, and leave the run of the one that is best on the dev rows.

    The best is that with the best ``metric_for_best_model``, of equal ones that with the lower dev loss, and then the first. Only its
    test rows are scored, after it was chosen. ``options.output_dir`` is then as if it had been trained alone, with ``trials`` in
    ``result.json``: setting, dev score, dev loss, status, seconds and folder of each. The trials lie in ``trials/``.

    Args:
        options: of every trial; see `RunOptions`.
        grid: key of a run, a method or TrainingArguments -> the values to try. The product is searched; with ``count`` there may be a
            `Range` in the place of values.
        resume: go on with a search that was stopped: finished trials stay, failed ones are tried again.
        executor: where trials run; in this process by default.
        watcher: told of every trial.
        count: number of trials that Optuna (extra ``optuna``) chooses one after the other; None tries every combination.
        metric: of the user's; see `softprompt.train`. A pool sends it to its processes, so it must be a function of a module.

    Returns:
        The best run, as `softprompt.train` returns it.

    Raises:
        SoftPromptError: a key or a value cannot be searched, the folder holds something else, or every trial failed.
    """
    folder, executor = Path(options.output_dir), executor or InProcess()
    space: Space = Everything(options, grid, metric) if count is None else Chosen(options, grid, metric, count)
    _check_processes(executor, metric)
    if not resume:
        check_free(folder)
    with only_run(folder / TRIALS):
        lines = _run(space, _shared(options, grid), folder, resume, executor, watcher)
        best = _choose(lines)
        with limited(executor.threads):
            return _take(space.trials[best], lines, best, folder)


def _check_processes(executor: Executor, metric: Metric | None) -> None:
    check_one_process()
    if isinstance(executor, ProcessPool) and metric is not None:
        try:
            pickle.dumps(metric)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise SoftPromptError(
                f"metric: it cannot be sent to the processes of a pool ({error}); define it as a function of a module, or search in one process."
            ) from error


def _shared(options: RunOptions, grid: Grid) -> dict[str, Any]:
    flat = {key: value for key, value in options.to_flat().items() if key != "output_dir" and key not in grid}
    shared: dict[str, Any] = json.loads(to_json(flat, default=str))
    return shared


def _run(
    space: Space, shared: dict[str, Any], folder: Path, resume: bool, executor: Executor, watcher: Watcher | None
) -> list[dict[str, Any]]:
    """Run the trials that have not come to their end yet; the newest line of each, in their order."""
    place = folder / TRIALS
    known = _known(place) if resume else {}
    asked = _check_same(folder, shared) if resume else []
    count = space.begin(known, asked)

    def note() -> None:
        write_json(place / SEARCH, {"options": shared, "asked": [trial.setting for trial in space.trials]})

    if not any(line["status"] == "done" for line in known.values()):
        check_rows(space.examples)
        _check_first(space.examples, resume)
    note()
    there = [known[trial.folder.name] for trial in space.trials if trial.folder.name in known]
    done = [line for line in there if line["status"] == "done"]
    telling = _Telling(space, watcher, done)
    telling.begin(str(folder), count, Counter({"done": len(done)}) if done else Counter())
    if count:
        run_jobs(space.todo(note), place / LINES, executor, telling, TRIAL_WORK)
    lines = _known(place)
    return [lines[trial.folder.name] for trial in space.trials]


@dataclass(frozen=True)
class _Telling:
    """A watcher that lets the space know what came of a trial, before it is asked for the next one, and ranks it among those that are done."""

    space: Space
    watcher: Watcher | None
    done: list[dict[str, Any]]

    def begin(self, suite: str, todo: int, skipped: Counter[str]) -> None:
        if self.watcher is not None:
            self.watcher.begin(suite, todo, skipped)

    def started(self, job: Any) -> None:
        if self.watcher is not None:
            self.watcher.started(job)

    def ended(self, line: dict[str, Any]) -> None:
        self.space.heard(line)
        rank = None
        if line["status"] == "done":
            rank = 1 + sum(not _beats(line, other) for other in self.done if other["metric"] == line["metric"])
            self.done.append(line)
        if self.watcher is not None:
            self.watcher.ended({**line, "rank": rank})


def _beats(line: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a finished trial is better on the dev rows than another one that was scored by the same measure."""
    return score_of(line).beats(score_of(other), line["greater_is_better"])


def _known(place: Path) -> dict[str, dict[str, Any]]:
    """The newest line of each trial by its name."""

    def key_of(line: dict[str, Any]) -> str:
        return str(line["name"])

    def check(line: dict[str, Any]) -> None:
        key_of(line)
        check_score(line, "dev")

    lines = read_lines(place / LINES, check, "a trial as softprompt train --search writes it")
    return {key_of(line): line for line in lines}


def _check_same(folder: Path, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings that a stopped search has tried; a folder that holds another search, or a run of its own, is refused."""
    path = folder / TRIALS / SEARCH
    if not path.is_file():
        others = [entry for entry in folder.iterdir() if entry.name not in (TRIALS, LOCK)]
        if others:
            raise SoftPromptError(
                f"--resume: {folder} holds {others[0].name}, but no search; resume that run without --search, or give another folder."
            )
        return []
    document = read_object(path, "record of a search", "it says what is searched there, so give another folder")
    before = document.get("options", {})
    changed = sorted(key for key in before.keys() | shared.keys() if before.get(key) != shared.get(key))
    if changed:
        detail = ", ".join(f"{key}: {before.get(key)!r} then, {shared.get(key)!r} now" for key in changed)
        raise SoftPromptError(
            f"--resume: {folder} holds a search with other options ({detail}); use the same options or another folder."
        )
    return list(document.get("asked", []))


def check_rows(trials: Sequence[Trial]) -> None:
    """Refuse a search whose trials would be compared on different dev rows."""
    keys = [key for key in trials[0].setting if key in ("data", "shots", "seed", *READING)]
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
    measures = sorted({lines[number]["metric"] for number in done})
    if len(measures) > 1:
        raise SoftPromptError(
            f"the trials were scored by different measures ({', '.join(measures)}); set metric_for_best_model for all of them."
        )
    best = done[0]
    for number in done[1:]:
        if _beats(lines[number], lines[best]):
            best = number
    return best


def _take(trial: Trial, lines: Sequence[dict[str, Any]], best: int, folder: Path) -> RunResult:
    """Make ``folder`` the run of a trial, score its test rows, and write down what was tried."""
    line = lines[best]
    announce(f"{words(trial.setting)} is kept", f"dev {line['metric']} {line['dev']:.4f}, of {len(lines)} trials")
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
    write_json(folder / RESULT_FILE, result.document)
    return result
