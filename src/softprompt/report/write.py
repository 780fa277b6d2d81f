"""A report of runs as a file: a page, or Markdown with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .._files import write_text
from .._types import SoftPromptError
from .markdown import write_markdown
from .page import page
from .runs import Run, read_runs


def write_report(
    folders: Sequence[str | Path], path: str | Path, backbone: str | None = None, data: str | Path | None = None
) -> list[Run]:
    """Write a page about the runs in ``folders`` to ``path``; it needs no network and no other file.

    A ``path`` that ends in ``.md`` gets Markdown, with its figures as SVG files beside it.

    Args:
        folders: of runs, as ``softprompt train`` writes them, or their names on the hub; also of runs that were killed, and of PEFT's methods.
        path: of the page.
        backbone: another place where the runs' backbone lies.
        data: labelled rows, on which each virtual token is measured; None measures none.

    Returns:
        The runs that were read.

    Raises:
        SoftPromptError: a folder is not there, or no run has written it; or ``path`` is no name for a page, or cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".html", ".htm", ".md"):
        raise SoftPromptError(f"{path}: expected a name that ends in .html or .md, got {path.name!r}.")
    if path.is_dir():
        raise SoftPromptError(f"{path}: expected the name of a file to write, got a folder; name a file in it.")
    runs = read_runs(folders, backbone, data)
    try:
        if path.suffix == ".md":
            write_markdown(runs, path)
        else:
            write_text(path, page(runs))
    except OSError as error:
        raise SoftPromptError(
            f"{path}: the report cannot be written there ({error.strerror}); choose another place."
        ) from error
    return runs
