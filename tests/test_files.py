"""Files are written whole or not at all, and JSON without NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softprompt._files import to_json, write_json, write_text


def strict(text: str) -> Any:
    """Read JSON as other languages do: without NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


# ---------------------------------------------------------------- numbers that are none


def test_json_has_no_nan(tmp_path: Path) -> None:
    document = {
        "a": float("nan"),
        "b": [1.5, float("inf"), {"c": (-float("inf"), 2)}],
        "d": "NaN",
        "e": np.float64("nan"),
    }
    assert strict(to_json(document)) == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN", "e": None}
    write_json(tmp_path / "x.json", document)
    assert strict((tmp_path / "x.json").read_text())["a"] is None


# ---------------------------------------------------------------- disks and folders


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "before")
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (self.touch(), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        write_text(tmp_path / "a.txt", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "before"
