"""What a terminal sees of a run, and what stands in plain lines."""

from __future__ import annotations

import errno
import io
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import softprompt
from house.runs import call
from softprompt.cli.train.progress import Progress
from softprompt.training.keys.options import RunOptions


def test_the_bar_ends_with_the_scores_of_the_adapter_that_was_kept(
    made_options: Callable[..., RunOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress() as progress:
        result = softprompt.train(made_options(), callbacks=[progress.callback], progress=False, report=progress.report)
        notes = [task.fields["note"] for task in progress.bar.tasks]
        dev = [e["eval_accuracy"] for e in result.document["train_info"]["metrics"] if "eval_accuracy" in e]
        assert notes == [f"dev {dev[1]:.3f}"]  # of the last epoch: rows of the test evaluation are not dev rows
        progress.finish(result.metrics)
        accuracy = result.metrics["dev accuracy"], result.metrics["test accuracy"]
        assert progress.bar.tasks[0].fields["note"] == "dev {:.3f}, test {:.3f}".format(*accuracy)


def test_a_bar_without_work_draws_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress():
        pass
    assert capsys.readouterr().err == ""


def test_announcements_and_errors_are_plain_lines(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    words = ("train", "--backbone", encoder, "--data", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert call(monkeypatch, *words, "--method", "prompt_tuning") == 2
    lines = capsys.readouterr().err.split("\n")
    assert lines[-1] == "" and all(line and line == line.rstrip() for line in lines[:-1])
    assert [line for line in lines if line.startswith("error: ")] == [lines[-2]]
    assert any(re.match(r"dtype=\w+: .{20,}", line) and len(line) > 30 for line in lines), lines
    logging.getLogger("softprompt").handlers, logging.getLogger("softprompt").propagate = [], True


def test_an_error_of_the_system_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from softprompt.cli import app

    def fails() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.json")

    monkeypatch.setattr(app, "app", fails)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert call(monkeypatch, "methods") == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'x.json'\n"
