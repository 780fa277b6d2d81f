"""Suites go on after errors and kills."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from house.suites import scripted, without_outside
from softprompt import SoftPromptError
from softprompt.experiments import contenders
from softprompt.experiments.cell import run_cell
from softprompt.experiments.records import key_of, read_lines
from softprompt.experiments.runner import run_suite
from softprompt.experiments.suite import Cell, read_suite
from softprompt.training.output.folder import only_run


def test_a_failing_cell_is_recorded_and_the_suite_goes_on(suite_file: Any, suite_data: Path, tmp_path: Path) -> None:
    """A learning rate that leaves no finite loss: known only when a cell trains."""
    broken = {"method": "prompt_tuning", "learning_rate": 1e30}
    path = suite_file(methods={"broken": broken, "probe": None})
    suite, output = read_suite(path), tmp_path / "out"
    told = Told()
    counts = run_suite(suite, output, watcher=told)
    expected = {"suite": "tiny", "cells": 2, "done": 1, "failed": 1, "results": str(output / "cells.jsonl")}
    assert counts == {**expected, "ran": 2, "skipped": 0}
    failed, done = read_lines(output / "cells.jsonl")
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert "expected finite losses and scores in the evaluation" in failed["error"]
    assert "\n" not in failed["error"] and "Error" not in failed["error"]
    assert failed["dev"] is None and failed["test"] is None and failed["trials"] == []
    assert list(failed) == list(done)
    assert told.seen == [("begin", 2), "broken", ("ended", "failed"), "probe", ("ended", "done")]

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
        contenders.OTHERS, "bad", contenders.Contender("bad", frozenset(), False, run, lambda flat: None)
    )
    line = run_cell(Cell("s", "m", "t", 4, None, 0, {"method": "bad"}, "messages"))
    assert line["status"] == "failed" and line["error"] == "KeyError: 'first\\n second'"


def test_a_cell_that_is_not_a_number_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {1: (float("nan"), 0.5)})
    line = run_cell(Cell("s", "m", "t", 4, None, 0, {"method": "scripted", "learning_rate": [1]}, "messages"))
    assert line["status"] == "failed" and line["error"].startswith("ValueError: Out of range float values")


def test_a_suite_has_its_folder_alone(suite_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, output = read_suite(suite_file(methods={"probe": None})), tmp_path / "out"
    with only_run(output), pytest.raises(SoftPromptError, match="another run is at work there"):
        run_suite(suite, output)
    output.write_text("mine")
    with pytest.raises(SoftPromptError, match="is a file; expected a folder"):
        run_suite(suite, output)
    assert output.read_text() == "mine"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SoftPromptError, match="a suite or a search runs in processes of its own: expected one"):
        run_suite(suite, tmp_path / "other")


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from softprompt.experiments import read_suite, run_suite
run_suite(read_suite(sys.argv[1]), sys.argv[2])
"""


def test_a_killed_suite_goes_on_without_repeating(suite_file: Any, tmp_path: Path) -> None:
    path, output = (
        suite_file(seeds=[1, 2, 3], methods={"probe": None, "prompt_tuning": {"num_virtual_tokens": 3}}),
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
