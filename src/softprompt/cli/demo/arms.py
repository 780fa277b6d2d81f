"""The demo: the main job on what ships with the package: embedded backbones, embedded messages, one table."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..._environment import environment
from ..._files import write_json
from ...experiments.contenders import run_zero_shot
from ...models.hub import OPTIONS_FILE
from ...models.precision import automatic_dtype
from ...report import write_report
from ...training import RunOptions, train

LENGTH, CUT = 10, 64
SHOTS = 16
FEW, ALL = f"{SHOTS} per class", "all"
PROBE = "linear probe"
NONE, ZERO_SHOT = "none", "zero_shot"


@dataclass(frozen=True)
class Arm:
    """One line of the table: a method, on some messages per class with every seed, or on all or none with the first seed."""

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
        {"method": "prompt_tuning", "num_virtual_tokens": LENGTH, "num_train_epochs": 3, "track": "topology"},
    ),
)


@dataclass(frozen=True)
class Demo:
    """Arms on one backbone: what the table says of it, names of the results and of the runs' folder, options by label set."""

    title: str
    file: str
    runs: str
    arms: tuple[Arm, ...]
    options: dict[str, dict[str, Any]]


ENCODER = Demo("all-MiniLM-L6-v2", "demo.json", ".", ARMS, {"tone": {}, "queue": {}})
WORDS = {"backbone": "masked-lm", "head": "verbalizer", "attn_implementation": "eager"}
DEEP = {"method": "deep_prompts", "num_virtual_tokens": LENGTH, "learning_rate": 0.03}
LONGER = {"shots": SHOTS, "max_steps": 40, "eval_strategy": "steps", "eval_steps": 10, "save_steps": 10}
LANGUAGE_MODEL = Demo(
    "masked language model, read through label words",
    "demo-lm.json",
    "lm",
    (
        Arm("the template alone", NONE, {"method": ZERO_SHOT}),
        Arm("PEFT LoRA, r = 1", FEW, {"method": "peft:lora", "r": 1, "lora_alpha": 2, **LONGER}),
        Arm("softprompt deep prompts", FEW, {**DEEP, **LONGER}),
        Arm("softprompt deep prompts", ALL, {**DEEP, "num_train_epochs": 4, "track": "topology"}),
    ),
    {
        "tone": {
            **WORDS,
            "template": "{text} It was {mask} .",
            "label_words": {
                "annoyed": ["terrible", "mad"],
                "neutral": ["standard", "recorded"],
                "grateful": ["wonderful", "nice"],
            },
        },
        "queue": {
            **WORDS,
            "template": "{text} It is about {mask} .",
            "label_words": {
                "returns": "returns",
                "sales": "sales",
                "delivery": "delivery",
                "account": "account",
                "billing": "payment",
                "technical": "repair",
            },
        },
    },
)


def run_demo(
    output: Path, labels: Sequence[str], seeds: Sequence[int], console: Console, demo: Demo = ENCODER
) -> dict[str, Any]:
    """Run every arm for every label set, print the table, and write the demo's JSON file and a report of the first seed's runs into ``output``.

    The folder belongs to the demo: it replaces runs of an earlier demo there.
    """
    runs = [
        (label, arm, seed)
        for label in labels
        for arm in demo.arms
        for seed in (seeds if arm.messages == FEW else seeds[:1])
    ]
    scores: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    folders: list[Path] = []
    with _bar(console) as bar:
        task = bar.add_task("", total=len(runs))
        for done, (label, arm, seed) in enumerate(runs):
            what = f"{label}, {arm.messages} messages, {arm.name}, seed {seed}"
            bar.update(task, description=what)
            if not console.is_terminal:
                console.print(f"run {done + 1} of {len(runs)}: {what}", soft_wrap=True, highlight=False)
            folder = folder_of(output, demo, label, arm, seed)
            if (folder / OPTIONS_FILE).is_file() or (folder / "checkpoints").is_dir():
                shutil.rmtree(folder)
            flat = {**_common(label, seed, folder), **demo.options[label], **arm.options}
            if arm.options["method"] != ZERO_SHOT and seed == seeds[0]:
                folders.append(folder)
            for name, score in _scored(arm, flat):
                of_arm = scores.setdefault((label, arm.messages, name), [])
                if seed not in {other["seed"] for other in of_arm}:  # every arm finds the same probe
                    of_arm.append({"seed": seed, **score})
            bar.advance(task)
    lines = [_line(*key, of_arm) for key, of_arm in scores.items()]
    amounts = (NONE, FEW, ALL)
    lines.sort(key=lambda line: (labels.index(line["label"]), amounts.index(line["messages"]), line["arm"] != PROBE))
    document = {"rows": lines, "environment": environment()}
    write_json(output / demo.file, document)
    console.print(_table(lines, demo.title))
    page = (output / demo.file).with_suffix(".html")
    write_report(folders, page)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
    return document


def _scored(arm: Arm, flat: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run an arm, and name what it shows: itself, and the probe that its head started from."""
    if arm.options["method"] == ZERO_SHOT:
        yield (
            arm.name,
            {
                "accuracy": run_zero_shot({**flat, "dtype": automatic_dtype()[0]}).test,
                "parameters": None,
                "seconds": None,
            },
        )
        return
    started = time.perf_counter()
    info = train(RunOptions.from_flat(flat), progress=False).document["train_info"]
    seconds = time.perf_counter() - started
    yield arm.name, {"accuracy": info["test accuracy"], "parameters": info["num_trainable_params"], "seconds": seconds}
    if info["probe"]:
        yield PROBE, {"accuracy": info["probe"]["test"], "parameters": None, "seconds": None}


def _common(label: str, seed: int, folder: Path) -> dict[str, Any]:
    flat = {"data": "messages", "label_column": label, "seed": seed, "output_dir": str(folder), "max_length": CUT}
    return {**flat, "train_sampling_strategy": "group_by_length"}


def folder_of(output: Path, demo: Demo, label: str, arm: Arm, seed: int) -> Path:
    """Where the run of an arm lies."""
    name = "-".join("".join(c if c.isalnum() else " " for c in f"{arm.name} {arm.messages} {seed}").split())
    return output / demo.runs / label / name


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


def _table(lines: list[dict[str, Any]], backbone: str) -> Table:
    table = Table(
        title=f"embedded messages, frozen {backbone}; ± standard deviation over seeds; seconds of one run",
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
