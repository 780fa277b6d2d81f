"""Executors: processes and Ray give what one process gives, and a dead worker is one failed cell."""

from __future__ import annotations

import signal
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest

from house.suites import QUICK, without_outside
from softprompt import SoftPromptError, experiments
from softprompt.experiments import executors
from softprompt.experiments.records import key_of
from softprompt.experiments.suite import Cell, Suite
from workers.cells import KILLING, start_and_die


@pytest.fixture(scope="module")
def reference(backbone: Path, suite_data: Path) -> tuple[Suite, dict[str, dict[str, Any]]]:
    """A suite with a cell that fails, and what one process makes of it."""
    defaults = {"backbone": str(backbone), **QUICK}
    methods = {
        "prompt_tuning": {"method": "prompt_tuning", "num_virtual_tokens": 3},
        "too long": {"method": "prompt_tuning", "num_virtual_tokens": 60},
        "probe": {"method": "probe"},
    }
    from softprompt.experiments.suite import Source

    suite = Suite("tiny", {"many": Source(str(suite_data / "many"), {})}, [(None, 32)], [1, 2], methods, defaults)
    lines = list(executors.InProcess().run(suite.cells(), lambda cell: None))
    return suite, {key_of(line): without_outside(line) for line in lines}


def test_a_pool_gives_what_one_process_gives(reference: tuple[Suite, dict[str, dict[str, Any]]]) -> None:
    suite, expected = reference
    assert Counter(line["status"] for line in expected.values()) == {"done": 4, "failed": 2}
    started: list[Cell] = []
    lines = list(experiments.ProcessPool(2).run(suite.cells(), started.append))
    assert {key_of(line): without_outside(line) for line in lines} == expected
    assert started == suite.cells()
    assert {line["environment"]["system_info"]["threads"] for line in lines} == {1}


@pytest.mark.slow
def test_a_dead_worker_is_a_failed_cell_and_no_more() -> None:
    cells = [Cell("s", "m", "t", 4, None, seed, {"method": "probe"}, "messages") for seed in range(4)]
    lines = {line["seed"]: line for line in experiments.ProcessPool(1).run(cells, lambda cell: None, KILLING)}
    assert [lines[seed]["status"] for seed in range(4)] == ["done", "failed", "failed", "done"]
    assert lines[1]["error"].startswith("the worker process ended with signal 9 (killed, perhaps for want of memory")
    assert lines[2]["error"] == "the worker process ended with exit code 3"
    assert lines[0]["process"] != lines[3]["process"]


@pytest.mark.slow
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


@pytest.mark.slow
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
