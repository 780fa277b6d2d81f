"""How a suite, or a search, gets on, for people: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from datetime import timedelta
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Watch:
    """Show the jobs done, running and failed, and the time that is left if the rest goes on at the same pace.

    Args:
        console: shows a live line where ``stdout`` is a terminal.
        stdout: gets one plain line per job where it is no terminal.
    """

    what, jobs = "suite", "cells"

    def __init__(self, console: Console, stdout: TextIO | None = None):
        self.stdout = sys.stdout if stdout is None else stdout
        self.live = self.stdout.isatty()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.counts: Counter[str] = Counter()
        self.running = self.todo = 0
        self.since = time.monotonic()

    def begin(self, suite: str, todo: int, skipped: Counter[str]) -> None:
        self.todo, self.since = todo, time.monotonic()
        before = ", ".join(f"{count} {status} before" for status, count in sorted(skipped.items()))
        self._say(f"{self.what} {suite}: {todo} {self.jobs} to run" + (f" ({before})" if before else ""))
        if self.live:
            self.task = self.bar.add_task(suite, total=todo, note="")
            self.bar.start()

    def started(self, job: Any) -> None:
        self.running += 1
        self._refresh()

    def ended(self, line: dict[str, Any]) -> None:
        self.running -= 1
        self.counts[line["status"]] += 1
        over = self.counts.total()
        where, score, seconds = self._told(line)
        what = score if line["status"] == "done" else f"FAILED {line['error']}"
        self._say(f"{over}/{self.todo} {where}: {what} ({seconds:.0f} s; {self._note()})")
        self._refresh()

    def _told(self, line: dict[str, Any]) -> tuple[str, str, float]:
        """Which job it was, its score in words, and the seconds."""
        setting = f"{line['shots']} shots" if line["shots"] else f"{line['rows'] or 'all'} rows"
        where = f"{line['task']}, {setting}, seed {line['seed']}, {line['method']}"
        return where, f"test {line['test'] or 0.0:.4f}", line["time"]["total_seconds"]

    def _note(self) -> str:
        over = self.counts.total()
        left = (time.monotonic() - self.since) / over * (self.todo - over) if over else None
        parts = [f"{self.counts['done']} done", f"{self.running} running", f"{self.counts['failed']} failed"]
        return ", ".join([*parts, "" if left is None else f"ETA {timedelta(seconds=round(left))}"]).rstrip(", ")

    def _say(self, text: str) -> None:
        if self.live:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stdout, flush=True)

    def _refresh(self) -> None:
        if self.live:
            self.bar.update(self.task, completed=self.counts.total(), note=self._note())

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()


class TrialWatch(Watch):
    """The same of the trials of a search; it shows dev scores, for no test row is looked at before one is chosen, and each one's rank so far."""

    what, jobs = "search", "trials"

    def _told(self, line: dict[str, Any]) -> tuple[str, str, float]:
        return (
            line["name"],
            f"dev {line['metric']} {line['dev'] or 0.0:.4f}, rank {line['rank']} so far",
            line["seconds"],
        )
