"""The command as a process of its own: it serves, finishes what is in flight at a signal, and says what is wrong at once."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from house.live import served
from house.runs import call
from house.served import train_readers


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train_readers(tmp_path_factory.mktemp("server"), "plain", "deep")


def rows_inside(metrics: str) -> float:
    """Rows that have been answered, and those that wait."""
    found = re.findall(r"^(?:softprompt_requests_total\{.*\}|softprompt_waiting_rows) (\S+)$", metrics, re.MULTILINE)
    return sum(map(float, found))


def test_a_folder_of_prompts_is_an_endpoint_and_a_signal_finishes_what_is_in_flight(readers: dict[str, Path]) -> None:
    folder = readers["plain"].parent
    with served("--prompts-dir", folder, "--prompt", f"again={readers['deep']}", SOFTPROMPT_TOKEN="guest") as (
        address,
        process,
        said,
    ):
        heads = {"Authorization": "Bearer guest"}
        names = [one["id"] for one in httpx.get(f"{address}/v1/models", headers=heads).json()["data"]]
        assert names == ["again", "deep", "plain"]
        asked = [
            "-H",
            "Authorization: Bearer guest",
            "-H",
            "Content-Type: application/json",
            "-d",
            '{"model": "plain", "input": "red dog"}',
        ]
        made = subprocess.run(
            ["curl", "-s", f"{address}/v1/classify", *asked], capture_output=True, text=True, check=True
        )
        assert json.loads(made.stdout)["data"][0]["label"] in ("dog", "cat", "bird")
        answers: list[Any] = []
        body = {"model": "plain", "input": ["red dog runs"] * 100}

        def ask() -> None:
            answers.append(httpx.post(f"{address}/v1/classify", json=body, headers=heads, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while rows_inside(httpx.get(f"{address}/metrics", headers=heads).text) <= 300:  # all four have come
            pass
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert process.wait(60) == 0
    assert {answer.status_code for answer in answers} == {200} and len(answers) == 4
    assert said[-1] == "stopped; what was in flight is answered."


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "expected a prompt to serve: --prompt NAME=DIR, or --prompts-dir DIR"),
        (["--prompt", "plain"], "--prompt 'plain': expected NAME=DIR, such as tone=runs/tone"),
        (["--prompt", "a=x", "--prompt", "a=y"], "--prompt 'a': the name is given twice"),
        (["--prompt", "a=nothing"], "prompt 'a' from nothing: nothing: expected a folder written by softprompt train"),
        (
            ["--prompts-dir", "."],
            "expected a prompt to serve: --prompt NAME=DIR, or --prompts-dir DIR, got none in . and no admin token",
        ),
        (["--prompt", "a=x", "--token-file", "two"], "two: expected one token of printable ASCII"),
        (["--prompt", "a=x", "--token-file", "latin"], "latin: expected a file with a token of printable ASCII"),
        (["--prompt", "a=x", "--token-file", "none"], "none: expected a file with a token of printable ASCII"),
        (["--prompt", "a=x", "--ray", "--port", "0"], "--port 0: expected a port of your choice beside --ray"),
        (["--prompts-dir", "nothing"], "--prompts-dir nothing: expected a folder of adapters' folders, got no folder"),
        (
            ["--prompt", "a=x", "--host", "0.0.0.0"],
            "--host 0.0.0.0: expected a token where other machines reach the server",
        ),
        (["--prompt", "a=x", "--replicas", "2"], "--replicas: expected --ray beside it"),
        (
            ["--prompt", "a=x", "--token-file", "empty"],
            "empty: expected one token of printable ASCII without spaces, which a header can carry, got nothing",
        ),
    ],
)
def test_what_is_wrong_with_the_command_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    Path("two").write_text("one\ntwo\n")
    Path("latin").write_bytes(b"\xff\xfe")
    assert call(monkeypatch, "serve", *words) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert call(monkeypatch, "serve", "--prompt", "a=nothing", "--port", port) == 2
    assert f"127.0.0.1:{port}: expected an address that is free" in capsys.readouterr().err
