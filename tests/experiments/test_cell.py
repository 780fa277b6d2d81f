"""A cell: what it gives, the same twice, and how a learning rate is chosen."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import matthews_corrcoef

import softprompt
from house.suites import only_cell, rows_of, scripted, without_outside
from softprompt.experiments.cell import flat_options, run_cell
from softprompt.experiments.records import key_of
from softprompt.experiments.suite import Cell, read_suite

CONTENDERS = {
    "prompt_tuning": {"num_virtual_tokens": 3, "learning_rate": 0.01},
    "spt": {"budget": 1, "bottleneck": 4, "num_virtual_tokens": 2},
    "peft:p_tuning": {"num_virtual_tokens": 3},
    "probe": {},
    "full_finetuning": {"num_train_epochs": 3, "learning_rate": 1e-3},
}


@pytest.mark.parametrize("method", [*CONTENDERS, "setfit"])
def test_two_runs_of_a_cell_are_equal_but_for_time_and_environment(
    method: str, suite_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if method == "setfit":
        pytest.importorskip("setfit")
    own = {"setfit": {"num_iterations": 1, "batch_size": 8}, **CONTENDERS}[method]
    cell = only_cell(suite_file(methods={method: own}))
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


def test_a_cell_is_what_softprompt_train_gives(suite_file: Any, tmp_path: Path) -> None:
    cell = only_cell(suite_file())
    line = run_cell(cell)
    options = softprompt.RunOptions.from_flat(flat_options(cell, tmp_path / "data", tmp_path / "out", None))
    info = softprompt.train(options, progress=False).document["train_info"]
    assert (line["dev"], line["test"]) == (info["dev accuracy"], info["test accuracy"])
    assert (line["parameters"], line["steps"]) == (info["num_trainable_params"], info["train_steps"])
    assert line["extra"]["probe"] == info["probe"]
    assert line["curve"] == [[info["train_steps"], info["dev accuracy"]]]  # of one epoch: what was evaluated is kept


def test_a_cell_notes_whether_the_mechanism_acted(suite_file: Any, tmp_path: Path) -> None:
    """What the run's result.json has; of a search of layers it stands under names of its own."""
    small = {"num_virtual_tokens": 3, "max_steps": 2}
    methods = {
        "ept": {**small, "rank": 2, "num_spaces": 2},
        "tsloss": {**small, "share_every": 1},
        "prompt_tuning": small,
    }
    ept, tsloss, plain = (run_cell(cell)["extra"] for cell in read_suite(suite_file(methods=methods)).cells())
    assert len(ept["mechanism"]["gates"]) == 2 and 0 < ept["mechanism"]["fusion_entropy"] <= 1
    assert tsloss["mechanism"]["gradient_share"] and "mechanism" not in plain
    spt = run_cell(only_cell(suite_file(methods={"spt": {**small, "budget": 1, "bottleneck": 2}})))["extra"]
    assert spt["layer_scores"] and not any(name.startswith("layer") for name in spt.get("mechanism", {}))


@pytest.mark.parametrize("method", ["prompt_tuning", "full_finetuning"])
def test_a_cell_scores_the_last_step_where_it_is_asked_for(method: str, suite_file: Any) -> None:
    """Against the same cell that keeps its last step; the chosen checkpoint is the one with the highest dev loss."""
    worst = {"metric_for_best_model": "loss", "greater_is_better": True, "num_train_epochs": 3, "learning_rate": 3e-3}
    own = {"prompt_tuning": {"num_virtual_tokens": 3, "learning_rate": 0.05}}.get(method, {})
    methods = {
        "both": {"method": method, **worst, **own, "score_last": True},
        "last": {"method": method, **worst, **own, "load_best_model_at_end": False},
        "chosen": {"method": method, **worst, **own},
    }
    both, last, chosen = (run_cell(cell) for cell in read_suite(suite_file(methods=methods)).cells())
    assert both["status"] == "done", both["error"]
    assert both["extra"]["best_step"] < both["steps"]
    assert both["extra"].pop("last") == {"dev": last["dev"], "test": last["test"]}
    same = ("dev", "test", "curve", "extra", "steps")
    assert {key: both[key] for key in same} == {key: chosen[key] for key in same}


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


def test_a_grid_trains_each_rate(suite_file: Any) -> None:
    cell = only_cell(suite_file(methods={"prompt_tuning": {"num_virtual_tokens": 3}}, learning_rates=[1e-6, 0.3]))
    line = run_cell(cell)
    assert [trial["learning_rate"] for trial in line["trials"]] == [1e-6, 0.3]
    singles = [
        run_cell(only_cell(suite_file(methods={"prompt_tuning": {"num_virtual_tokens": 3, "learning_rate": rate}})))
        for rate in (1e-6, 0.3)
    ]
    assert [trial["dev"] for trial in line["trials"]] == [single["dev"] for single in singles]
    best = max(singles, key=lambda single: single["dev"])
    assert all(line[key] == best[key] for key in ("dev", "test", "curve", "learning_rate"))


def test_matthews_is_that_of_the_test_rows(suite_file: Any, suite_data: Path, tmp_path: Path) -> None:
    """Against scikit-learn on the predictions of the saved adapter."""
    cell = only_cell(
        suite_file(tasks=["hidden"], methods={"prompt_tuning": {"learning_rate": 0.05, "num_virtual_tokens": 3}})
    )
    line = run_cell(cell)
    flat = flat_options(cell, tmp_path / "data", tmp_path / "out", None)
    softprompt.train(softprompt.RunOptions.from_flat(flat), progress=False)
    rows = rows_of(suite_data / "hidden" / "validation.jsonl")
    found = [
        row["label"] for row in softprompt.Predictor(tmp_path / "out").predict([{"text": text} for text, _ in rows])
    ]
    assert line["extra"]["matthews"] == pytest.approx(matthews_corrcoef([label for _, label in rows], found))
