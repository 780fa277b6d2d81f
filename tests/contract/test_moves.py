"""A run's folder is moved, to another place or another machine: the place where it was trained is gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt
from house.runs import StopAfter, call, options, train_shortly, values
from house.tiny import save_backbone, write_classification

ROWS = '{"text": "red dog"}\n{"text": "blue cat runs"}\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a backbone and rows."""
    project = tmp_path / "before"
    save_backbone(project / "encoder")
    write_classification(project / "rows", rows=24)
    monkeypatch.chdir(project)
    yield project


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Exit code, stdout and stderr of a command."""

    def said(*words: object) -> tuple[int, str, str]:
        code = call(monkeypatch, *words, stdin=ROWS)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return said


def used(said: Any, run: Path, *more: object) -> list[str]:
    """What the commands that use a run print of it; each must end well."""
    done = [
        said("predict", run, *more),
        said("eval", run, "--data", "rows/test.jsonl", *more),
        said("inspect", run, "--json", *more),
        said("report", run, "-o", "page.html", *more),
    ]
    assert [code for code, _, _ in done] == [0, 0, 0, 0], [error for _, _, error in done]
    seen = json.loads(done[2][1])
    assert seen.pop("adapter") == str(run)
    page = Path("page.html").read_text(encoding="utf-8")
    assert "cannot be read" not in page and "No look at" not in page
    return [done[0][1], done[1][1], json.dumps(seen)]


@pytest.mark.parametrize("absolute", [True, False])
def test_a_run_that_is_moved_is_used_as_before(project: Path, tmp_path: Path, said: Any, absolute: bool) -> None:
    backbone = project / "encoder" if absolute else Path("encoder")
    run = train_shortly(backbone, Path("rows"), project / "runs" / "tone", track="topology")
    expected = used(said, run)
    moved = tmp_path / "elsewhere" / "tone"
    moved.parent.mkdir()
    shutil.move(run, moved)
    run.parent.rmdir()
    assert used(said, moved) == expected


def test_a_run_and_its_backbone_move_together(
    project: Path, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they were typed they are found from the new working folder; from another one the backbone is named."""
    run = train_shortly(Path("encoder"), Path("rows"), Path("tone"))
    expected = used(said, run)
    monkeypatch.chdir(tmp_path)
    shutil.move(project, tmp_path / "after")
    monkeypatch.chdir(tmp_path / "after")
    assert used(said, run) == expected
    monkeypatch.chdir(tmp_path)
    shutil.copytree("after/rows", "rows")
    code, printed, error = said("predict", "after/tone")
    assert code == 2 and not printed and "the adapter's backbone 'encoder' is not there any more" in error
    assert "Pass --backbone" in error
    assert used(said, Path("after/tone"), "--backbone", "after/encoder") == expected


def test_a_killed_run_goes_on_where_it_was_moved_to(project: Path, tmp_path: Path) -> None:
    """Also where the best checkpoint is one from before."""
    more: dict[str, Any] = {"num_train_epochs": 4, "seed": 13}  # the first epoch is the best one
    whole = softprompt.train(options(Path("encoder"), Path("rows"), tmp_path / "whole", **more), progress=False)
    first = tmp_path / "first" / "run"
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(
            options(Path("encoder"), Path("rows"), first, **more), callbacks=[StopAfter(2)], progress=False
        )
    moved = tmp_path / "second" / "run"
    moved.parent.mkdir()
    shutil.move(first, moved)
    first.parent.rmdir()
    resumed = softprompt.train(options(Path("encoder"), Path("rows"), moved, **more), resume=True, progress=False)
    steps = [result.document["train_info"]["best_checkpoint_step"] for result in (whole, resumed)]
    assert steps == [3, 3] and whole.document["train_info"]["train_steps"] == 12
    assert resumed.metrics == whole.metrics and not first.exists()
    ours, theirs = values(moved), values(whole.folder)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
