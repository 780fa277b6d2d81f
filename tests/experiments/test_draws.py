"""Which rows a cell sees."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import softprompt
from house.suites import only_cell, rows_of, write_distinct
from softprompt import SoftPromptError
from softprompt.experiments.cell import flat_options, run_cell
from softprompt.experiments.draws import DEV_ROWS, SCORED_ROWS, draw_rows
from softprompt.experiments.records import key_of
from softprompt.experiments.suite import Cell


@pytest.mark.parametrize(("task", "hidden"), [("many", False), ("no_test", True)])
def test_drawn_rows_never_meet_the_test_rows(task: str, hidden: bool, suite_data: Path, tmp_path: Path) -> None:
    source = suite_data / task
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


def test_rows_are_drawn_as_in_the_published_tables(suite_data: Path, tmp_path: Path) -> None:
    """Figures in results/suites are of drawn rows: another draw would make them those of another suite."""
    for seed, digest in ((13, "786ceb00abaab88a"), (21, "2f521b6b832acf6a")):
        folder = draw_rows(suite_data / "many", tmp_path / str(seed), 64, seed, {})
        drawn = [rows_of(folder / f"{name}.jsonl") for name in ("train", "validation")]
        assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == digest


@pytest.fixture
def plenty(tmp_path: Path) -> Path:
    """A task with training rows enough to train, to choose by and to score."""
    write_distinct(tmp_path / "plenty", train=1000, test=40)
    return tmp_path / "plenty"


def test_scored_training_rows_are_none_that_train_or_choose_and_no_test_rows(plenty: Path, tmp_path: Path) -> None:
    seen = {}
    for seed in (1, 2):
        drawn = draw_rows(plenty, tmp_path / f"train-{seed}", 64, seed, {}, "train")
        usual = draw_rows(plenty, tmp_path / f"test-{seed}", 64, seed, {})
        parts = {name: rows_of(drawn / f"{name}.jsonl") for name in ("train", "validation", "test")}
        assert [len(part) for part in parts.values()] == [64, DEV_ROWS, SCORED_ROWS] and SCORED_ROWS >= 400
        for name in ("train", "validation"):  # what a cell learns from does not depend on where it is scored
            assert parts[name] == rows_of(usual / f"{name}.jsonl")
        together = [row for part in parts.values() for row in part]
        assert len(set(together)) == len(together) and set(together) < set(rows_of(plenty / "train.jsonl"))
        assert not set(together) & set(rows_of(plenty / "test.jsonl"))
        assert Counter(label for _, label in parts["test"]) == {"dog": 250, "cat": 125, "bird": 125}
        seen[seed] = set(parts["test"])
    assert seen[1] != seen[2]
    with pytest.raises(
        SoftPromptError, match=r"expected 600 training rows and 128 and 500 others, but 1000 rows with 3"
    ):
        draw_rows(plenty, tmp_path / "many", 600, 1, {}, "train")


def test_a_cell_that_is_scored_on_training_rows_is_another_cell(plenty: Path, suite_file: Any, tmp_path: Path) -> None:
    own = {"data": str(plenty.parent), "tasks": ["plenty"], "shots": None, "rows": [30]}
    usual, other = only_cell(suite_file(**own)), only_cell(suite_file(**own, scored_on="train"))
    assert usual.options == other.options and usual.key != other.key
    lines = [run_cell(usual), run_cell(other)]
    assert [line["status"] for line in lines] == ["done", "done"]
    assert "scored_on" not in lines[0] and lines[1]["scored_on"] == "train"
    assert [key_of(line) for line in lines] == [usual.key, other.key]
    assert [line["extra"]["rows"]["test"] for line in lines] == [40, SCORED_ROWS]
    assert lines[0]["dev"] == lines[1]["dev"] and lines[0]["curve"] == lines[1]["curve"]


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


def test_published_splits_are_used_as_they_are(suite_file: Any, suite_data: Path, tmp_path: Path) -> None:
    cell = only_cell(suite_file(tasks=["hidden"]))
    flat = flat_options(cell, tmp_path / "data", tmp_path / "out", None)
    task = softprompt.load_task(flat["data"], shots=flat["shots"], seed=flat["seed"])
    published = suite_data / "hidden" / "kshot" / "4-13"
    found = {
        name: [(row["text"], task.label_names[row["label"]]) for row in part.to_list()]
        for name, part in (("train", task.train), ("dev", task.dev), ("test", task.test))
        if part is not None
    }
    assert found["train"] == rows_of(published / "train.jsonl") and found["dev"] == rows_of(published / "dev.jsonl")
    assert found["test"] == rows_of(suite_data / "hidden" / "validation.jsonl")
    together = [row for part in found.values() for row in part]
    assert len(set(together)) == len(together)
    line = run_cell(cell)
    assert line["extra"]["files"]["train"] == "kshot/4-13/train.jsonl"
    assert line["extra"]["overlap"] == {"train/dev": 0, "train/test": 0, "dev/test": 0}
    assert -1 <= line["extra"]["matthews"] <= 1  # info.json asks for it


def test_a_draw_does_not_depend_on_the_order_of_the_classes(tmp_path: Path) -> None:
    write_distinct(tmp_path / "s", train=300, test=30)
    found = []
    for n, names in enumerate((["bird", "cat", "dog"], ["dog", "bird", "cat"])):
        (tmp_path / "s" / "info.json").write_text(json.dumps({"labels": names}))
        found.append(rows_of(draw_rows(tmp_path / "s", tmp_path / str(n), 64, 1, {}) / "train.jsonl"))
    assert found[0] == found[1]
