"""What is found before the first cell starts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from house.suites import WORDED
from softprompt import SoftPromptError
from softprompt.cli import main
from softprompt.experiments import checks, executors
from softprompt.experiments.checks import check_data
from softprompt.experiments.runner import run_suite
from softprompt.experiments.suite import Cell, read_suite
from softprompt.training import RunOptions
from softprompt.training.prepare import Prepared


class Never:
    """An executor that must not be reached."""

    def run(self, cells: Sequence[Cell], started: Any) -> Iterator[dict[str, Any]]:
        raise AssertionError("a cell was started")


def test_data_are_checked_before_the_first_cell(suite_file: Any, tmp_path: Path) -> None:
    for changes, message in (
        ({"shots": [99]}, "task 'animals': train.jsonl: class 'bird' has 20 rows, 99 shots want 99"),
        (
            {"shots": None, "rows": [16]},
            "rows: 16 takes 16 training rows and 128 others to choose by, but there are 60",
        ),
        (
            {"shots": None, "rows": [16], "scored_on": "train"},
            "rows: 16 takes 16 training rows and 628 others to choose by and to score, but there are 60",
        ),
        ({"tasks": {"animals": {"label_column": "lable"}}}, "task 'animals': "),
    ):
        with pytest.raises(SoftPromptError) as error:
            run_suite(read_suite(suite_file(**changes)), tmp_path / "out", executor=Never())
        assert message in str(error.value)
    assert not (tmp_path / "out" / "cells.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label_words": {**WORDED["label_words"], "dog": "unheard"}},
            "label word 'unheard' of class 'dog' is not in the tokenizer's vocabulary; try another word",
        ),
        ({"label_words": {"dog": "runs", "cat": "sits"}}, "label_words: no words for 'bird'"),
        ({"template": "It was {mask} ."}, "expected a {text}, got only mask"),
        ({"template": "{text} {text_pair} {mask} ."}, "expected a dataset with columns text, text_pair, label"),
        ({"max_length": 4}, "max_length=4 leaves no room for text: the template takes 7 tokens"),
        ({"backbone": "minilm"}, "holds no weights of a language model's head (cls.predictions.bias is missing)"),
        ({"method": "prompt_tuning", "num_virtual_tokens": 60}, "num_virtual_tokens=60 leaves no room for text: bert"),
        ({"method": "prompt_tuning", "max_length": 56}, "max_length=56: bert has 64 positions, 20 of them for virtual"),
    ],
    ids=str,
)
def test_heads_and_prompts_are_checked_before_the_first_cell(
    changes: dict[str, Any],
    message: str,
    suite_file: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    methods = {name: {"method": "zero_shot", **WORDED} for name in ("good", "wrong")}
    path = suite_file(methods={"good": methods["good"], "wrong": methods["wrong"] | changes}, seeds=[1, 2])
    monkeypatch.setattr(sys, "argv", ["softprompt", "bench", str(path), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        main()
    printed = capsys.readouterr()
    said = " ".join(printed.err.split())
    assert "task 'animals', method 'wrong': " in said and message in said and printed.out == ""
    assert said.count(message) == 1 and not (tmp_path / "out" / "cells.jsonl").exists()


@pytest.mark.parametrize("damage", ["file", "width"])
def test_a_damaged_backbone_is_named_before_the_first_cell(
    damage: str, suite_file: Any, backbone: Path, tmp_path: Path
) -> None:
    backbone = shutil.copytree(backbone, tmp_path / "damaged")
    if damage == "file":
        weights = backbone / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        file = backbone / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 7}))
    suite = read_suite(suite_file(methods={"zero_shot": {**WORDED, "backbone": str(backbone)}}))
    with pytest.raises(SoftPromptError, match=r"method 'zero_shot': backbone '.*damaged' cannot be loaded as Auto"):
        check_data(suite.cells())


def test_each_choice_of_options_is_tried_once(suite_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, gather = [], checks.gather

    def counted(options: RunOptions, **given: Any) -> Prepared:
        tried.append(options.head)
        return gather(options, **given)

    monkeypatch.setattr(checks, "gather", counted)
    methods = {
        "zero_shot": WORDED,
        "again": {"method": "zero_shot", **WORDED},
        "probe": None,
        "prompt_tuning": {"num_virtual_tokens": 4, "learning_rate": [1e-3, 1e-2]},
        "setfit": None,  # gathers nothing
    }
    suite = read_suite(suite_file(methods=methods, seeds=[1, 2], shots=[2, 4], unequal_budget=True))
    check_data(suite.cells())
    assert tried == ["verbalizer", "pooled", "pooled"]


def test_a_package_that_is_missing_is_named(suite_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "setfit", None)
    with pytest.raises(
        SoftPromptError, match=r"pip install 'softprompt\[setfit\]', or leave it out with --skip setfit"
    ):
        run_suite(read_suite(suite_file(methods={"setfit": None})), tmp_path / "out", executor=Never())
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SoftPromptError, match=r"--executor ray needs Ray; run: pip install 'softprompt\[ray\]'"):
        list(executors.Ray().run([], lambda cell: None))
