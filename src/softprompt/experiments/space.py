"""What a search of settings tries: every combination of values, or as many as Optuna is asked for."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from .._files import to_json
from .._types import SoftPromptError, announce
from ..training import RunOptions
from ..training.metric import Metric
from .sampler import Range, Sampler
from .trials import TRIALS, Trial

Grid = Mapping[str, Range | Sequence[Any]]
Lines = Mapping[str, dict[str, Any]]  # what is known of trials, by their names
MOST = 1000  # trials of a search
LONGEST = 100  # characters of a folder's name
REFUSED = {
    "output_dir": "each trial has a folder of its own inside --output",
    "metric_for_best_model": "it is what the trials are compared by; set it for all of them with --set",
    "greater_is_better": "it says how the trials are compared; set it for all of them with --set",
}


class Space(Protocol):
    """What a search goes through.

    Attributes:
        examples: trials by which the search is checked before it begins.
        trials: those that were chosen so far, in their order.
    """

    examples: list[Trial]
    trials: list[Trial]

    def begin(self, known: Lines, asked: Sequence[Mapping[str, Any]]) -> int:
        """Learn what an earlier process has left, and say how many trials there are to run."""

    def todo(self, note: Callable[[], None]) -> Iterator[Trial]:
        """The trials to run, each made when there is room for it; ``note`` writes down that one was chosen."""

    def heard(self, line: dict[str, Any]) -> None:
        """Learn what came of a trial."""


class Everything:
    """Every combination of the values."""

    def __init__(self, options: RunOptions, grid: Grid, metric: Metric | None = None):
        self.trials = self.examples = trials_of(options, grid, metric)
        self._todo = list(self.trials)

    def begin(self, known: Lines, asked: Sequence[Mapping[str, Any]]) -> int:
        self._todo = [trial for trial in self.trials if not _is_done(known, trial)]
        return len(self._todo)

    def todo(self, note: Callable[[], None]) -> Iterator[Trial]:
        return iter(self._todo)

    def heard(self, line: dict[str, Any]) -> None: ...


class Chosen:
    """So many trials as are asked for, each chosen by what came of those before.

    Raises:
        SoftPromptError: as `trials_of`; or Optuna is not installed.
    """

    def __init__(self, options: RunOptions, grid: Grid, metric: Metric | None, count: int):
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
            raise SoftPromptError(f"--search-trials: expected a whole number from 1 to {MOST:,}, got {count!r}.")
        self.options, self.grid, self.metric, self.count = options, grid, metric, count
        self.examples = _ends(options, grid, metric)
        self.trials: list[Trial] = []
        whole = {key for key, values in grid.items() if isinstance(values, Range) and _is_whole(self.examples, key)}
        self._whole, self._retried = whole, list[Trial]()
        self.sampler = Sampler(grid, whole, options.seed)

    def begin(self, known: Lines, asked: Sequence[Mapping[str, Any]]) -> int:
        if asked:  # else the same settings would be drawn first again
            self.sampler = Sampler(self.grid, self._whole, self.options.seed + len(asked))
        self.trials = [make_trial(self.options, setting, self.metric) for setting in asked]
        for trial in self.trials:
            if _is_done(known, trial):
                self.sampler.tell(trial.folder.name, trial.setting, known[trial.folder.name])
            else:
                self._retried.append(trial)
        return len(self._retried) + max(0, self.count - len(self.trials))

    def todo(self, note: Callable[[], None]) -> Iterator[Trial]:
        yield from self._retried
        while len(self.trials) < self.count:
            setting = self.sampler.ask({trial.folder.name: trial for trial in self.trials}, folder_name)
            if setting is None:
                announce(f"{len(self.trials)} trials, not {self.count}", "the ranges hold hardly any further setting")
                return
            trial = make_trial(self.options, setting, self.metric)
            self.trials.append(trial)
            note()
            yield trial

    def heard(self, line: dict[str, Any]) -> None:
        self.sampler.tell(line["name"], line["setting"], line)


def _ends(options: RunOptions, grid: Grid, metric: Metric | None) -> list[Trial]:
    """Trials at the ends of each range, and with each value of a list."""
    if not grid:
        return trials_of(options, {}, metric)  # which says what is missing
    several = {key: [values.low, values.high] if isinstance(values, Range) else values for key, values in grid.items()}
    for key, values in several.items():
        _check_values(key, values)
    first = {key: values[0] for key, values in several.items()}
    return [make_trial(options, {**first, key: value}, metric) for key, values in several.items() for value in values]


def _is_whole(trials: Sequence[Trial], key: str) -> bool:
    """Whether a key takes whole numbers."""
    return isinstance(trials[0].options.to_flat().get(key, trials[0].setting[key]), int)


def _is_done(known: Lines, trial: Trial) -> bool:
    return known.get(trial.folder.name, {}).get("status") == "done"


def trials_of(options: RunOptions, grid: Grid, metric: Metric | None = None) -> list[Trial]:
    """The trials of a search, the values of the last key changing fastest; every combination is checked.

    Raises:
        SoftPromptError: as `search_settings`, for what can be known without reading rows.
    """
    if not grid:
        raise SoftPromptError("a search needs a key and its values, such as learning_rate=1e-3,3e-3,1e-2; got none.")
    lists: dict[str, Sequence[Any]] = {}
    for key, values in grid.items():
        if isinstance(values, Range):
            raise SoftPromptError(
                f"{key}={values}: a range holds too many values to try all; say how many trials there are (--search-trials), or list values."
            )
        _check_values(key, values)
        lists[key] = values
    if (count := math.prod(map(len, lists.values()))) > MOST:
        raise SoftPromptError(
            f"the search would have {count:,} trials ({' x '.join(str(len(values)) for values in lists.values())}): expected at most {MOST:,}; take fewer values."
        )
    seen, trials = set(), []
    for combination in itertools.product(*lists.values()):
        trial = make_trial(options, dict(zip(grid, combination, strict=True)), metric)
        told = to_json({**trial.options.to_flat(), "output_dir": None}, sort_keys=True, default=str)
        if told in seen:
            raise SoftPromptError(f"trial {words(trial.setting)} stands there twice; take one of its values out.")
        seen.add(told)
        trials.append(trial)
    return trials


def make_trial(options: RunOptions, setting: Mapping[str, Any], metric: Metric | None = None) -> Trial:
    """The trial of a setting, in its folder; ``options`` are those of the search.

    Raises:
        SoftPromptError: a key or a value of the setting is none of a run.
    """
    try:
        own = RunOptions.from_flat({**options.to_flat(), **setting})
    except SoftPromptError as error:
        raise SoftPromptError(f"trial {words(setting)}: {error}") from error
    place = Path(options.output_dir) / TRIALS / folder_name(setting)
    return Trial(dict(setting), replace(own, output_dir=str(place)), metric)


def folder_name(setting: Mapping[str, Any]) -> str:
    """The name of a trial's folder: its setting, with a few digits of a hash where a path cannot say it."""
    told = words(setting)
    plain = re.sub(r"[^\w.,=+-]", "_", told)
    if plain == told and len(plain) <= LONGEST:
        return plain
    return f"{plain[:LONGEST]}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def words(setting: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in setting.items())


def _check_values(key: str, values: Any) -> None:
    if key in REFUSED:
        raise SoftPromptError(f"{key} cannot be searched: {REFUSED[key]}.")
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise SoftPromptError(f"{key}: expected a list of values to try, got {values!r:.100}.")
    if len(values) < 2:
        got = f"the one value {values[0]!r}" if values else "none"
        raise SoftPromptError(
            f"{key}: expected at least two values to search, got {got}; a value of every trial is set with --set."
        )
