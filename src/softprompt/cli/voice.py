"""How the command line speaks: results on stdout, all else on stderr, and only this library's announcements."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .._environment import quiet_libraries

err = Console(stderr=True)  # stdout carries results only


def is_first() -> bool:
    """Say whether this is the first process of a launcher (accelerate, torchrun), or the only one."""
    return os.environ.get("RANK", "0") == "0"


class _Announcements(logging.Handler):
    """Print one line for each announcement, however wide the terminal is: a log has no columns."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(record.getMessage(), markup=False, soft_wrap=True)


def quiet() -> None:
    """Show this library's announcements, of one process only, and only errors of the libraries below."""
    logger = logging.getLogger("softprompt")
    logger.handlers, logger.propagate = [_Announcements()], False
    logger.setLevel(logging.INFO if is_first() else logging.ERROR)
    quiet_libraries()


def table(title: str, header: Iterable[str], lines: Iterable[Iterable[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in header:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line))
    return table
