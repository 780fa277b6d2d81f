"""Ctrl-C, SIGTERM and kill -9, at any moment of a real process: one line or none, never a traceback, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import softprompt
from house.runs import call
from house.tiny import save_backbone, write_classification

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    save_backbone(folder / "encoder")
    write_classification(folder / "data", rows=24)
    return folder


def start(*words: object, **more: str) -> subprocess.Popen[str]:
    source = str(Path(softprompt.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **more},
    )


def words(place: Path, output: Path, epochs: int) -> tuple[object, ...]:
    named = ("--backbone", place / "encoder", "--data", place / "data", "--method", "prompt_tuning", "--output", output)
    settings = {"num_virtual_tokens": 3, "max_length": 24, "num_train_epochs": epochs, "dtype": "float32"}
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return "train", *named, *chosen, "--set", "per_device_train_batch_size=8"


def train(place: Path, output: Path, *more: object, epochs: int = 2000) -> subprocess.Popen[str]:
    return start("-m", "softprompt", *words(place, output, epochs), *more)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def newest(output: Path) -> int:
    """The step of the newest checkpoint; older ones are removed meanwhile."""
    return max((int(p.name.split("-")[1]) for p in output.glob("checkpoints/checkpoint-*")), default=0)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_in_training_is_one_line_and_the_run_goes_on(
    place: Path,
    tmp_path: Path,
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    process = train(place, tmp_path / "out", epochs=20)
    wait_for(lambda: newest(tmp_path / "out") > 3, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and out == "" and "Traceback" not in err
    assert err.splitlines()[-1] == "stopped; the same command with --resume goes on."
    assert not (tmp_path / "out" / ".lock").exists()
    assert call(monkeypatch, *words(place, tmp_path / "out", 20), "--resume") == 0
    out, err = capsys.readouterr()
    assert "resume: from " in err
    assert json.loads(out)["output"] == str(tmp_path / "out")


STEPS = """
import os, signal, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Watch())
sys.argv = ["softprompt", *{words!r}]
from softprompt.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "number", "code"),
    [
        (module, *SIGNALS[i % 2])
        for i, module in enumerate(("typer", "rich.console", "numpy", "torch", "torch.nn", "transformers", "peft"))
    ],
)
def test_a_signal_while_libraries_are_imported(
    place: Path, tmp_path: Path, module: str, number: int, code: int
) -> None:
    words = [
        "train",
        "--backbone",
        str(place / "encoder"),
        "--data",
        str(place / "data"),
        "--output",
        str(tmp_path / "o"),
    ]
    process = start("-c", STEPS.format(module=module, number=int(number), words=words))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "")
    assert err == "stopped; the same command with --resume goes on.\n"
    assert not (tmp_path / "o").exists()


def test_other_commands_do_not_promise_to_go_on() -> None:
    process = start("-c", STEPS.format(module="typer", number=int(signal.SIGINT), words=["predict", "x"]))
    assert process.communicate(timeout=60) == ("", "stopped.\n") and process.returncode == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_processes_behind_the_first_say_nothing(number: int, code: int) -> None:
    """SIGTERM ends them as the system does: a handler would wait for a collective that never ends."""
    process = start("-c", STEPS.format(module="typer", number=int(number), words=["train"]), RANK="1", WORLD_SIZE="2")
    assert process.communicate(timeout=60) == ("", "") and process.returncode == code


@pytest.mark.slow
def test_two_runs_in_one_folder_and_a_kill(place: Path, tmp_path: Path) -> None:
    """The second run is refused while the first prepares; after kill -9 the folder is free for --resume."""
    out = tmp_path / "out"
    first = train(place, out)
    wait_for((out / ".lock").exists, first)
    second = train(place, out, "--resume")
    printed, err = second.communicate(timeout=120)
    assert second.returncode == 2 and printed == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"error: --output {str(out)!r}: another run is at work there")
    wait_for(lambda: newest(out) > 3, first)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    assert (out / ".lock").exists()
    before = newest(out)
    resumed = train(place, out, "--resume")
    wait_for(lambda: newest(out) > before, resumed)
    resumed.send_signal(signal.SIGINT)
    assert "resume: from" in resumed.communicate(timeout=60)[1] and resumed.returncode == 130
    assert not (out / ".lock").exists()


def test_a_file_limit_is_one_message(place: Path, tmp_path: Path) -> None:
    """What a full disk does, in a real process: no file may pass 20 kB."""
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({20 * 1024}, {20 * 1024}))
sys.argv = ["softprompt", "train", "--backbone", {str(place / "encoder")!r}, "--data", {str(place / "data")!r}, "--output", {str(tmp_path / "out")!r}]
from softprompt.cli import main
main()
"""
    process = start("-c", code)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"error: --output {str(tmp_path / 'out')!r} cannot be written to")
