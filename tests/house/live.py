"""A server on the loopback, in a thread of the test's own process."""

from __future__ import annotations

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
    config = uvicorn.Config(make_app(engine, service), port=0, log_level="error", timeout_graceful_shutdown=5)
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
