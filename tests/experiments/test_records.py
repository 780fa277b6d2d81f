"""Results on disk: lines that were torn, or that are none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from softprompt import SoftPromptError
from softprompt.experiments.records import append_line, check_score, key_of, read_cells, read_lines


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


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"extra": "high"}, "extra is 'high': expected figures by name"),
        ({"extra": [1]}, "extra is [1]: expected figures by name"),
        ({"test": "0.5"}, "test is '0.5': expected a number or null"),
        ({"dev": [0.5]}, "dev is [0.5]: expected a number or null"),
        ({"curve": [[1]]}, "curve is [[1]]: expected pairs [step, score] of numbers"),
        ({"curve": [[1, "high"]]}, "curve is [[1, 'high']]: expected pairs [step, score] of numbers"),
        ({"curve": 3}, "curve is 3: expected pairs"),
        ({"trials": 3}, "trials is 3: expected a list"),
        ({"time": {"train_seconds": "long"}}, "time is {'train_seconds': 'long'}: expected seconds by name"),
        ({"parameters": "many"}, "parameters is 'many': expected a number or null"),
        ({"steps": float("inf")}, "steps is inf: expected a number or null"),
        ({"method": 3}, "method is 3: expected a name"),
        ({"options": "few"}, "options is 'few': expected options by name"),
        ({"rows": "all"}, "rows is 'all': expected a whole number or null"),
        ({"extra": {"best_step": "last"}}, "extra.best_step is 'last': expected a number"),
        ({"extra": {"last": {"dev": 0.5}}}, "extra.last is {'dev': 0.5}: expected scores by name, test among them"),
        ({"extra": {"layers": 3}}, "extra.layers is 3: expected a list of layers"),
        ({"extra": {"gates": [None]}}, "extra.gates is [None]: expected a list of numbers"),
        ({"test": 65.0}, "test is 65.0: expected an accuracy from 0 to 1"),
        ({"dev": -0.1}, "dev is -0.1: expected an accuracy from 0 to 1"),
        ({"extra": {"last": {"test": 65}}}, "extra.last.test is 65: expected an accuracy from 0 to 1"),
        ({"seed": "two"}, "seed is 'two': expected a whole number"),
        ({"seed": 2.5}, "seed is 2.5: expected a whole number"),
    ],
    ids=str,
)
def test_a_line_that_nothing_can_be_computed_with_is_one_message(
    more: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "cells.jsonl"
    good = {"extra": {"last": None, "matthews": -0.1}, "dev": None, "test": 1, "curve": [[2, None], [4, 0.5]]}
    lines = (line_of(1, **good), {**line_of(2), **more})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = f"{path}, line 2: expected a cell as softprompt bench writes it, but {reason}"
    with pytest.raises(SoftPromptError, match=re.escape(message)):
        read_cells(path)


def test_a_correlation_may_be_below_0(tmp_path: Path) -> None:
    append_line(tmp_path / "cells.jsonl", line_of(1, metric="matthews_correlation", test=-0.2))
    assert [line["test"] for line in read_lines(tmp_path / "cells.jsonl")] == [-0.2]


def test_blank_lines_are_no_cells(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text("\n  \n")
    assert read_lines(path) == []
    append_line(path, line_of(1))
    assert read_lines(path) == [line_of(1)]
    path.write_text("\nno cell \u00e4\n", encoding="utf-8")
    with pytest.raises(SoftPromptError, match="line 2: expected a cell as softprompt bench writes it, got no cell ä;"):
        read_lines(path)


def test_the_newest_line_of_a_cell_counts(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    for line in (line_of(1, "failed"), line_of(2), line_of(1, "done")):
        append_line(path, line)
    assert [(line["seed"], line["status"]) for line in read_cells(path).values()] == [(1, "done"), (2, "done")]
    assert key_of(line_of(1)) == key_of({**line_of(1), "options": {"a": 2, "b": 1}, "suite": "other"})


def test_a_trial_whose_score_is_no_number_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    for dev in (65.0, "high"):  # a trial is scored by any metric, in any units
        append_line(path, {"name": "a", "status": "done", "dev": dev})
    with pytest.raises(
        SoftPromptError, match="line 2: expected a trial, but dev is 'high': expected a number or null;"
    ):
        read_lines(path, lambda line: check_score(line, "dev"), "a trial")
