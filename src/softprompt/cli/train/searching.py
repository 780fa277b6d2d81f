"""``softprompt train --search``: what it reads of the command line, and what it shows."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..._files import to_json
from ..._types import SoftPromptError
from ..voice import err, table


def parse_search(texts: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse ``key=value,value`` into the values of each key, and ``key=low..high`` into a range; each is read as YAML, as after --set.

    Args:
        texts: of the command line.
        given: keys that flags and --set have set.

    Raises:
        SoftPromptError: no '=', no key, a value that is no YAML, or a key that is set, or searched twice.
    """
    grid: dict[str, Any] = {}
    if not texts:
        return grid
    from ...experiments import Range
    from ...training.keys.yaml_values import from_yaml

    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SoftPromptError(f"--search {text!r}: expected key=value,value, such as learning_rate=1e-3,1e-2.")
        if key in grid:
            raise SoftPromptError(
                f"--search {key} stands there twice; write all its values in one: --search {key}=value,value."
            )
        if key in given:
            flag = "output" if key == "output_dir" else key
            raise SoftPromptError(
                f"{key} is set (--set {key} or --{flag}) and searched; take one of the two out, for the search would overwrite it."
            )
        if key == "marker":  # tokens such as [unused1] and ? mean something else in YAML
            grid[key] = [value.strip() for value in values.split(",")]
        elif ends := re.fullmatch(r"\s*([-+.\deE]+?)\.\.([-+.\deE]+)\s*", values):
            grid[key] = Range(*(from_yaml(end, f"--search {text!r}: an end is") for end in ends.groups()))
        else:
            grid[key] = from_yaml(f"[{values}]", f"--search {text!r}: the values are")
    return grid


def check_alone(searches: bool, log: object, print_config: bool, where: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse options that go with a search alone, or with one run alone.

    Args:
        searches: whether there is a --search.
        log: of --log.
        print_config: of --print-config.
        where: name -> (value, default) of the options that say where trials run.

    Raises:
        SoftPromptError: the first of them.
    """
    if searches:
        if log is not None:
            raise SoftPromptError(
                "--log follows one run, and a search has many; drop it: each trial keeps its log in trials/NAME/result.json."
            )
        if print_config:
            raise SoftPromptError("--print-config prints one run, and a search has many; drop it, or see --dry-run.")
        return
    for name, (value, default) in where.items():
        if value != default:
            raise SoftPromptError(f"--{name} is about the trials of a search; add --search key=value,value.")


def search(
    flat: Mapping[str, Any],
    grid: Mapping[str, Any],
    resume: bool,
    dry_run: bool,
    count: int | None,
    where: Mapping[str, Any],
) -> None:
    """Run a search, or say what it would try; the last line of stdout is one JSON document.

    Args:
        flat: keys of every trial.
        grid: of `parse_search`.
        resume: go on with a search that was stopped.
        dry_run: check, show the trials, and stop.
        count: number of trials that are chosen one after the other; None tries all.
        where: flags of `make_executor`, and its ``name``; ``threads`` None shares the machine's among the workers.
    """
    import torch

    from ...experiments import Range, search_settings, trials_of
    from ...experiments.executors import make_executor
    from ...experiments.progress import TrialWatch
    from ...experiments.settings import check_rows
    from ...experiments.space import Chosen
    from ...training import RunOptions

    first = {key: values.low if isinstance(values, Range) else values[0] for key, values in grid.items() if values}
    options = RunOptions.from_flat({**flat, **first})
    trials = trials_of(options, grid) if count is None else Chosen(options, grid, None, count).examples
    if dry_run:
        check_rows(trials)
        _show_trials(trials, resume)
        return
    logging.getLogger("softprompt").setLevel(logging.WARNING)  # choices of every single run would drown the progress
    threads = where["threads"] or max(1, torch.get_num_threads() // where["workers"])
    executor = make_executor(**{**where, "threads": threads})
    with TrialWatch(err) as watch:
        result = search_settings(options, grid, resume, executor, watch, count=count)
    lines = [
        (_told(line["setting"]), _score(line), "kept" if line["chosen"] else "") for line in result.document["trials"]
    ]
    err.print(table("trials", ("setting", "dev", ""), lines))
    (chosen,) = (line for line in result.document["trials"] if line["chosen"])
    failed = sum(line["status"] == "failed" for line in result.document["trials"])
    counts = {"trials": len(lines), "failed": failed}
    print(to_json({"output": str(result.folder), **result.metrics, "setting": chosen["setting"], **counts}))


def _show_trials(trials: Sequence[Any], resume: bool) -> None:
    from ...training.plan import plan

    planned = plan(trials[0].options, resume and trials[0].folder.exists())
    listed = [{"setting": trial.setting, "folder": str(trial.folder)} for trial in trials]
    err.print(table("trials", ("setting", "folder"), [(_told(trial["setting"]), trial["folder"]) for trial in listed]))
    print(to_json({**planned, "trials": listed}))


def _told(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in setting.items())


def _score(line: Mapping[str, Any]) -> str:
    return f"{line['dev']:.4f}" if line["status"] == "done" else f"failed: {line['error']}"
