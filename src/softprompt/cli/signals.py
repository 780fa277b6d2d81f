"""Ctrl-C and SIGTERM: one line that says how to go on, and the exit code of the signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GOES_ON = {
    "train": "; the same command with --resume goes on",
    "bench": "; the same command goes on with the cells that are left",
}


class Stopped(BaseException):
    """A signal to stop. It is no KeyboardInterrupt: typer would end the program without a word."""

    def __init__(self, number: int):
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM end the program in order: it leaves locks and bars, says one line, and exits with 130 or 143.

    A second signal ends it at once. Processes that are forked inside keep the system's handlers. So do several processes of one
    launcher for SIGTERM: a process that waits for the others in a collective would not hear a handler of Python's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread handle signals
        return
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for each in SIGNALS:
            signal.signal(each, _leave)
        raise Stopped(number)

    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    before = {number: signal.signal(number, stop) for number in (SIGNALS if alone else SIGNALS[:1])}
    try:
        yield
    except BaseException as error:
        stopped = _stopped(error)
        if stopped is None:
            raise
        if os.environ.get("RANK", "0") == "0":
            command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
            print(f"stopped{GOES_ON.get(command, '')}.", file=sys.stderr, flush=True)
        sys.exit(128 + stopped.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(error: BaseException | None) -> Stopped | None:
    """Return the signal behind an error: libraries wrap what ends their work, or fail while they clean up."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)
