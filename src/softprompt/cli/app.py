"""``softprompt``: train, eval, predict, inspect, methods, bench, demo."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from .._types import SoftPromptError, announce, check_choice
from .._version import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Soft prompt tuning: steer a frozen language model with a few learned vectors.",
)
err = Console(stderr=True)  # stdout carries results only
Method = Annotated[list[str] | None, typer.Option(help="Only this method, by its exact name; repeatable.")]
Only = Annotated[
    list[str] | None, typer.Option(help="Only cells with this text in 'task, setting, seed, method'; repeatable.")
]
Skip = Annotated[list[str] | None, typer.Option(help="Leave out cells with this text; repeatable.")]


def main() -> None:
    """Run the command line; a user's error is one message and exit code 2."""
    try:
        app()
    except SoftPromptError as error:
        which = "error" if _is_first() else f"process {os.environ['RANK']}: error"
        err.print(f"{which}: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("stopped; train goes on with --resume, bench when it is called again.", markup=False)
        sys.exit(130)


def _is_first() -> bool:
    """Whether this is the first process of a launcher (accelerate, torchrun), or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _quiet() -> None:
    """Show this library's announcements, of one process only, and only errors of the libraries below."""
    handler = RichHandler(console=err, show_time=False, show_path=False, show_level=False, markup=False)
    logger = logging.getLogger("softprompt")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if _is_first() else logging.ERROR)
    warnings.filterwarnings("ignore", module="(transformers|peft|torch|accelerate|datasets|bitsandbytes).*")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


@app.command()
def train(
    backbone: Annotated[str | None, typer.Option(help="Folder or hub name; 'minilm' is the embedded encoder.")] = None,
    data: Annotated[str | None, typer.Option(help="File, folder, hub name, or 'messages' (embedded).")] = None,
    method: Annotated[str | None, typer.Option(help="One of `softprompt methods`.")] = None,
    shots: Annotated[int | None, typer.Option(help="Training rows per class; all rows without it.")] = None,
    budget: Annotated[int | None, typer.Option(help="Layers to keep (method spt).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling, start and training.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for adapter, card and result.json.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with flat keys; flags and --set win over it.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A paper's set-up; --config, flags and --set win over it.")] = None,
    track: Annotated[
        str | None, typer.Option(help="mi, topology, accuracy, joined by commas, or all: what to record over training.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: any key of the run, the method or TrainingArguments.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --output from its newest checkpoint.")
    ] = False,
) -> None:
    """Tune a prompt on your data, test it, and write adapter, model card and result.json."""
    _quiet()
    from ..training import RunOptions, parse_setting, read_yaml
    from ..training import train as run

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
    flat: dict[str, Any] = {}
    if recipe is not None:
        from ..bench import load_recipe

        flat, paper = load_recipe(recipe)
        announce(f"recipe={recipe}", f"{paper['title']}, arXiv {paper['arxiv']}; {'; '.join(paper['numbers'])}")
    flat |= read_yaml(config) if config else {}
    flat |= {key: value for key, value in flags.items() if value is not None}
    flat |= dict(parse_setting(text) for text in settings or [])
    options = RunOptions.from_flat(flat)
    with _Progress() as progress:
        result = run(options, resume=resume, callbacks=[progress.callback], progress=False, report=progress.report)
    if not _is_first():
        return
    info = result.document["train_info"]
    rows = [(key, f"{value:.4f}") for key, value in result.metrics.items()]
    rows += [(f"probe {key}", f"{value:.4f}") for key, value in info["probe"].items()]
    rows += [
        ("trained parameters", f"{info['num_trainable_params']:,}"),
        ("seconds of training", f"{info['train_time']:.1f}"),
    ]
    err.print(_table(result.document["run_info"]["experiment_name"], ("measure", "value"), rows))
    print(json.dumps({"output": str(result.folder), **result.metrics}))


@app.command("eval")
def evaluate(
    adapter: Annotated[Path, typer.Argument(help="Folder that `softprompt train` wrote.")],
    data: Annotated[str, typer.Option(help="File, folder or hub name with labelled rows.")],
    split: Annotated[str, typer.Option(help="train, dev or test; a single file is used whole.")] = "test",
    backbone: Annotated[str | None, typer.Option(help="Another place where the same backbone lies.")] = None,
) -> None:
    """Evaluate a trained adapter on labelled rows; prints one JSON line."""
    _quiet()
    from ..data import load_rows, load_task
    from ..training import Predictor

    predictor = Predictor(adapter, backbone)
    columns: dict[str, Any] = predictor.card.columns or {}
    names = predictor.card.label_names or None
    if Path(data).is_file():
        rows, split = load_rows(data, label_names=names, **columns), "all"
    else:
        task = load_task(data, label_names=names, **columns)
        splits = {"train": task.train, "dev": task.dev, "test": task.test}
        check_choice("split", split, [name for name, found in splits.items() if found is not None])
        rows = splits[split]
    print(json.dumps({"data": data, "split": split, **predictor.evaluate(rows)}))


@app.command()
def predict(
    adapter: Annotated[Path, typer.Argument(help="Folder that `softprompt train` wrote.")],
    input: Annotated[
        str, typer.Option(help="jsonl, json, csv, tsv or parquet file; '-' reads jsonl from stdin.")
    ] = "-",
    output: Annotated[str, typer.Option(help="jsonl file to write; '-' writes to stdout.")] = "-",
    plain: Annotated[bool, typer.Option("--plain", help="Input lines are plain texts, not JSON.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a completion.")] = 64,
    backbone: Annotated[str | None, typer.Option(help="Another place where the same backbone lies.")] = None,
) -> None:
    """Predict rows: file or stdin in, one JSON line per row out, in the same order."""
    _quiet()
    from ..results import write_text
    from ..training import Predictor

    predictor = Predictor(adapter, backbone)
    columns = predictor.card.columns or {}
    kinds = {"classification": ("text", "text_pair"), "completion": ("prompt",), "tokens": ("text", "tokens")}
    wanted = {name: columns.get(f"{name}_column", name) for name in kinds[predictor.card.kind]}
    rows = []
    for row in _read_input(input, plain, next(iter(wanted))):
        rows.append({**row, **{name: row[column] for name, column in wanted.items() if column in row}})
    found = predictor.predict(rows, max_new_tokens)
    true_ones = ("label", "completion", "tags", "entities")  # the row may hold them
    named = (
        {f"predicted_{key}" if key in true_ones else key: value for key, value in prediction.items()}
        for prediction in found
    )
    lines = "".join(
        json.dumps({**row, **prediction}, ensure_ascii=False) + "\n"
        for row, prediction in zip(rows, named, strict=True)
    )
    if output == "-":
        sys.stdout.write(lines)
    else:
        write_text(output, lines)
        err.print(f"{len(found)} rows written to {output}", markup=False)


def _read_input(source: str, plain: bool, text_column: str) -> list[dict[str, Any]]:
    from ..data import parse_jsonl, read_rows

    if plain:
        text = sys.stdin.read() if source == "-" else _read_text(source)
        return [{text_column: line} for line in text.splitlines() if line.strip()]
    if source == "-":
        return parse_jsonl("stdin", sys.stdin.read()).rows
    return read_rows(source).rows


def _read_text(source: str) -> str:
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SoftPromptError(f"{source}: cannot be read as UTF-8 text ({error}).") from error


@app.command()
def inspect(
    adapter: Annotated[Path, typer.Argument(help="Folder of a trained prompt.")],
    backbone: Annotated[str | None, typer.Option(help="Another place where the same backbone lies.")] = None,
    data: Annotated[
        str | None, typer.Option(help="File with labelled rows, to measure each token's importance.")
    ] = None,
    other: Annotated[list[Path] | None, typer.Option(help="Another adapter to compare with; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Look into a trained prompt: nearest words, norms, topology, similarity to others, importance of its tokens."""
    _quiet()
    from ..data import load_rows
    from ..training import TaskCard
    from ..training import inspect as look

    rows = None
    if data is not None:
        card = TaskCard.read(adapter)
        columns: dict[str, Any] = card.columns or {}
        rows = load_rows(data, label_names=card.label_names or None, **columns)
    found = look(adapter, backbone, other or [], rows)
    if as_json:
        print(json.dumps(found))
        return
    console = Console()
    for warning in found["warnings"]:
        err.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    tokens = []
    for token in found["tokens"]:
        near = ", ".join(f"{n['token']} {n['cosine']:.2f}" for n in token.get("nearest", []))
        worth = f"{token['importance']:+.4f}" if "importance" in token else "-"
        tokens.append((str(token["index"]), f"{token['norm']:.3f}" if "norm" in token else "-", worth, near or "-"))
    if tokens:
        console.print(_table("virtual tokens", ("token", "norm", "importance", "nearest words, cosine"), tokens))
    facts = [(f"norm: {key}", f"{value:.3f}") for key, value in (found["norms"] or {}).items()]
    facts += [(f"random rows: {key} cosine", f"{value:.3f}") for key, value in (found["null"] or {}).items()]
    for layer, values in found["topology"].items():
        facts += [(f"layer {layer}: {key}", f"{value:.4g}") for key, value in values.items()]
    for near in found["others"]:
        facts += [(f"{near['adapter']}: {key}", f"{near[key]:.4g}") for key in ("cosine", "wasserstein h0")]
    console.print(_table("measures", ("measure", "value"), facts))


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List every method with its hyper-parameters and paper."""
    _quiet()
    from ..methods import METHODS

    if as_json:
        print(
            json.dumps(
                {
                    m.name: {"summary": m.summary, "paper": m.paper, "parameters": m.parameters}
                    for m in METHODS.values()
                },
                indent=2,
            )
        )
        return
    rows = [
        (m.name, ", ".join(f"{k}={v}" for k, v in m.parameters.items()), m.paper, m.summary) for m in METHODS.values()
    ]
    Console().print(_table("methods", ("name", "hyper-parameters", "paper", "what it is"), rows))


@app.command()
def bench(
    suite: Annotated[str, typer.Argument(help="YAML file, or a shipped suite: smoke, few-shot, low-data, full.")],
    data: Annotated[str | None, typer.Option(help="Folder that holds one folder per task.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of cells.jsonl; a stopped suite goes on there. [default: bench-output/NAME]"),
    ] = None,
    executor: Annotated[str, typer.Option(help="auto (by --workers), in-process, pool or ray.")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Cells at a time, each in a process of its own.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a cell; another number, other last digits.")] = 1,
    address: Annotated[str | None, typer.Option(help="Ray cluster; RAY_ADDRESS or a local one without it.")] = None,
    cpus_per_cell: Annotated[float, typer.Option(min=0, help="CPUs that a cell reserves (ray).")] = 1,
    gpus_per_cell: Annotated[float, typer.Option(min=0, help="GPUs that a cell reserves (ray).")] = 0,
    retries: Annotated[int, typer.Option(min=0, help="Tries again for a cell whose machine was lost (ray).")] = 1,
    method: Method = None,
    only: Only = None,
    skip: Skip = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: a default of every run, such as backbone.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Print the numbered cells and stop.")] = False,
    print_cell: Annotated[
        int | None,
        typer.Option(help="Print the flat YAML of a numbered cell for `softprompt train --config`, and stop."),
    ] = None,
) -> None:
    """Compare methods on tasks and seeds: one JSON line per cell; what is done is skipped when it is called again.

    Progress goes to the terminal, or as plain lines to stdout where that is none; the last line of stdout is one JSON
    document with counts. Exit code 0 when every chosen cell is done, 1 when some failed, 2 when the suite is wrong.
    """
    _quiet()
    logging.getLogger("softprompt").setLevel(logging.WARNING)  # choices of every single run would drown the progress
    from ..bench import InProcess, ProcessPool, Ray, read_suite, run_suite
    from ..bench.cell import flat_yaml
    from ..bench.progress import Watch
    from ..bench.suite import selected
    from ..training import parse_setting

    check_choice("executor", executor, ("auto", "in-process", "pool", "ray"))
    found = read_suite(suite, data, dict(parse_setting(text) for text in settings or []))
    cells = found.cells()
    folder = output or Path("bench-output") / found.name
    if print_cell is not None:
        if not 0 <= print_cell < len(cells):
            raise SoftPromptError(
                f"--print-cell {print_cell}: expected a number from 0 to {len(cells) - 1}; see --list."
            )
        sys.stdout.write(flat_yaml(cells[print_cell], folder / "cells" / str(print_cell)))
        return
    for name in method or []:
        check_choice("method of the suite", name, list(found.methods))
    numbered = [
        (number, cell)
        for number, cell in enumerate(cells)
        if selected(vars(cell), method or (), only or (), skip or ())
    ]
    if not numbered:
        raise SoftPromptError(f"--method, --only and --skip leave no cell of {len(cells)}; see --list for their names.")
    if listing:
        for number, cell in numbered:
            print(f"{number} {cell.name}")
        return
    if executor == "ray":
        chosen: Any = Ray(address, cpus_per_cell, gpus_per_cell, retries, threads)
    elif executor == "pool" or (executor == "auto" and workers > 1):
        chosen = ProcessPool(workers, threads)
    else:
        chosen = InProcess(threads)
    with Watch(err) as watch:
        document = run_suite(found, folder, chosen, [cell for _, cell in numbered], retry_failed, watch)
    print(json.dumps(document))
    if document["failed"]:
        raise typer.Exit(1)


@app.command()
def compare(
    cells: Annotated[Path, typer.Argument(help="Folder that `softprompt bench` wrote, or its cells.jsonl.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for tables and figures. [default: 'comparison' beside the cells]")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Method that the others are compared with; the first without it.")
    ] = None,
    method: Method = None,
    only: Only = None,
    skip: Skip = None,
) -> None:
    """Tables (Markdown, LaTeX, CSV) and figures of a suite: means, paired differences, ranks, cost, steps."""
    _quiet()
    from ..bench import write_comparison

    folder = output or (cells if cells.is_dir() else cells.parent) / "comparison"
    written = write_comparison(cells, folder, reference, method or (), only or (), skip or ())
    print(json.dumps({"output": str(folder), "files": [path.name for path in written]}))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the demo's runs and table.")] = Path("demo-output"),
    label: Annotated[list[str] | None, typer.Option(help="queue or tone; give it twice for both.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every run.")] = 13,
) -> None:
    """Tune on the embedded messages with the embedded encoder, and compare: probe, PEFT, ours."""
    _quiet()
    from .demo import run_demo

    run_demo(output, label or ["tone"], seed, err)


def _table(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


class _Progress:
    """A progress bar over training steps, fed by a trainer callback."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from transformers import TrainerCallback

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=err,
            disable=not _is_first(),
        )
        bar = self.bar
        self.tasks: dict[str, Any] = {}

        class Callback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.task = bar.add_task(
                    args.run_name or "training", total=state.max_steps, completed=state.global_step, note=""
                )

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                bar.update(self.task, completed=state.global_step)

            def on_evaluate(
                self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
            ) -> None:
                order = ("eval_f1", "eval_accuracy", "eval_loss")
                score = next((metrics[key] for key in order if key in metrics), None)
                if score is not None and hasattr(self, "task"):
                    bar.update(self.task, note=f"dev {score:.3f}")

        self.callback = Callback()

    def report(self, what: str, done: int, total: int) -> None:
        """Show the progress of work before training."""
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total, note="")
        self.bar.update(self.tasks[what], completed=done)

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()
