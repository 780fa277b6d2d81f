"""``softprompt train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..._files import to_json
from ..._types import SoftPromptError, announce
from ...catalog import find_entry
from ..options import method_names
from ..voice import err, is_first, quiet, table
from ..workers import PANEL, Address, Cpus, ExecutorName, Gpus, Retries, Workers
from .searching import check_alone, parse_search, search

if TYPE_CHECKING:
    from ...training.output.outcome import RunResult


def train(
    backbone: Annotated[
        str | None, typer.Option(help="Folder or hub name; 'minilm', 'masked-lm' and 'causal-lm' are embedded.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="File, folder, hub name, or 'messages' (embedded).")] = None,
    method: Annotated[
        str | None, typer.Option(help="One of `softprompt methods`.", autocompletion=method_names)
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Training rows per class; all rows without it.")] = None,
    budget: Annotated[int | None, typer.Option(help="Layers to keep (method spt).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling, start and training.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for adapter, card and result.json.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with flat keys; flags and --set win over it.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A paper's set-up; --config, flags and --set win over it.")] = None,
    track: Annotated[
        str | None,
        typer.Option(help="mi, topology, accuracy, states, joined by commas, or all: what to record over training."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: any key of the run, the method or TrainingArguments.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --output from its newest checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check all that can be checked without computing, say what would be done, stop."
        ),
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(help="Write one JSON line per step while it trains (loss, learning rate, shares, evaluations)."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting as YAML for --config, and stop.")
    ] = False,
    searched: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            help="key=value,value: train once with each combination and keep the best on the dev rows; repeatable.",
        ),
    ] = None,
    search_trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="So many trials, which Optuna chooses one after the other; --search takes ranges (low..high), too.",
        ),
    ] = None,
    executor: ExecutorName = "auto",
    workers: Workers = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads of a trial. [default: the machine's, by --workers]", rich_help_panel=PANEL
        ),
    ] = None,
    address: Address = None,
    cpus_per_cell: Cpus = 1,
    gpus_per_cell: Gpus = 0,
    retries: Retries = 1,
) -> None:
    """Tune a prompt on your data, test it, and write adapter, model card and result.json.

    With --search the same of the best of several settings; the trials lie in trials/ of the output folder.
    """
    if method is not None:
        find_entry(method)  # before anything heavy is imported
    quiet()
    from ...training import RunOptions, parse_setting, read_yaml, to_yaml
    from ...training import train as run
    from .log import EACH_STEP, LogFile
    from .progress import Progress

    flags = {
        "backbone": backbone,
        "data": data,
        "method": method,
        "shots": shots,
        "budget": budget,
        "track": track,
        "seed": seed,
        "output_dir": output and str(output),
    }
    own = {key: value for key, value in flags.items() if value is not None}
    own |= dict(parse_setting(text) for text in settings or [])
    given = {**(read_yaml(config) if config else {}), **own}
    where = {
        "workers": (workers, 1),
        "executor": (executor, "auto"),
        "threads": (threads, None),
        "address": (address, None),
        "cpus-per-cell": (cpus_per_cell, 1),
        "gpus-per-cell": (gpus_per_cell, 0),
        "retries": (retries, 1),
    }
    check_alone(bool(searched), log, print_config, {"search-trials": (search_trials, None), **where})
    grid = parse_search(searched or [], own)
    flat = {**(_recipe(recipe, own_data="data" in given) if recipe else {}), **given}
    if "data" not in flat and "data" not in grid:
        raise SoftPromptError(
            "no data: pass --data with a file, a folder or a hub name; --data messages trains on the messages that ship with softprompt."
        )
    if grid:
        flags_of = {name.replace("-", "_"): value for name, (value, _) in where.items()}
        search(flat, grid, resume, dry_run, search_trials, {"name": flags_of.pop("executor"), **flags_of})
        return
    if log is not None:
        flat = {**EACH_STEP, **flat}
    options = RunOptions.from_flat(flat)
    if print_config:
        sys.stdout.write(to_yaml(options))
        return
    if dry_run:
        from ...training.plan import plan

        planned = plan(options, resume)
        each = {f"{name}: ": part for name, part in planned["tasks"].items()} if "tasks" in planned else {"": planned}
        lines = [(f"{name}{key}", str(value)) for name, part in each.items() for key, value in part.items()]
        err.print(table("what would be done", ("what", "value"), lines))
        print(to_json(planned))
        return
    with Progress() as progress:
        callbacks = [progress.callback, *([] if log is None else [LogFile(log, resume)])]
        result = run(options, resume=resume, callbacks=callbacks, progress=False, report=progress.report)
        progress.finish(result.metrics)
    if is_first():
        _show(result)


def _show(result: RunResult) -> None:
    info = result.document["train_info"]
    # the first one, by which what was there before is scored, too
    score = next((key.removeprefix("dev ") for key in result.metrics if key.startswith("dev ")), "loss")
    before = "" if score == "loss" else f" {score}"  # a run that keeps no scores of its own
    lines = [(key, f"{value:.4f}") for key, value in result.metrics.items()]
    for name in ("probe", "zero_shot"):
        lines += [(f"{name} {split}{before}", f"{value:.4f}") for split, value in info.get(name, {}).items()]
    lines += [
        ("trained parameters", f"{info['num_trainable_params']:,}"),
        ("seconds of training", f"{info['train_time']:.1f}"),
    ]
    err.print(table(result.document["run_info"]["experiment_name"], ("measure", "value"), lines))
    print(to_json({"output": str(result.folder), **result.metrics}))


def _recipe(name: str, own_data: bool) -> dict[str, Any]:
    """Return the keys of a recipe; where the user brings data, without the keys about its paper's data."""
    from ...experiments import load_recipe
    from ...training.prepare import READING

    flat, paper = load_recipe(name)
    announce(f"recipe={name}", f"{paper['title']}, arXiv {paper['arxiv']}; {'; '.join(paper['numbers'])}")
    about_data = sorted(key for key in flat if key in READING)
    if own_data and about_data:
        announce(f"the recipe's {', '.join(about_data)} left out", "they are about its own data, and you bring yours")
        flat = {key: value for key, value in flat.items() if key not in about_data}
    return flat
