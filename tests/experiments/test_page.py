"""A suite's comparison as one page."""

from __future__ import annotations

from pathlib import Path

import pytest

from house.runs import call
from house.suites import table_of
from softprompt._files import to_json
from softprompt.experiments.page import comparison_page
from softprompt.experiments.statistics import Scores
from softprompt.experiments.tables import comparison_table, results_table

SCORES = {
    "plain": {"a": [0.5, 0.6, 0.7], "b": [0.4, 0.5, 0.6]},
    "<b>bold": {"a": [0.6, 0.7, 0.8], "b": [0.5, 0.6, 0.6]},
}


def test_the_page_holds_every_table_and_the_median_curves() -> None:
    lines = table_of(SCORES)
    for i, line in enumerate(lines):
        line["curve"] = [[10, 0.1 * (i % 3)], [20, 0.5]]
    scores = Scores(lines)
    tables = {"results": results_table(scores), "comparison": comparison_table(scores, "plain")}
    text = comparison_page("my <suite>", tables, scores)
    assert "my &lt;suite&gt;" in text and "<b>bold" not in text and "&lt;b&gt;bold" in text
    for table in tables.values():
        assert all(cell.text in text for line in table.lines for cell in line if "<" not in cell.text)
    assert text.count("<figure") == 2 and "Median over seeds." in text
    assert '["plain",10,10.0]' in text  # the median of 0, 0.1 and 0.2, in percent
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_command_writes_it_when_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cells.jsonl").write_text("".join(to_json(line) + "\n" for line in table_of(SCORES)))
    assert call(monkeypatch, "compare", str(tmp_path), "--output", str(tmp_path / "without")) == 0
    assert not (tmp_path / "without" / "comparison.html").exists()
    assert call(monkeypatch, "compare", str(tmp_path), "--html", "--output", str(tmp_path / "with")) == 0
    assert "comparison.html" in capsys.readouterr().out
    assert "<h2>Results</h2>" in (tmp_path / "with" / "comparison.html").read_text()
