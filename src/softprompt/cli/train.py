"""``softprompt train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .._types import announce
from ..catalog import find_entry
from ..results import to_json
from .voice import err, is_first, quiet, table


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
    if method is not None:
        find_entry(method)  # before anything heavy is imported
    quiet()
    from ..training import RunOptions, parse_setting, read_yaml
    from ..training import train as run
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
    flat: dict[str, Any] = {}
    if recipe is not None:
        from ..bench import load_recipe

        flat, paper = load_recipe(recipe)
        announce(f"recipe={recipe}", f"{paper['title']}, arXiv {paper['arxiv']}; {'; '.join(paper['numbers'])}")
    flat |= read_yaml(config) if config else {}
    flat |= {key: value for key, value in flags.items() if value is not None}
    flat |= dict(parse_setting(text) for text in settings or [])
    options = RunOptions.from_flat(flat)
    with Progress() as progress:
        result = run(options, resume=resume, callbacks=[progress.callback], progress=False, report=progress.report)
        progress.finish(result.metrics)
    if not is_first():
        return
    info = result.document["train_info"]
    rows = [(key, f"{value:.4f}") for key, value in result.metrics.items()]
    rows += [(f"probe {key}", f"{value:.4f}") for key, value in info["probe"].items()]
    rows += [
        ("trained parameters", f"{info['num_trainable_params']:,}"),
        ("seconds of training", f"{info['train_time']:.1f}"),
    ]
    err.print(table(result.document["run_info"]["experiment_name"], ("measure", "value"), rows))
    print(to_json({"output": str(result.folder), **result.metrics}))
