"""Results on disk: lines that were torn, one writer."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from softprompt import SoftPromptError
from softprompt.experiments.records import append_line, key_of, only_writer, read_cells, read_lines


def line_of(seed: int, status: str = "done", **more: Any) -> dict[str, Any]:
    key = {"method": "m", "options": {"b": 1, "a": 2}, "task": "t", "shots": 4, "rows": None, "seed": seed}
    return {**key, "status": status, **more}


def test_a_torn_last_line_is_dropped_and_repaired(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    assert read_lines(path) == []
    append_line(path, line_of(1))
    append_line(path, line_of(2, text="ü\n"))
    whole = path.read_bytes()
    for cut in (1, 10, len(whole) - whole.index(b"\n") - 2):  # also a line that only lacks its end
        path.write_bytes(whole[:-cut])
        assert read_lines(path) == [line_of(1)]
        append_line(path, line_of(3))
        assert read_lines(path) == [line_of(1), line_of(3)]
        assert path.read_bytes().count(b"\n") == 2
    path.write_bytes(b"{half\n" + whole)
    with pytest.raises(SoftPromptError, match=r"cells.jsonl, line 1: expected a cell as softprompt bench writes it"):
        read_lines(path)


@pytest.mark.parametrize("more", [{"extra": "high"}, {"extra": [1]}, {"test": "0.5"}, {"dev": [0.5]}], ids=str)
def test_a_line_with_values_of_another_type_is_one_message(more: dict[str, Any], tmp_path: Path) -> None:
    append_line(tmp_path / "cells.jsonl", line_of(1, extra=None, dev=None, test=0.5))
    append_line(tmp_path / "cells.jsonl", line_of(2, **more))
    with pytest.raises(SoftPromptError, match=r"cells.jsonl, line 2: expected a cell as softprompt bench writes it"):
        read_cells(tmp_path / "cells.jsonl")


def test_the_newest_line_of_a_cell_counts(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    for line in (line_of(1, "failed"), line_of(2), line_of(1, "done")):
        append_line(path, line)
    assert [(line["seed"], line["status"]) for line in read_cells(path).values()] == [(1, "done"), (2, "done")]
    assert key_of(line_of(1)) == key_of({**line_of(1), "options": {"a": 2, "b": 1}, "suite": "other"})


def take(folder: Path, said: Any) -> None:
    """What a second run does."""
    try:
        only_writer(folder).__enter__()
    except SoftPromptError as error:
        said.send(str(error))


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    context = get_context("fork")  # a process of its own that imports nothing anew
    hears, says = context.Pipe(duplex=False)
    with only_writer(tmp_path):
        other = context.Process(target=take, args=(tmp_path, says))
        other.start()
        other.join(60)
        assert hears.poll() and "another softprompt bench writes there" in hears.recv()
    with only_writer(tmp_path):
        pass
