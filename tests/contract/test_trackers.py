"""Other software that watches a run reads what it expects: TensorBoard's own reader, offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from house.runs import options
from house.tiny import write_classification
from softprompt import train


def test_tensorboard_reads_losses_scores_and_shares(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    more = {"method": "infoprompt", "report_to": "tensorboard", "logging_strategy": "steps", "logging_steps": 1}
    result = train(options(encoder, write_classification(tmp_path / "data"), tmp_path / "run", **more), progress=False)
    board = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    tags = set(board.Tags()["scalars"])
    assert {"train/loss", "train/learning_rate", "eval/accuracy", "eval/loss"} <= tags
    assert any(tag.startswith("train/share of") for tag in tags)
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 17))
    scores = [event.value for event in board.Scalars("eval/accuracy")]
    assert max(scores) == pytest.approx(result.metrics["dev accuracy"], abs=1e-6)
