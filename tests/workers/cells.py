"""What stands for the cells of a suite in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from softprompt.experiments import executors
from softprompt.experiments.cell import failed_line
from softprompt.experiments.executors import Work
from softprompt.experiments.suite import Cell


def kill_self(cell: Cell, threads: int) -> dict[str, Any]:
    """Stands for `run_cell` in a worker: some cells take their process with them."""
    if cell.seed in (1, 2):
        os.kill(os.getpid(), signal.SIGKILL) if cell.seed == 1 else os._exit(3)
    return {"seed": cell.seed, "status": "done", "process": os.getpid()}


KILLING = Work(kill_self, failed_line)


def sleep_long(cell: Cell, threads: int) -> dict[str, Any]:
    """Stands for `run_cell` in a worker: says who it is, and does not come back."""
    Path(cell.source).write_text(str(os.getpid()))
    time.sleep(600)
    return {}


def start_and_die(note: Path) -> None:
    """A suite's process that is killed in the middle of a cell."""
    worker = executors._Worker(0, 1)
    cell = Cell("s", "m", "t", 4, None, 0, {"method": "probe"}, str(note))
    worker.connection.send((Work(sleep_long, failed_line), cell))
    while not note.is_file() or not note.read_text():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
