"""Suites of experiments, their cells, and results made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from house.tiny import WORDS
from softprompt.experiments import contenders
from softprompt.experiments.suite import Cell, read_suite

OUTSIDE = ("time", "environment")


QUICK = {"max_length": 24, "num_train_epochs": 1, "per_device_train_batch_size": 8}


def write_distinct(folder: Path, **counts: int) -> None:
    """Rows that differ from each other in all splits, three classes in unequal shares."""
    folder.mkdir()
    number = 0
    for split, count in counts.items():
        rows = []
        for i in range(count):
            number += 1
            label = ("dog", "cat", "bird", "dog")[i % 4]
            words = [WORDS[(number // 20**place) % 20] for place in range(3)]
            rows.append({"text": " ".join([label, *words, *["now"] * (number % 3)]), "label": label})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def without_outside(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in OUTSIDE}


def only_cell(path: Path) -> Cell:
    (cell,) = read_suite(path).cells()
    return cell


def rows_of(path: Path) -> list[tuple[str, str]]:
    return [(row["text"], row["label"]) for row in map(json.loads, path.read_text().splitlines())]


WORDED = {
    "head": "verbalizer",
    "template": "{text} . It was {mask} .",
    "label_words": {"dog": "runs", "cat": "sits", "bird": "eats"},
}


def scripted(monkeypatch: pytest.MonkeyPatch, scores: dict[float, tuple[float, float]]) -> list[float]:
    """Let the contender "probe" report (dev, test) by learning rate; returns the rates that were asked for."""
    asked: list[float] = []

    def run(flat: dict[str, Any]) -> contenders.Outcome:
        rate = flat["learning_rate"]
        asked.append(rate)
        dev, test = scores[rate]
        return contenders.Outcome(dev, test, 7, int(rate), rate, [[1, dev]], 0.5, lambda: ([0, 1], [0, 1]), {"r": rate})

    one = contenders.Contender("scripted", frozenset({"learning_rate"}), True, run, lambda flat: None)
    monkeypatch.setitem(contenders.OTHERS, "scripted", one)
    return asked


def finished(method: str, task: str, seed: int, test: float | None, **other: Any) -> dict[str, Any]:
    """A finished run; 16 shots unless said otherwise."""
    made = {
        "suite": "s", "method": method, "task": task, "shots": 16, "rows": None, "seed": seed, "options": {},
        "status": "done", "error": None, "metric": "accuracy", "dev": test, "test": test, "parameters": 100, "steps": 30,
        "learning_rate": None, "trials": [], "curve": [], "extra": {}, "time": {"train_seconds": 1.0, "total_seconds": 2.0},
    }  # fmt: skip
    return {**made, **other}


def table_of(scores: dict[str, dict[str, list[float]]], **other: Any) -> list[dict[str, Any]]:
    """Lines of method -> task -> scores by seed."""
    return [
        finished(method, task, seed, value, **other)
        for method, tasks in scores.items()
        for task, values in tasks.items()
        for seed, value in enumerate(values)
    ]
