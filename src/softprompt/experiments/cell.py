"""Run one cell: draw its rows, try its learning rates, and describe what came out in one JSON line."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from sklearn.metrics import matthews_corrcoef
from threadpoolctl import threadpool_limits

from .._environment import environment
from .._types import SoftPromptError, announce
from ..methods import METHODS
from ..models.precision import AUTO, automatic_dtype
from .choice import DevScore
from .contenders import Outcome, find_contender
from .draws import TEST, draw_rows, without_reading
from .suite import Cell


def run_cell(cell: Cell, threads: int = 1) -> dict[str, Any]:
    """Train and test one cell in a folder that is thrown away, and return its line of results.

    Whatever goes wrong becomes the line's ``error``; only interrupts pass. All that depends on time or machine stands under
    ``time`` and ``environment``. The number of threads belongs to neither: another number takes sums in another order, so it
    is the same wherever a cell runs.

    Args:
        cell: the cell to run.
        threads: number of CPU threads.
    """
    started = time.perf_counter()
    with limited(threads), tempfile.TemporaryDirectory(prefix="softprompt-bench-") as folder:
        try:
            result = _run(cell, Path(folder))
        except Exception as error:  # of any library below: one cell must not end a suite
            return failed_line(cell, one_line(error), time.perf_counter() - started)
        outside = {**environment(), "dtype": dtype_of(cell)}
    result["time"]["total_seconds"] = time.perf_counter() - started
    return {**_identity(cell), **result, "environment": outside}


def failed_line(cell: Cell, error: str, seconds: float) -> dict[str, Any]:
    """Make the line of a cell that did not come to its end."""
    return {
        **_identity(cell),
        "status": "failed",
        "error": error,
        "metric": "accuracy",
        "dev": None,
        "test": None,
        "parameters": None,
        "steps": None,
        "learning_rate": None,
        "trials": [],
        "curve": [],
        "extra": {},
        "time": {"train_seconds": None, "total_seconds": seconds},
        "environment": environment(),
    }


def one_line(error: BaseException) -> str:
    """Write an error as one line; a `SoftPromptError` speaks for itself, others are named."""
    words = " ".join(str(error).split())[:500]
    if isinstance(error, SoftPromptError):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def flat_options(cell: Cell, folder: Path, output: Path, rate: float | None) -> dict[str, Any]:
    """Return the flat options of one training of a cell; rows that must be drawn are written to ``folder``."""
    options = {key: value for key, value in cell.options.items() if key != "learning_rate" or rate is None}
    if cell.rows is None:
        data = cell.source
    else:
        if not (folder / "info.json").is_file():  # the draw writes it last
            announce(f"rows written to {folder}", f"{cell.rows} training rows of {cell.task}, seed {cell.seed}")
            draw_rows(cell.source, folder, cell.rows, cell.seed, cell.options, cell.scored_on)
        data, options = str(folder), without_reading(options)
    return {
        **options,
        **({} if rate is None else {"learning_rate": rate}),
        **({} if cell.shots is None else {"shots": cell.shots}),
        "data": data,
        "seed": cell.seed,
        "output_dir": str(output),
    }


def flat_yaml(cell: Cell, folder: Path) -> str:
    """Write a cell as the YAML of ``softprompt train --config``; rows that must be drawn are written to ``folder/data``.

    Raises:
        SoftPromptError: ``softprompt train`` does not know the cell's method.
    """
    if cell.options["method"] not in METHODS:
        raise SoftPromptError(
            f"{cell.name}: {cell.options['method']!r} is known to softprompt bench only; softprompt train has {', '.join(METHODS)}."
        )
    head = [f"# {cell.name}"]
    if len(cell.rates) > 1:
        head.append(
            f"# learning_rate is the first of {cell.rates}: train once with each, and keep the best by dev score"
        )
    flat = flat_options(cell, folder / "data", folder / "run", cell.rates[0])
    return "\n".join(head) + "\n" + yaml.safe_dump(flat, sort_keys=False, allow_unicode=True)


def _run(cell: Cell, folder: Path) -> dict[str, Any]:
    contender, dtype = find_contender(cell.options["method"]), dtype_of(cell)
    best: Outcome | None = None
    trials, seconds = [], 0.0
    for number, rate in enumerate(cell.rates):
        flat = flat_options(cell, folder / "data", folder / f"trial-{number}", rate)
        outcome = contender.run({**flat, "dtype": dtype})
        trials.append({"learning_rate": outcome.learning_rate, "dev": outcome.dev})
        seconds += outcome.train_seconds
        if best is None or DevScore(outcome.dev).beats(DevScore(best.dev)):
            best = outcome
    assert best is not None  # a cell has at least one trial
    extra = dict(best.extra)
    if _wants_matthews(cell.source):
        extra["matthews"] = float(matthews_corrcoef(*best.predictions()))
    result = {
        "status": "done",
        "error": None,
        "metric": "accuracy",
        "dev": best.dev,
        "test": best.test,
        "parameters": best.parameters,
        "steps": best.steps,
        "learning_rate": best.learning_rate,
        "trials": trials,
        "curve": best.curve,
        "extra": extra,
        "time": {"train_seconds": seconds, "total_seconds": 0.0},
    }
    json.dumps(result, allow_nan=False)  # a cell that cannot be written down is a failed one
    return result


def dtype_of(cell: Cell) -> str:
    """Return the precision of a cell's backbone: the suite's, or else what suits this machine."""
    given = str(cell.options.get("dtype", AUTO))
    return automatic_dtype()[0] if given == AUTO else given


def _identity(cell: Cell) -> dict[str, Any]:
    names = ("suite", "method", "task", "shots", "rows", "seed", "options")
    # only where it is another than usual, so that lines of before and now read alike
    scored_on = {} if cell.scored_on == TEST else {"scored_on": cell.scored_on}
    return {**{name: getattr(cell, name) for name in names}, **scored_on}


def _wants_matthews(source: str) -> bool:
    """Say whether the data's own measure is the Matthews correlation (``metric`` in info.json)."""
    path = Path(source) / "info.json"
    return path.is_file() and "matthews" in str(json.loads(path.read_text(encoding="utf-8-sig")).get("metric", ""))


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Inside, torch and the libraries below compute with so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)
