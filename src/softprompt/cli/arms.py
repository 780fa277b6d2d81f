"""The demo: the main job on what ships with the package: embedded encoder, embedded messages, one table."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .._environment import environment
from .._files import write_json
from ..training import RunOptions, train

LENGTH, CUT = 10, 64
SHOTS = 16
FEW, ALL = f"{SHOTS} per class", "all"
PROBE = "linear probe"


@dataclass(frozen=True)
class Arm:
    """One line of the table: a method, on some messages per class with every seed, or on all with the first seed."""

    name: str
    messages: str
    options: dict[str, Any]


STEPS = {"max_steps": 12, "eval_strategy": "steps", "eval_steps": 6, "save_strategy": "steps", "save_steps": 6}
FEW_SHOT = {"shots": SHOTS, **STEPS}  # seconds, not minutes
ARMS = (
    Arm(
        "PEFT prompt tuning, our head", FEW, {"method": "peft:prompt_tuning", "num_virtual_tokens": LENGTH, **FEW_SHOT}
    ),
    Arm("softprompt contrast", FEW, {"method": "contrast", **FEW_SHOT}),
    Arm(
        "softprompt prompt tuning",
        ALL,
        {"method": "prompt_tuning", "num_virtual_tokens": LENGTH, "num_train_epochs": 3},
    ),
)


def run_demo(output: Path, labels: Sequence[str], seeds: Sequence[int], console: Console) -> dict[str, Any]:
    """Run every arm for every label set, print the table, and write ``demo.json`` into ``output``.

    The folder belongs to the demo: it replaces runs of an earlier demo there.
    """
    runs = [
        (label, arm, seed) for label in labels for arm in ARMS for seed in (seeds if arm.messages == FEW else seeds[:1])
    ]
    scores: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with _bar(console) as bar:
        task = bar.add_task("", total=len(runs))
        for done, (label, arm, seed) in enumerate(runs):
            what = f"{label}, {arm.messages} messages, {arm.name}, seed {seed}"
            bar.update(task, description=what)
            if not console.is_terminal:
                console.print(f"run {done + 1} of {len(runs)}: {what}", soft_wrap=True, highlight=False)
            folder = output / label / _folder(arm, seed)
            if (folder / "run.json").is_file() or (folder / "checkpoints").is_dir():
                shutil.rmtree(folder)
            started = time.perf_counter()
            document = train(_options(label, arm, seed, folder), progress=False).document["train_info"]
            score = {
                "seed": seed,
                "accuracy": document["test accuracy"],
                "parameters": document["num_trainable_params"],
                "seconds": time.perf_counter() - started,
            }
            scores.setdefault((label, arm.messages, arm.name), []).append(score)
            probes = scores.setdefault((label, arm.messages, PROBE), [])
            if document["probe"] and seed not in {probe["seed"] for probe in probes}:
                probe = {"seed": seed, "accuracy": document["probe"]["test"], "parameters": None, "seconds": None}
                probes.append(probe)
            bar.advance(task)
    lines = [_line(*key, of_arm) for key, of_arm in scores.items()]
    lines.sort(key=lambda line: (labels.index(line["label"]), line["messages"] == ALL, line["arm"] != PROBE))
    document = {"rows": lines, "environment": environment()}
    write_json(output / "demo.json", document)
    console.print(_table(lines))
    return document


def _options(label: str, arm: Arm, seed: int, folder: Path) -> RunOptions:
    flat = {"data": "messages", "label_column": label, "seed": seed, "output_dir": str(folder), "max_length": CUT}
    return RunOptions.from_flat({**flat, "train_sampling_strategy": "group_by_length", **arm.options})


def _folder(arm: Arm, seed: int) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in f"{arm.name} {arm.messages} {seed}").split())


def _line(label: str, messages: str, arm: str, scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up one arm over its seeds; the spread is the standard deviation between them, None for one seed."""
    accuracies = [score["accuracy"] for score in scores]
    seconds = [score["seconds"] for score in scores if score["seconds"] is not None]
    return {
        "label": label,
        "messages": messages,
        "arm": arm,
        "accuracy": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "accuracies": accuracies,
        "seeds": [score["seed"] for score in scores],
        "parameters": scores[0]["parameters"],
        "seconds": statistics.mean(seconds) if seconds else None,
    }


COLUMNS = ("label", "messages", "arm", "test accuracy", "seeds", "parameters", "seconds")


def cells(line: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a line of ``demo.json`` as the demo and the README show them."""
    spread = "" if line["spread"] is None else f" ± {line['spread']:.3f}"
    return (
        line["label"],
        line["messages"],
        line["arm"],
        f"{line['accuracy']:.3f}{spread}",
        ", ".join(map(str, line["seeds"])),
        "-" if line["parameters"] is None else f"{line['parameters']:,}",
        "-" if line["seconds"] is None else f"{line['seconds']:.0f}",
    )


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _table(lines: list[dict[str, Any]]) -> Table:
    table = Table(
        title="embedded messages, frozen all-MiniLM-L6-v2; ± standard deviation over seeds; seconds of one run",
        title_justify="left",
    )
    for column in COLUMNS:
        words = column in COLUMNS[:3]
        table.add_column(
            column, justify="left" if words else "right", no_wrap=column in ("test accuracy", "parameters")
        )
    for line in lines:
        table.add_row(*cells(line))
    return table
