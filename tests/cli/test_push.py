"""``softprompt push``, and the commands that take a name on the hub, against a stand-in on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import softprompt
from house.hub import Hub, reach, standing_in, variables
from house.runs import call, train_shortly
from softprompt.cli.serve import _folders
from softprompt.models import adapter_folder
from softprompt.serving.http import Service

ROWS = '{"text": "red dog"}\n{"text": "blue cat runs"}\n'


@pytest.fixture(scope="module")
def run(encoder: Path, animals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_shortly(encoder, animals, tmp_path_factory.mktemp("trained") / "run", method="deep_prompts")


@pytest.fixture
def hub(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the backbone me/encoder, and a working folder without anything."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with standing_in() as hub:
        hub.add("me/encoder", folder=encoder)
        reach(monkeypatch, hub.address, tmp_path / "hub")
        yield hub


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command prints, after it ended well."""

    def said(*words: object, stdin: str = "") -> str:
        assert call(monkeypatch, *words, stdin=stdin) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return said


def test_push_prints_one_line(hub: Hub, run: Path, said: Any) -> None:
    printed = said(
        "push", run, "me/tone", "--backbone", "me/encoder", "--message", "hello", "--include-run", "--private"
    )
    (line,) = printed.splitlines()
    repo = hub.repos["me/tone"]
    assert json.loads(line) == {
        "repo": "me/tone",
        "revision": "main",
        "commit": repo.number("main"),
        "url": f"{hub.address}/me/tone",
        "files": [*(name for name in json.loads(line)["files"] if name != "run.json"), "run.json"],
    }
    assert repo.private and repo.messages[-1] == "hello" and {*json.loads(line)["files"]} < set(repo.files())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("me/tone",), "its backbone is a folder of this machine"),
        (("tone", "--backbone", "me/encoder"), "tone: expected a name on the hub, owner/name"),
        (("you/tone", "--backbone", "me/encoder"), "your token has no right to do this"),
    ],
)
def test_what_is_wrong_is_one_message_and_exit_code_2(
    hub: Hub,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    assert call(monkeypatch, "push", run, *words) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert message in line and captured.out == "" and "Traceback" not in captured.err
    assert set(hub.repos) == {"me/encoder"}


def test_every_command_that_takes_a_run_takes_its_name(
    hub: Hub, run: Path, encoder: Path, animals: Path, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as of the folder; the backbone is given, since transformers of this process knows no stand-in."""
    said("push", run, "me/tone", "--backbone", "me/encoder", "--revision", "second")
    name, place = "me/tone@second", ("--backbone", encoder)
    assert said("predict", name, *place, stdin=ROWS) == said("predict", run, stdin=ROWS)
    test = ("--data", animals / "test.jsonl")
    assert said("eval", name, *test, *place) == said("eval", run, *test)
    seen, here = (json.loads(said("inspect", what, "--json", *place, "--other", name)) for what in (name, run))
    assert seen.pop("adapter") == name and here.pop("adapter") == str(run) and seen == here
    said("report", name, "-o", tmp_path / "page.html", *place)
    assert "tone@second" in (tmp_path / "page.html").read_text(encoding="utf-8")
    said("compile", name, "-o", tmp_path / "compiled", *place)
    assert (tmp_path / "compiled" / "task.json").is_file()
    assert _folders([f"tone={name}"], Service()) == {"tone": adapter_folder(name)}
    rows = [json.loads(line) for line in ROWS.splitlines()]
    there, local = softprompt.Predictor(name, str(encoder)), softprompt.Predictor(run)
    assert there.predict(rows) == local.predict(rows)
    assert softprompt.load(name, str(encoder)).peft_config.keys() == {"default"}


def test_a_machine_with_an_empty_cache_predicts_by_name_and_then_without_a_network(
    hub: Hub, run: Path, encoder: Path, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: the adapter and its backbone come from the hub, and the adapter stays in the cache."""
    said("push", run, "me/tone", "--backbone", "me/encoder")
    expected = said("predict", run, stdin=ROWS)
    command = [sys.executable, "-m", "softprompt", "predict", "me/tone"]
    environment = {**os.environ, **variables(hub, tmp_path / "home")}
    environment.pop("HF_TOKEN")
    done = subprocess.run(command, input=ROWS, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == expected, done.stderr
    assert "adapter = me/tone on the hub: no folder has that name; its commit is " in done.stderr
    assert not [asked for asked in hub.asked if "run.json" in asked or asked.endswith(".bin")]
    asked = len(hub.asked)
    reach(monkeypatch, hub.address, tmp_path / "home" / "hub", None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert said("predict", "me/tone", "--backbone", encoder, stdin=ROWS) == expected and len(hub.asked) == asked
