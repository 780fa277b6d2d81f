"""A suite of experiments: read from YAML, checked, and taken apart into cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._types import SoftPromptError, did_you_mean
from ..data.find import EMBEDDED_DATA
from ..training import read_yaml
from ..training.prepare import READING
from .contenders import COMMON_KEYS, Contender, find_contender
from .draws import TEST, check_draws

SUITES = Path(__file__).parent / "suites"
ALL = "all"
DECIDED = ("data", "output_dir", "seed", "shots")  # by the suite, for every cell
TASK_KEYS = (  # what belongs to a task: its rows, which lie in a folder, and what its texts and classes need
    *("data", "shots", "rows", "test_limit"),
    *(key for key in READING if key != "hub_config"),
    *("max_length", "cut", "pairs", "marker", "class_weights", "template", "label_words", "label_pieces"),
)
BY_SEED = "by_seed"  # options of a method that differ from seed to seed


@dataclass(frozen=True)
class Cell:
    """One experiment: a method on a task with a seed.

    Attributes:
        suite: name of the suite.
        method: name of the method in the suite.
        task: name of the task in the suite.
        shots: rows per class, or None.
        rows: training rows in all, or None; where both are None all rows are used.
        seed: seed of the draw of rows, of the start, and of the training.
        options: flat options; a list of learning rates is a grid. ``options["method"]`` is a contender's name.
        source: folder, file or "messages": where the task's rows are.
        scored_on: "test", or "train" for training rows that were drawn neither to train nor to choose.
    """

    suite: str
    method: str
    task: str
    shots: int | None
    rows: int | None
    seed: int
    options: dict[str, Any]
    source: str
    scored_on: str = TEST

    @property
    def name(self) -> str:
        return name_of(vars(self))

    @property
    def key(self) -> str:
        """Return what makes a cell the same cell in another run of the suite."""
        return key_of(vars(self))

    @property
    def rates(self) -> list[float | None]:
        """Return the learning rates to try; [None] where the options decide."""
        given = self.options.get("learning_rate")
        return list(given) if isinstance(given, list) else [None]


def key_of(line: Mapping[str, Any]) -> str:
    """Return the key of a line of results, which is the key of its cell."""
    parts = [line[name] for name in ("method", "options", "task", "shots", "rows", "seed")]
    scored_on = line.get("scored_on", TEST)
    return json.dumps(parts if scored_on == TEST else [*parts, scored_on], sort_keys=True)


def selected(
    line: Mapping[str, Any], methods: Sequence[str] = (), only: Sequence[str] = (), skip: Sequence[str] = ()
) -> bool:
    """Say whether a cell, or its line of results, is meant.

    Args:
        line: a mapping with ``method``, ``task``, ``shots``, ``rows`` and ``seed``.
        methods: exact names; none means all.
        only: texts of which one must stand in "task, setting, seed, method"; none means all.
        skip: texts of which none may stand there.
    """
    if methods and line["method"] not in methods:
        return False
    name = name_of(line)
    return (not only or any(text in name for text in only)) and not any(text in name for text in skip)


def name_of(line: Mapping[str, Any]) -> str:
    """Name a cell in words: "task, setting, seed, method"."""
    amount = "all rows" if line["rows"] is None else f"{line['rows']} rows"
    setting = amount if line["shots"] is None else f"{line['shots']} shots"
    return f"{line['task']}, {setting}, seed {line['seed']}, {line['method']}"


Amount = tuple[int | None, int | None]  # (shots, rows); (None, None) means all training rows


@dataclass(frozen=True)
class Source:
    """Where a task's rows are, how they are read, and its own settings, in place of the suite's of the same kind (shots, rows)."""

    path: str
    options: dict[str, Any]
    settings: Sequence[Amount] = ()


@dataclass(frozen=True)
class Suite:
    """What a suite compares: methods x tasks x settings x seeds.

    Attributes:
        name: of the suite.
        tasks: by name.
        settings: of the tasks that have none of their own.
        seeds: of every setting.
        methods: flat options by name; a list under ``learning_rate`` is a grid, and ``by_seed`` holds further options for each
            seed.
        defaults: flat options; those of tasks win over them, and those of methods over both.
        scored_on: of every cell.
    """

    name: str
    tasks: dict[str, Source]
    settings: list[Amount]
    seeds: list[int]
    methods: dict[str, dict[str, Any]]
    defaults: dict[str, Any]
    scored_on: str = TEST

    def cells(self) -> list[Cell]:
        """List every cell, seed by seed, so that a suite that is stopped has compared all methods on some seeds."""
        return list(self._cells())

    def _cells(self) -> Iterator[Cell]:
        for shots, rows in dict.fromkeys(setting for task in self.tasks for setting in self._settings_of(task)):
            for seed in self.seeds:
                for task, source in self.tasks.items():
                    if (shots, rows) not in self._settings_of(task):
                        continue
                    for method, options in self.methods.items():
                        contender = find_contender(options["method"])
                        merged = {
                            **self.defaults,
                            **source.options,
                            **options,
                            **options.get(BY_SEED, {}).get(seed, {}),
                        }
                        own = {key: value for key, value in merged.items() if key in (*contender.keys, "method")}
                        yield Cell(self.name, method, task, shots, rows, seed, own, source.path, self.scored_on)

    def _settings_of(self, task: str) -> list[Amount]:
        """The settings of a task: its own, and the suite's of a kind of which it has none; shots come first."""
        own = self.tasks[task].settings
        kinds = {shots is None for shots, _ in own}
        both = [*own, *((shots, rows) for shots, rows in self.settings if (shots is None) not in kinds)]
        return sorted(both, key=lambda setting: setting[0] is None)


KEYS = {
    "name": "of the suite; without it the file's",
    "description": "for readers",
    "data": "folder of the tasks' folders, relative to the suite file",
    "tasks": "names of folders, or a mapping of names to options",
    "shots": "list of rows per class",
    "rows": "list of training rows in all; 'all' takes every row",
    "seeds": "list of whole numbers",
    "scored_on": "test (the default), or train: other training rows than those that are drawn",
    "defaults": "flat options of every run",
    "methods": "mapping of names to flat options",
    "learning_rates": "a grid: a list for every method, or lists by method",
    "unequal_budget": "allow grids of different lengths",
}


def shipped_suites() -> dict[str, Path]:
    """Find the suites that come with the package, by name."""
    return {path.stem: path for path in sorted(SUITES.glob("*.yaml"))}


def read_suite(
    source: str | Path,
    data: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
) -> Suite:
    """Read a suite file, or a shipped suite by name, and check every key, method and option.

    Args:
        source: path of a YAML file, or a name of `shipped_suites`.
        data: folder that holds the tasks' folders; wins over the file's ``data``.
        settings: further ``defaults``; they win over the file's.
        tasks: names of folders in place of the file's tasks; those that the file has keep its options.

    Raises:
        SoftPromptError: there is no such suite; a key, method or option is unknown; a folder is missing; or tuning budgets
            are unequal.
    """
    path = _find(source)
    document = read_yaml(path)
    for key in document:
        if key not in KEYS:
            raise SoftPromptError(
                f"{path.name}: unknown key {key!r}: expected one of {', '.join(KEYS)}.{did_you_mean(key, KEYS)}"
            )
    where = path.name
    folder = _data_folder(path, document.get("data"), data)
    defaults = {**_mapping(document.get("defaults"), f"{where}: defaults"), **(settings or {})}
    _check_defaults(defaults, where)
    _check_plain(document, where)
    methods = {
        name: _method(name, options, where)
        for name, options in _named(document.get("methods"), f"{where}: methods").items()
    }
    _add_grids(methods, document.get("learning_rates"), where)
    _check_budgets(methods, document.get("unequal_budget", False), where)
    known = _named(document.get("tasks"), f"{where}: tasks")
    chosen = {name: known.get(name, {}) for name in _named(list(tasks), f"{where}: tasks")} if tasks else known
    seeds = _whole_numbers(document.get("seeds"), f"{where}: seeds", least=0)
    for name, options in methods.items():
        if BY_SEED in options:
            _check_by_seed(name, options, seeds, where)
    scored_on = str(document.get("scored_on", TEST))
    suite = Suite(
        name=str(document.get("name") or path.stem),
        tasks={name: _task(name, options, folder, where) for name, options in chosen.items()},
        settings=_settings(document, where),
        seeds=seeds,
        methods=methods,
        defaults=defaults,
        scored_on=scored_on,
    )
    for task in suite.tasks:
        if not suite._settings_of(task):
            raise SoftPromptError(
                f"{where}: expected shots (rows per class), rows (in all, or 'all'), or both, of the suite or of task {task!r}; got neither."
            )
    check_draws(scored_on, [rows for task in suite.tasks for _, rows in suite._settings_of(task)], where)
    _check_options(suite, where)
    return suite


def _check_options(suite: Suite, where: str) -> None:
    """Check every method with the options that it has on some task."""
    seen = set()
    for cell in suite.cells():
        for rate in cell.rates:
            flat = cell.options if rate is None else {**cell.options, "learning_rate": rate}
            if (text := json.dumps([cell.method, flat], sort_keys=True)) in seen:
                continue
            seen.add(text)
            try:
                find_contender(cell.options["method"]).check(flat)
            except SoftPromptError as error:
                raise SoftPromptError(f"{where}: methods: {cell.method!r}: {error}") from error


# Reading -------------------------------------------------------------------------------------------------------------


def _find(source: str | Path) -> Path:
    shipped = shipped_suites()
    if Path(source).is_file():
        return Path(source)
    if str(source) in shipped:
        return shipped[str(source)]
    near = did_you_mean(str(source), [*shipped, *(p.name for p in Path(source).parent.glob("*.y*ml"))])
    raise SoftPromptError(
        f"suite {str(source)!r}: expected a YAML file or one of {', '.join(shipped)}; there is no such file.{near}"
    )


def _data_folder(path: Path, given: Any, flag: str | Path | None) -> Path | None:
    if flag is None and given is None:
        return None
    folder = Path(flag).expanduser() if flag is not None else path.parent / str(given)
    if not folder.is_dir():
        raise SoftPromptError(f"data {str(folder)!r}: expected a folder that holds one folder per task; there is none.")
    return folder


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise SoftPromptError(f"{where}: expected a mapping of keys to values, got {value!r}.")
    return dict(value)


def _named(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """Read a mapping of names to options, or a list of names."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if doubled := sorted({name for name in value if value.count(name) > 1}):
            raise SoftPromptError(f"{where}: {', '.join(doubled)} stands there twice.")
        value = dict.fromkeys(value)
    named = _mapping(value, where)
    if not named:
        raise SoftPromptError(f"{where}: expected at least one name, got none.")
    return {name: _mapping(options, f"{where}: {name}") for name, options in named.items()}


def _check_plain(value: Any, where: str) -> None:
    """Check that a suite is JSON: its options stand in every line of results."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SoftPromptError(f"{where}: expected words, numbers, lists and mappings only ({error}).") from error


def _whole_numbers(value: Any, where: str, least: int) -> list[int]:
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise SoftPromptError(f"{where}: expected a list of whole numbers from {least}, got {value!r}.")
    if not numbers or len(set(numbers)) < len(numbers):
        raise SoftPromptError(f"{where}: expected different numbers, at least one, got {value!r}.")
    return numbers


def _settings(document: dict[str, Any], where: str) -> list[Amount]:
    settings: list[Amount] = []
    if "shots" in document:
        settings += [(shots, None) for shots in _whole_numbers(document["shots"], f"{where}: shots", least=1)]
    if "rows" in document:
        counts = document["rows"] if isinstance(document["rows"], list) else [document["rows"]]
        numbers = [count for count in counts if count != ALL]
        if numbers or not counts:
            _whole_numbers(numbers, f"{where}: rows ('all', or numbers)", least=2)
        if counts.count(ALL) > 1:
            raise SoftPromptError(f"{where}: rows: 'all' stands there twice.")
        settings += [(None, None if count == ALL else count) for count in counts]
    return settings


def _task(name: str, options: dict[str, Any], folder: Path | None, where: str) -> Source:
    for key in options:
        if key not in TASK_KEYS:
            raise SoftPromptError(
                f"{where}: task {name!r}: unknown option {key!r}: expected one of {', '.join(TASK_KEYS)}; others belong under defaults or methods.{did_you_mean(key, TASK_KEYS)}"
            )
    own = dict(options)
    wanted = str(own.pop("data", name))
    settings = _settings({key: own.pop(key) for key in ("shots", "rows") if key in own}, f"{where}: task {name!r}")
    if wanted == EMBEDDED_DATA and "data" in options:
        return Source(EMBEDDED_DATA, own, settings)
    if folder is None:
        raise SoftPromptError(
            f"{where}: task {name!r} needs the folder that holds the tasks' folders; give --data DIR, or data in the suite."
        )
    path = folder / wanted
    if not path.exists():
        there = [p.name for p in folder.iterdir()]
        raise SoftPromptError(f"{where}: task {name!r}: {path} does not exist.{did_you_mean(wanted, there)}")
    return Source(str(path), own, settings)


def _check_defaults(defaults: dict[str, Any], where: str) -> None:
    keys = COMMON_KEYS - set(DECIDED) - {"method"}
    for key in defaults:
        if key in DECIDED or key == "method":
            raise SoftPromptError(f"{where}: defaults: {key!r} is decided by the suite for every cell; take it out.")
        if key == "learning_rate" and isinstance(defaults[key], list):
            raise SoftPromptError(f"{where}: defaults: a grid of learning rates belongs under learning_rates.")
        if key not in keys:
            raise SoftPromptError(
                f"{where}: defaults: unknown key {key!r}: expected an option of the run or of TrainingArguments; options of one method belong under methods.{did_you_mean(key, keys)}"
            )


def _method(name: str, options: dict[str, Any], where: str) -> dict[str, Any]:
    own = {"method": name, **options}
    try:
        contender = find_contender(str(own["method"]))
    except SoftPromptError as error:
        raise SoftPromptError(f"{where}: methods: {name!r}: {error}") from error
    _check_keys([key for key in options if key != BY_SEED], contender, f"{where}: methods: {name!r}")
    if isinstance(own.get("learning_rate"), list):
        _check_grid(name, own["learning_rate"], where)
    return own


def _check_keys(keys: Iterable[str], contender: Contender, where: str) -> None:
    for key in keys:
        if key in DECIDED:
            raise SoftPromptError(f"{where}: {key!r} is decided by the suite for every cell; take it out.")
        if key not in contender.keys:
            raise SoftPromptError(
                f"{where}: unknown option {key!r} of {contender.name!r}.{did_you_mean(key, contender.keys)}"
            )


def _check_by_seed(name: str, options: dict[str, Any], seeds: list[int], where: str) -> None:
    """Check that every seed of the suite has options, and that none of them changes the method or its tuning budget."""
    where = f"{where}: methods: {name!r}: {BY_SEED}"
    given = options[BY_SEED]
    if not isinstance(given, dict) or set(given) != set(seeds):
        got = f"got {sorted(given, key=str)}" if isinstance(given, dict) else f"got {given!r}"
        raise SoftPromptError(f"{where}: expected options for each of the seeds {seeds}, {got}.")
    options[BY_SEED] = {seed: _mapping(own, f"{where}: {seed}") for seed, own in given.items()}
    for seed, own in options[BY_SEED].items():
        for key in ("method", "learning_rate"):
            if key in own:
                raise SoftPromptError(
                    f"{where}: {seed}: {key!r} must be the same for every seed; put it beside {BY_SEED}."
                )
        _check_keys(own, find_contender(options["method"]), f"{where}: {seed}")


# Tuning budgets ------------------------------------------------------------------------------------------------------


def _check_grid(name: str, rates: list[Any], where: str) -> None:
    good = [isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0 for rate in rates]
    if not rates or not all(good) or len(set(rates)) < len(rates):
        raise SoftPromptError(
            f"{where}: learning rates of {name!r}: expected different positive numbers, at least one, got {rates!r}."
        )


def _add_grids(methods: dict[str, dict[str, Any]], grids: Any, where: str) -> None:
    """Put ``learning_rates`` into the options of the methods that have a rate."""
    if grids is None:
        return
    tuned = [name for name, options in methods.items() if find_contender(options["method"]).has_rate]
    if isinstance(grids, list):
        grids = dict.fromkeys(tuned, grids)
    for name, rates in _mapping(grids, f"{where}: learning_rates").items():
        if name not in methods:
            raise SoftPromptError(
                f"{where}: learning_rates: {name!r} is none of the methods: {', '.join(methods)}.{did_you_mean(name, methods)}"
            )
        if name not in tuned:
            raise SoftPromptError(f"{where}: learning_rates: {name!r} has no learning rate; take it out.")
        _check_grid(name, rates if isinstance(rates, list) else [rates], where)
        if isinstance(methods[name].get("learning_rate"), list):
            raise SoftPromptError(f"{where}: {name!r} has a grid under methods and under learning_rates; keep one.")
        methods[name]["learning_rate"] = rates if isinstance(rates, list) else [rates]


def _check_budgets(methods: dict[str, dict[str, Any]], unequal: Any, where: str) -> None:
    """Check that every method with a learning rate is trained equally often; one without a grid is trained once."""
    if not isinstance(unequal, bool):
        raise SoftPromptError(f"{where}: unequal_budget: expected true or false, got {unequal!r}.")
    trials = {}
    for name, options in methods.items():
        if find_contender(options["method"]).has_rate:
            rates = options.get("learning_rate")
            trials[name] = len(rates) if isinstance(rates, list) else 1
    if len(set(trials.values())) > 1 and not unequal:
        detail = ", ".join(f"{name} {count}" for name, count in trials.items())
        raise SoftPromptError(
            f"{where}: unequal tuning budgets (learning rates tried: {detail}); give every method as many, or set unequal_budget: true."
        )
