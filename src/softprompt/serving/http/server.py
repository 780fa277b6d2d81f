"""One process that serves: the engine's thread, and uvicorn in front of it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn

from ..._types import SoftPromptError
from ..engine import PromptEngine, Shelf
from .app import make_app
from .metrics import Metrics
from .service import Service


def loaded_engine(folders: Mapping[str, Path], options: Mapping[str, Any]) -> PromptEngine:
    """An engine with the prompts of these folders, started.

    Args:
        folders: name -> folder.
        options: "backbone", "compiles" and "device" of a `Shelf`, "limits" of an engine.

    Raises:
        SoftPromptError: one of them cannot be served; the message says which and why.
    """
    shelf = Shelf(options["backbone"], options["compiles"], options["device"])
    for name, folder in folders.items():
        try:
            shelf.place(shelf.load(name, folder))
        except SoftPromptError as error:
            raise SoftPromptError(f"prompt {name!r} from {folder}: {error}") from error
    return PromptEngine(shelf, options["limits"], watcher=Metrics()).start()


def run_here(
    folders: Mapping[str, Path],
    service: Service,
    options: Mapping[str, Any],
    host: str,
    port: int,
    say: Callable[[str], None],
    signalled: type[BaseException] = KeyboardInterrupt,
) -> None:
    """Serve until a signal comes; then finish what is in flight and return.

    Args:
        folders: name -> folder.
        service: what the operator decides.
        options: see `loaded_engine`.
        host: to listen on.
        port: to listen on; 0 takes a free one.
        say: is told where the server is, and that it has stopped.
        signalled: what the program's own handler raises at a signal, which uvicorn hands on when it has stopped in order.

    Raises:
        SoftPromptError: a prompt cannot be served, or the address is taken.
    """
    bound = _bound(host, port)
    try:
        engine = loaded_engine(folders, options)
        config = uvicorn.Config(
            make_app(engine, service),
            log_config=None,  # uvicorn's own would close the handlers of every library in this process
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=max(1, round(service.drain_s)),
            server_header=False,
        )
        bound.listen(2048)  # who reads the next line may ask at once
        shown = f"[{host}]" if ":" in host else host
        say(f"{len(folders)} prompts at http://{shown}:{bound.getsockname()[1]} (Ctrl-C stops)")
        with contextlib.suppress(KeyboardInterrupt, signalled):
            uvicorn.Server(config).run(sockets=[bound])
        late = engine.unanswered
        say("stopped; what was in flight is answered." if not late else f"stopped; {late} rows had no answer in time.")
    finally:
        bound.close()


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address, before anything heavy is loaded: a port that is taken is said at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise SoftPromptError(
            f"{host}:{port}: expected an address that is free ({error.strerror or error}); take another --port or --host."
        ) from error
    return bound
