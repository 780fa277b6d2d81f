"""A server on the loopback: in a thread of the test's own process, or the command as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from softprompt.serving.engine import PromptEngine
from softprompt.serving.http import Service, make_app


@contextmanager
def live(engine: PromptEngine, service: Service | None = None) -> Iterator[str]:
    """The address of a server over ``engine``, while it runs."""
    # uvicorn's own set-up of logging closes the handlers of all libraries, and absl's closes the stderr that pytest reads
    config = uvicorn.Config(
        make_app(engine, service), port=0, log_config=None, log_level="error", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def heads(token: str | None) -> dict[str, Any]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


@contextmanager
def served(*words: object, **variables: str) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """The address of ``softprompt serve`` in a process, the process, and what it says."""
    command = [sys.executable, "-m", "softprompt", "serve", "--port", "0", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    said: list[str] = []
    found = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.strip())
            if "Ctrl-C stops" in line:
                found.set()
        found.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        assert found.wait(120)
        match = re.search(r"http://\S+", "\n".join(said))
        assert match is not None, said
        yield match.group(), process, said
    finally:
        process.kill()
        process.wait(20)
