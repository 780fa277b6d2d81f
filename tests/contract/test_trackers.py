"""Other software that watches a run reads what it expects, by its own reader and offline: TensorBoard, W&B, Trackio."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from house.runs import options
from softprompt import train
from softprompt.training import RunResult

STEPS = 6  # of the run below


def tracked(encoder: Path, few_animals: Path, folder: Path, tracker: str) -> RunResult:
    """A short run of which each step is reported."""
    more = {"method": "infoprompt", "report_to": tracker, "logging_strategy": "steps", "logging_steps": 1}
    return train(options(encoder, few_animals, folder, **more, run_name="watched"), progress=False)


def test_tensorboard_reads_losses_scores_and_shares(
    encoder: Path, few_animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    result = tracked(encoder, few_animals, tmp_path / "run", "tensorboard")
    board = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    tags = set(board.Tags()["scalars"])
    assert {"train/loss", "train/learning_rate", "eval/accuracy", "eval/loss"} <= tags
    assert any(tag.startswith("train/share of") for tag in tags)
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, STEPS + 1))
    scores = [event.value for event in board.Scalars("eval/accuracy")]
    assert max(scores) == pytest.approx(result.metrics["dev accuracy"], abs=1e-6)


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: a log in blocks of 32 KiB, each record a message of wandb's own protocol in parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, part = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # all of it, or its last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb_keeps_an_offline_run(
    encoder: Path, few_animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="the tracker is the extra 'wandb'")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "CONSOLE": "off", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_PROJECT", "prompts")
    try:
        result = tracked(encoder, few_animals, tmp_path / "run", "wandb")
    finally:
        wandb.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(100):  # another process writes the file, and on a busy machine it is late
        records = list(wandb_records(file))
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(0.2)
    (run, *_) = [record.run for record in records if record.HasField("run")]
    assert run.project == "prompts" and run.display_name == "watched"
    logged = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    losses = {entry["train/global_step"]: entry["train/loss"] for entry in logged if "train/loss" in entry}
    assert list(losses) == list(range(1, STEPS + 1))
    assert any(name.startswith("train/share of") for entry in logged for name in entry)
    scores = [entry["eval/accuracy"] for entry in logged if "eval/accuracy" in entry]
    assert max(scores) == pytest.approx(result.metrics["dev accuracy"], abs=1e-6)


def test_trackio_keeps_a_run_on_disk(
    encoder: Path, few_animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "the extra 'trackio' is installed on its own: its Pillow is older than the one of the tests' constraints"
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "board"))  # read when it is imported
    trackio = pytest.importorskip("trackio", reason=reason)
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    result = tracked(encoder, few_animals, tmp_path / "run", "trackio")
    trackio.finish()
    (run,) = trackio.Api().runs("huggingface")  # transformers' name for a project that has none
    assert run.name == "watched" and run.config["logging_steps"] == 1
    logged = storage.get_logs("huggingface", run.name, run_id=run.id)
    losses = {entry["train/global_step"]: entry["train/loss"] for entry in logged if "train/loss" in entry}
    assert list(losses) == list(range(1, STEPS + 1))
    assert any(name.startswith("train/share of") for entry in logged for name in entry)
    scores = [entry["eval/accuracy"] for entry in logged if "eval/accuracy" in entry]
    assert max(scores) == pytest.approx(result.metrics["dev accuracy"], abs=1e-6)
