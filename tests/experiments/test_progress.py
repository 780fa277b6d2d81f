"""A live line on a terminal."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

from rich.console import Console

from house.suites import only_cell
from softprompt.experiments.progress import Watch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_line(suite_file: Any) -> None:
    screen, stdout = io.StringIO(), Terminal()
    cell = only_cell(suite_file())
    with Watch(Console(file=screen, force_terminal=True, width=200), stdout) as watch:
        watch.begin("tiny", 2, Counter(done=3))
        watch.started(cell)
        line = {"task": "t", "shots": None, "rows": 64, "seed": 1, "method": "m", "error": "boom", "test": None}
        watch.ended({**line, "status": "failed", "time": {"total_seconds": 1.0}})
    shown = screen.getvalue()
    assert stdout.getvalue() == ""
    assert "suite tiny: 2 cells to run (3 done before)" in shown
    assert "1/2 t, 64 rows, seed 1, m: FAILED boom (1 s; 0 done, 0 running, 1 failed, ETA 0:00:" in shown
    assert any("━" in row and "1/2" in row and "1 failed" in row for row in shown.splitlines())
