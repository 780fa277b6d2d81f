"""`softprompt train --log`: a line per step, whole at any moment, and going on where a run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from house.runs import call
from house.tiny import write_classification


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_and_every_evaluation_is_a_line(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, log = write_classification(tmp_path / "data"), tmp_path / "logs" / "run.jsonl"
    words = ["train", "--backbone", encoder, "--data", data, "--method", "prompt_tuning", "--log", log]
    small = ["--set", "max_length=24", "--set", "dtype=float32", "--set", "per_device_train_batch_size=8"]
    assert call(monkeypatch, *words, *small, "--output", tmp_path / "run", "--set", "num_train_epochs=2") == 0
    written = lines(log)
    steps = [line["step"] for line in written if "loss" in line]
    assert steps == list(range(1, 17)) and all(line["learning_rate"] >= 0 for line in written if "loss" in line)
    assert [line["step"] for line in written if "eval_accuracy" in line][:2] == [8, 16]
    assert all(0 < line["epoch"] <= 2 for line in written)
    capsys.readouterr()
    assert call(monkeypatch, *words, *small, "--output", tmp_path / "again", "--set", "max_steps=1") == 0
    assert max(line["step"] for line in lines(log)) == 1  # another run begins anew


def test_a_log_that_cannot_be_written_is_said(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classification(tmp_path / "data")
    words = ["train", "--backbone", encoder, "--data", data, "--method", "prompt_tuning", "--output", tmp_path / "run"]
    assert call(monkeypatch, *words, "--log", tmp_path) == 2
    assert f"--log {tmp_path}: expected a file that can be written" in capsys.readouterr().err
    assert not (tmp_path / "run" / "result.json").exists()
