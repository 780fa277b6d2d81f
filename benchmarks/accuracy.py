"""Accuracy of methods on real data sets with the embedded encoder, every run from its published split and seed.

    python benchmarks/accuracy.py spt --data DIR              # what is done is skipped; a killed suite goes on
    python benchmarks/accuracy.py spt --data DIR --only trec  # a part of it
    python benchmarks/accuracy.py spt --summary               # the table of what is there

DIR holds one folder per task with train, validation and test files, and published 16-shot splits under ``kshot/``. One line
per run goes to results/accuracy/SUITE.jsonl. Runs use bfloat16, one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results" / "accuracy"
SEEDS = (13, 21, 42, 87, 100)
STARTS = tuple(range(10))
Arm = Callable[["Cell"], dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One run: ``shots`` rows per class, or ``rows`` in all, of a task, with a seed."""

    suite: str
    arm: str
    task: str
    shots: int | None
    rows: int | None
    seed: int


def spt_random(cell: Cell) -> dict[str, Any]:
    return {"method": "spt", "bottleneck": 64, "layers": sorted(random.Random(cell.seed).sample(range(6), 3))}


def few_rows(method: dict[str, Any]) -> Arm:
    """The same number of steps for every arm: 80 on 64 rows, 160 on 256."""
    return lambda cell: {
        **method,
        "num_virtual_tokens": 20,
        "num_train_epochs": 20 if cell.rows == 64 else 10,
        "test_limit": 500,
    }


def starts(method: dict[str, Any]) -> Arm:
    """One draw of 64 rows; only the start of the prompt changes with the cell's seed."""
    return lambda cell: {**few_rows(method)(cell), "seed": SEEDS[0], "init_seed": cell.seed}


def shaped(length: int, *objectives: dict[str, Any]) -> Arm:
    """P = ``length``, 160 steps of 8 rows, from a head that knows nothing, so that the time to learn shows."""
    return lambda cell: {
        "method": "prompt_tuning",
        "num_virtual_tokens": length,
        "objectives": list(objectives),
        "head_init": "random",
        "num_train_epochs": 10,
        "per_device_train_batch_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 16,
        "save_steps": 16,
        "track": "topology",
        "test_limit": 500,
    }


def topology(length: int) -> tuple[dict[str, Arm], list[tuple[str, int | None, int | None]]]:
    """The four arms of the TSLoss paper, and exact persistence, each with this library's default weight."""
    arms = {
        "cross-entropy": shaped(length),
        "with l2": shaped(length, {"name": "l2"}),
        "with pairwise": shaped(length, {"name": "pairwise"}),
        "with ts_loss": shaped(length, {"name": "ts_loss"}),
        "with persistence": shaped(length, {"name": "persistence"}),
    }
    return arms, [(task, None, 128) for task in ("sst2_sentence", "trec")]


SUITES: dict[str, tuple[dict[str, Arm], list[tuple[str, int | None, int | None]]]] = {
    "spt": (
        {
            "spt, 3 searched layers": lambda _: {"method": "spt", "budget": 3, "bottleneck": 64},
            "spt, 3 random layers": spt_random,
            "spt, all 6 layers": lambda _: {"method": "spt", "layers": list(range(6)), "bottleneck": 64},
            "deep_prompts, all layers": lambda _: {"method": "deep_prompts", "num_virtual_tokens": 10},
            "prompt_tuning, input only": lambda _: {"method": "prompt_tuning", "num_virtual_tokens": 10},
            "peft:lora, equal parameters": lambda _: {"method": "peft:lora", "r": 17, "lora_alpha": 34},
        },
        [(task, 16, None) for task in ("sst2_sentence", "subj", "trec", "mr")],
    ),
    "infoprompt": (
        {
            "infoprompt": few_rows({"method": "infoprompt"}),
            "prompt_tuning": few_rows({"method": "prompt_tuning"}),
        },
        [(task, None, rows) for rows in (64, 256) for task in ("sst2_sentence", "cola", "mrpc", "rte")],
    ),
    "starts": (
        {
            "infoprompt": starts({"method": "infoprompt"}),
            "prompt_tuning": starts({"method": "prompt_tuning"}),
        },
        [(task, None, 64) for task in ("sst2_sentence", "cola")],
    ),
    "topology-20": topology(20),
    "topology-40": topology(40),
}


def cells(suite: str) -> Iterator[Cell]:
    arms, tasks = SUITES[suite]
    for seed in STARTS if suite == "starts" else SEEDS:
        for task, shots, rows in tasks:
            for arm in arms:
                yield Cell(suite, arm, task, shots, rows, seed)


def run(cell: Cell, data: str) -> dict[str, Any]:
    """Train one cell in a folder that is thrown away; the line of results."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    from softprompt import RunOptions, read_topology, train
    from softprompt.training.fit import TOPOLOGY

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(data) / cell.task
        if cell.rows is not None:
            drawn = SEEDS[0] if cell.suite == "starts" else cell.seed
            source = subset(source, Path(folder) / "data", cell.rows, drawn)
        flat = {
            "data": str(source),
            "seed": cell.seed,
            "dtype": "bfloat16",
            "max_length": 96,
            "output_dir": f"{folder}/out",
            **({"shots": cell.shots} if cell.shots else {}),
            **SUITES[cell.suite][0][cell.arm](cell),
        }
        watch = train_accuracy() if cell.suite.startswith("topology") else None
        result = train(RunOptions.from_flat(flat), callbacks=[watch] if watch else [], progress=False)
        document, shape = result.document, read_topology(result.folder / TOPOLOGY)
    info = document["train_info"]
    curves = {} if watch is None else {"train curve": watch.curve, "shape": shape_of(shape)}
    return {
        **asdict(cell),
        "test accuracy": info["test accuracy"],
        "dev accuracy": info["dev accuracy"],
        "probe test accuracy": info["probe"].get("test"),
        "parameters": info["num_trainable_params"],
        "layers": document["run_info"]["peft_config"].get("layers"),
        "gates": (info.get("search") or {}).get("gates"),
        "dev curve": [
            [entry["step"], round(entry["eval_accuracy"], 4)]
            for entry in info["metrics"]
            if "eval_accuracy" in entry and entry["step"] > 0
        ][:-2],  # the last two are the chosen checkpoint on dev and test
        **curves,
        "seconds": round(time.perf_counter() - started, 1),
    }


def train_accuracy() -> Any:
    """A callback that notes the accuracy on the training rows at each evaluation, as [step, accuracy]."""
    import torch
    from transformers import TrainerCallback

    class TrainAccuracy(TrainerCallback):
        def __init__(self) -> None:
            self.curve: list[list[float]] = []

        @torch.no_grad()
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.curve and self.curve[-1][0] == state.global_step:
                return  # the evaluations after training
            model, right = kwargs["model"], 0
            model.eval()
            for batch in kwargs["train_dataloader"]:
                right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
            rows = len(kwargs["train_dataloader"].dataset)
            self.curve.append([state.global_step, round(right / rows, 4)])

    return TrainAccuracy()


def shape_of(records: list[dict[str, Any]]) -> dict[str, float]:
    """The topology of a run's last prompt, and how much it still moved: mean distance between records of its second half."""
    layers = [record["layers"]["0"] for record in records]
    late = [layer["wasserstein"][0] for layer in layers[len(layers) // 2 :] if "wasserstein" in layer]
    return {**layers[-1]["metrics"], "h0_motion": statistics.mean(late), "records_share": records[-1]["share"]}


def subset(source: Path, folder: Path, rows: int, seed: int) -> Path:
    """Copy a task with ``rows`` of its training rows, drawn by class, and 128 others to choose the checkpoint.

    The test rows are the task's own, or its validation rows where the labels of the test are not public.
    """
    from softprompt.data import stratified

    folder.mkdir(parents=True)
    lines = (source / "train.jsonl").read_text(encoding="utf-8").splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    numbers = {label: i for i, label in enumerate(sorted(set(labels), key=str))}
    drawn = stratified([numbers[label] for label in labels], rows + 128, seed)
    kept = set(stratified([numbers[labels[i]] for i in drawn], rows, seed))
    parts = {
        "train": [lines[i] for n, i in enumerate(drawn) if n in kept],
        "validation": [lines[i] for n, i in enumerate(drawn) if n not in kept],
    }
    test = next(source / name for name in ("test.jsonl", "validation.jsonl") if (source / name).is_file())
    parts["test"] = test.read_text(encoding="utf-8").splitlines()
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in part), encoding="utf-8")
    (folder / "info.json").write_text((source / "info.json").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def read(suite: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{suite}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summary(suite: str) -> str:
    """Mean and standard deviation over seeds by task, and the paired difference to the first arm.

    Only cells (task and seed) that every arm has finished.
    """
    arms, _ = SUITES[suite]
    lines = read(suite)
    cell = itemgetter("task", "shots", "rows", "seed")
    finished = Counter(map(cell, lines))
    lines = [line for line in lines if finished[cell(line)] == len(arms)]
    if not lines:
        return "(no runs yet)"
    settings = sorted({(line["task"], line["shots"], line["rows"]) for line in lines}, key=str)
    by_arm = {
        arm: {(x["task"], x["shots"], x["rows"], x["seed"]): x["test accuracy"] for x in lines if x["arm"] == arm}
        for arm in arms
    }
    seeds = Counter((key[0], key[1], key[2]) for key in by_arm[next(iter(arms))])
    names = [
        f"{task}, {f'{shots} shots' if shots else f'{rows} rows'} ({seeds[task, shots, rows]} seeds)"
        for task, shots, rows in settings
    ]
    rows = ["| arm | parameters |" + "".join(f" {name} |" for name in names) + f" mean | {next(iter(arms))} minus it |"]
    rows.append("|---|---|" + "---|" * (len(names) + 2))
    first = by_arm[next(iter(arms))]
    for arm in arms:
        found = by_arm[arm]
        cost = {x["parameters"] for x in lines if x["arm"] == arm and x["task"] == settings[0][0]}
        columns = []
        for setting in settings:
            values = [100 * value for key, value in found.items() if key[:3] == setting]
            columns.append(
                f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else "-"
            )
        paired = [100 * (first[key] - found[key]) for key in first.keys() & found.keys()]
        spread = 1.96 * statistics.stdev(paired) / len(paired) ** 0.5 if len(paired) > 1 else 0.0
        difference = "" if found is first or not paired else f"{statistics.mean(paired):+.1f} ± {spread:.1f}"
        mean = f"{statistics.mean(100 * v for v in found.values()):.1f}" if found else "-"
        rows.append(
            f"| {arm} | {', '.join(f'{c:,}' for c in sorted(cost))} | "
            + " | ".join([*columns, mean, difference])
            + " |"
        )
    return "\n".join(rows)


def steps_to_plain(suite: str = "infoprompt") -> str:
    """Steps until the first arm reaches the best dev score of the second, as a share of the second's own steps to it."""
    first, second = SUITES[suite][0]
    lines = {(x["arm"], x["task"], x["rows"], x["seed"]): x for x in read(suite)}
    rows = ["| task | seeds | share of steps, median (each seed) |", "|---|---|---|"]
    for task, _, count in SUITES[suite][1]:
        shares = []
        for seed in SEEDS:
            pair = [lines.get((arm, task, count, seed)) for arm in (first, second)]
            if pair[0] and pair[1]:
                best = max(score for _, score in pair[1]["dev curve"])
                took = next(step for step, score in pair[1]["dev curve"] if score >= best)
                ours = next((step for step, score in pair[0]["dev curve"] if score >= best), None)
                shares.append(float("inf") if ours is None else ours / took)
        if shares:
            each = ", ".join("never" if share == float("inf") else f"{share:.2f}" for share in shares)
            middle = statistics.median(shares)
            shown = "never" if middle == float("inf") else f"{middle:.2f}"
            rows.append(f"| {task}, {count} rows | {len(shares)} | {shown} ({each}) |")
    return "\n".join(rows)


def spread_of_starts() -> str:
    """Standard deviation of test accuracy over ten starts of the prompt, everything else the same."""
    lines = read("starts")
    rows = ["| task | arm | starts | mean | standard deviation | lowest | highest |", "|---|---|---|---|---|---|---|"]
    for task, _, _ in SUITES["starts"][1]:
        for arm in SUITES["starts"][0]:
            found = [100 * x["test accuracy"] for x in lines if (x["task"], x["arm"]) == (task, arm)]
            if len(found) > 1:
                rows.append(
                    f"| {task} | {arm} | {len(found)} | {statistics.mean(found):.1f} | {statistics.stdev(found):.2f} | {min(found):.1f} | {max(found):.1f} |"
                )
    return "\n".join(rows)


def kept_layers() -> str:
    """How often the search of the suite "spt" kept each layer, by task."""
    lines = [line for line in read("spt") if line["gates"]]
    rows = ["| task | runs |" + "".join(f" layer {i} |" for i in range(6)), "|---|---|" + "---|" * 6]
    for task, shots, count in sorted({(line["task"], line["shots"], line["rows"]) for line in lines}, key=str):
        runs = [x for x in lines if (x["task"], x["shots"], x["rows"]) == (task, shots, count)]
        share = [sum(i in x["layers"] for x in runs) for i in range(6)]
        name = f"{task}, {f'{shots} shots' if shots else f'{count} rows'}"
        rows.append(f"| {name} | {len(runs)} |" + "".join(f" {n} |" for n in share))
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--data", help="folder with one folder per task")
    parser.add_argument("--only", help="substring of 'task arm', to run a part")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the seeds")
    parser.add_argument("--rows", type=int, help="only cells with this number of training rows")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if not arguments.summary:
        if not arguments.data:
            parser.error("--data is needed to run")
        key = ("suite", "arm", "task", "shots", "rows", "seed")
        done = {tuple(line[k] for k in key) for line in read(arguments.suite)}
        todo = [
            c
            for c in cells(arguments.suite)
            if tuple(asdict(c).values()) not in done
            and (c.suite == "starts" or c.seed in SEEDS[: arguments.seeds])
            and (arguments.rows is None or c.rows == arguments.rows)
            and (not arguments.only or arguments.only in f"{c.task} {c.arm}")
        ]
        todo.sort(key=lambda cell: cell.rows or 0)  # small ones first, for every seed
        RESULTS.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(run, cell, arguments.data) for cell in todo]
            for number, future in enumerate(as_completed(futures), 1):
                line = future.result()
                with (RESULTS / f"{arguments.suite}.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{number}/{len(todo)} {line['task']} {line['seed']} {line['arm']}: {line['test accuracy']:.3f}")
    print(summary(arguments.suite))


if __name__ == "__main__":
    main()
