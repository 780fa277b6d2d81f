"""`softprompt bench` and its kin on the command line: suites, single cells, comparisons."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from house.suites import only_cell
from softprompt import SoftPromptError, experiments
from softprompt.cli import main
from softprompt.experiments import executors
from softprompt.experiments.cell import run_cell
from softprompt.experiments.records import read_lines

# ---------------------------------------------------------------- executors


@pytest.mark.parametrize(
    ("name", "workers", "expected"),
    [
        ("auto", 1, executors.InProcess(3)),
        ("auto", 2, executors.ProcessPool(2, 3)),
        ("in-process", 2, executors.InProcess(3)),
        ("pool", 1, executors.ProcessPool(1, 3)),
        ("ray", 2, executors.Ray("auto", 2.0, 0.5, 4, 3)),
    ],
)
def test_the_command_line_names_an_executor(name: str, workers: int, expected: executors.Executor) -> None:
    flags = {"threads": 3, "address": "auto", "cpus_per_cell": 2.0, "gpus_per_cell": 0.5, "retries": 4}
    assert executors.make_executor(name, workers=workers, **flags) == expected


# ---------------------------------------------------------------- command line


def call(monkeypatch: pytest.MonkeyPatch, *words: object, command: str = "bench") -> int:
    monkeypatch.setattr(sys, "argv", ["softprompt", command, *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_bench_on_the_command_line(
    suite_file: Any,
    suite_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    methods = {"probe": None, "broken": {"method": "prompt_tuning", "learning_rate": 1e30}}
    path = suite_file(methods=methods, seeds=[1, 2], data=None)
    assert call(monkeypatch, path) == 2
    assert "give --data DIR" in " ".join(capsys.readouterr().err.split())
    assert call(monkeypatch, path, "--data", suite_data, "--list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "0 animals, 4 shots, seed 1, probe",
        "1 animals, 4 shots, seed 1, broken",
        "2 animals, 4 shots, seed 2, probe",
        "3 animals, 4 shots, seed 2, broken",
    ]
    assert call(monkeypatch, path, "--data", suite_data, "--only", "seed 2") == 1  # a cell failed
    lines = capsys.readouterr().out.splitlines()
    results = Path("bench-output/tiny/cells.jsonl")
    assert lines[0] == "suite tiny: 2 cells to run" and len(lines) == 4
    assert lines[1].startswith("1/2 animals, 4 shots, seed 2, probe: test 0.")
    assert "2/2 animals, 4 shots, seed 2, broken: FAILED expected finite losses" in lines[2]
    assert "1 done, 0 running, 1 failed" in lines[2]
    expected = {"suite": "tiny", "cells": 2, "done": 1, "failed": 1, "ran": 2, "skipped": 0, "results": str(results)}
    assert json.loads(lines[-1]) == expected and len(read_lines(results)) == 2
    assert call(monkeypatch, path, "--data", suite_data, "--skip", "broken") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "suite tiny: 1 cells to run (1 done before)"
    assert json.loads(lines[-1]) == {**expected, "done": 2, "failed": 0, "ran": 1, "skipped": 1}
    for words, message in (
        (("--only", "nothing"), "--method, --only and --skip leave no cell of 4; see --list"),
        (("--method", "prompt"), "unknown method of the suite 'prompt': expected one of"),
        (("--executor", "rays"), "unknown executor 'rays': expected one of auto, in-process, pool, ray."),
        (("--print-cell", 9), "--print-cell 9: expected a number from 0 to 3; see --list."),
        (("--print-cell", 0), "'probe' is known to softprompt bench only; softprompt train has prompt_tuning"),
    ):
        assert call(monkeypatch, path, "--data", suite_data, *words) == 2
        printed = capsys.readouterr()
        assert message in " ".join(printed.err.split()) and printed.out == ""


def test_a_name_that_stands_twice_in_a_suite_is_refused(
    suite_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = suite_file(methods={"probe": None, "other": {"method": "probe"}}, tasks={"animals": None, "others": None})
    text = path.read_text()
    for name, twice in (("other", "probe"), ("others", "animals")):
        path.write_text(text.replace(f"  {name}:", f"  {twice}:"))
        assert call(monkeypatch, path, "--output", tmp_path / "out") == 2
        said = " ".join(capsys.readouterr().err.split())
        assert re.search(rf"{path.name}: ambiguous: the key '{twice}' stands in line \d+ and again in line \d+;", said)


def test_a_printed_cell_is_a_run_of_softprompt_train(
    suite_file: Any,
    suite_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = suite_file(
        tasks=["many"],
        shots=None,
        rows=[30],
        learning_rates=[0.01, 0.02],
        methods={"prompt_tuning": {"num_virtual_tokens": 3}},
    )
    assert call(monkeypatch, path, "--output", tmp_path / "out", "--print-cell", 0) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# many, 30 rows, seed 13, prompt_tuning\n# learning_rate is the first of [0.01, 0.02]")
    (tmp_path / "run.yaml").write_text(printed)
    monkeypatch.setattr(sys, "argv", ["softprompt", "train", "--config", str(tmp_path / "run.yaml")])
    with pytest.raises(SystemExit, match="0"):
        main()
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    line = run_cell(only_cell(path))
    assert scores["dev accuracy"] == line["trials"][0]["dev"]


# ---------------------------------------------------------------- comparing


def cells_file(folder: Path) -> Path:
    """Two methods on one task with three seeds; one cell failed."""
    lines = []
    for method, scores in (("plain", (0.70, 0.72, 0.74)), ("deep", (0.76, 0.75, None))):
        for seed, score in enumerate(scores):
            lines.append(
                {"suite": "s", "method": method, "task": "t", "shots": 16, "rows": None, "seed": seed, "options": {}}
                | {"status": "failed" if score is None else "done", "error": "boom" if score is None else None}
                | {"metric": "accuracy", "dev": score, "test": score, "parameters": 10, "steps": 4}
                | {"curve": [[2, 0.5], [4, score or 0.0]], "time": {"train_seconds": 2.0, "total_seconds": 3.0}}
            )
    folder.mkdir()
    (folder / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "cells.jsonl"


def test_compare_writes_tables_and_figures(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = cells_file(tmp_path / "out")
    assert call(monkeypatch, cells.parent, command="compare") == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["output"] == str(tmp_path / "out" / "comparison")
    folder = Path(document["output"])
    names = ("results", "comparison", "cost", "steps", "checkpoints", "mechanisms")
    assert document["files"][:18] == [f"{name}.{kind}" for name in names for kind in ("md", "tex", "csv")]
    assert sorted(document["files"]) == sorted(path.name for path in folder.iterdir())
    text = (folder / "comparison.md").read_text()
    assert "The intervals are too short: they resample 2 seeds of a setting." in text
    assert "| deep | +4.5 |" in text and "deep on t, 16 shots, seed 2 (failed: boom)" in text


def test_compare_needs_cells_and_a_method_among_them(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="expected cells of softprompt bench, but there is no such file; run a"):
        experiments.write_comparison(tmp_path / "cells.jsonl", tmp_path / "out")
    for text in ("", "\n\n"):
        (tmp_path / "cells.jsonl").write_text(text)
        with pytest.raises(SoftPromptError, match="expected cells of softprompt bench, but the file has no cells; run"):
            experiments.write_comparison(tmp_path / "cells.jsonl", tmp_path / "out")
    cells = cells_file(tmp_path / "run")
    failed = [line for line in cells.read_text().splitlines() if '"failed"' in line]
    (tmp_path / "cells.jsonl").write_text("".join(line + "\n" for line in failed))
    with pytest.raises(SoftPromptError, match="expected cells of softprompt bench, at least one of them done, got 1"):
        experiments.write_comparison(tmp_path / "cells.jsonl", tmp_path / "out")
    with pytest.raises(SoftPromptError, match="unknown reference 'dep': expected one of plain, deep"):
        experiments.write_comparison(cells, tmp_path / "out", "dep")
    with pytest.raises(SoftPromptError, match="unknown method in these results 'dep': expected one of plain, deep"):
        experiments.write_comparison(cells, tmp_path / "out", methods=["dep"])
    with pytest.raises(SoftPromptError, match="--method, --only and --skip leave no finished cell of"):
        experiments.write_comparison(cells, tmp_path / "out", only=["seed 99"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"curve": [[1]]}, "curve is [[1]]: expected pairs [step, score] of numbers"),
        ({"test": 65.0}, "test is 65.0: expected an accuracy from 0 to 1"),
        ({"seed": "two"}, "seed is 'two': expected a whole number"),
    ],
    ids=str,
)
def test_compare_refuses_a_damaged_cell(
    change: dict[str, Any],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = cells_file(tmp_path / "run")
    lines = [json.loads(line) for line in cells.read_text().splitlines()]
    cells.write_text("".join(json.dumps(line) + "\n" for line in (*lines[:2], lines[2] | change, *lines[3:])))
    assert call(monkeypatch, cells, command="compare") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"line 3: expected a cell as softprompt bench writes it, but {reason}; repair or remove the line." in said
    assert not (tmp_path / "run" / "comparison").exists()


def test_compare_takes_a_part_of_the_cells(tmp_path: Path, monkeypatch: Any) -> None:
    cells = cells_file(tmp_path / "run")
    assert call(monkeypatch, cells, "--output", tmp_path / "one", "--method", "deep", command="compare") == 0
    assert "plain" not in (tmp_path / "one" / "results.md").read_text()
    assert call(monkeypatch, cells, "--output", tmp_path / "two", "--skip", "seed 2", command="compare") == 0
    comparison = (tmp_path / "two" / "comparison.md").read_text()
    assert "| deep |" in comparison and "failed: boom" not in comparison
