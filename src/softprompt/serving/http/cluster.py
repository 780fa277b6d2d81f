"""The same application and engine on Ray Serve: one copy of the backbone for each replica."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..._types import SoftPromptError, announce
from .app import make_app
from .server import loaded_engine
from .service import Service

WAITING = 512  # requests that a replica holds at once; its engine bounds the rows


def deployment(
    folders: Mapping[str, Path], service: Service, options: Mapping[str, Any], replicas: int, on_each: Any = None
) -> Any:
    """The application as a deployment of Ray Serve.

    The engine's own batches stay: those of Ray Serve hold requests for one model each, which is what mixed batches are not.

    Args:
        folders: name -> folder, as every replica finds it.
        service: what the operator decides. Prompts are neither added nor removed: a request reaches one replica of several.
        options: as those of `loaded_engine`.
        replicas: how many.
        on_each: ``ray_actor_options`` of a replica, such as {"num_gpus": 1}; None takes one CPU.

    Raises:
        SoftPromptError: Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise SoftPromptError(f"--ray needs Ray Serve ({error}); run: pip install 'softprompt[ray-serve]'.") from error
    if service.admin_token is not None:
        announce("prompts are not added or removed", "a request would reach one replica; start the server again")
    fixed = replace(service, admin_token=None)
    there = {name: Path(folder).resolve() for name, folder in folders.items()}
    backbone = options["backbone"]
    if backbone is not None and Path(backbone).is_dir():
        backbone = str(Path(backbone).resolve())
    own = {**options, "backbone": backbone}

    def build() -> Any:
        return make_app(loaded_engine(there, own), fixed)

    made: Any = serve.deployment(
        serve.ingress(build)(),
        name="softprompt",
        num_replicas=replicas,
        max_ongoing_requests=WAITING,
        graceful_shutdown_timeout_s=service.drain_s,
        ray_actor_options=on_each or {"num_cpus": 1},
    )
    return made.bind()


def run_on_ray(
    folders: Mapping[str, Path],
    service: Service,
    options: Mapping[str, Any],
    host: str,
    port: int,
    replicas: int,
    say: Callable[[str], None],
) -> None:
    """Serve on the Ray that RAY_ADDRESS names, or on a local one, until a signal comes.

    Raises:
        SoftPromptError: Ray Serve is not installed, or a prompt cannot be served.
    """
    app = deployment(folders, service, options, replicas)
    import ray
    from ray import serve

    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(app, name="softprompt", route_prefix="/")
        except RuntimeError as error:
            raise SoftPromptError(f"Ray Serve could not start the replicas: {error}") from error
        say(f"{len(folders)} prompts at http://{host}:{port}, {replicas} replicas (Ctrl-C stops)")
        _wait()
        say("stopping; what is in flight is answered.")
    finally:
        serve.shutdown()
        ray.shutdown()


def _wait() -> None:
    """Return at SIGINT or SIGTERM."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stop.wait(0.5):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
