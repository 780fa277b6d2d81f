"""``softprompt serve``: an endpoint over a folder of prompts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._types import SoftPromptError
from .signals import Stopped
from .voice import err, quiet

if TYPE_CHECKING:
    from ..serving.http import Service

LOCAL = ("127.0.0.1", "::1", "localhost")
TOKEN, ADMIN_TOKEN = "SOFTPROMPT_TOKEN", "SOFTPROMPT_ADMIN_TOKEN"


def serve(
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=DIR: serve the adapter in DIR, a folder or a name on the hub, as NAME; may be repeated."
        ),
    ] = None,
    prompts_dir: Annotated[
        Path | None,
        typer.Option(
            help="Serve each adapter in this folder under its folder's name; more may be added while it runs."
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The backbone of all prompts; that of the first one without it.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's need a token.")] = LOCAL[
        0
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token that clients send; or the variable {TOKEN}.")
    ] = None,
    admin_token_file: Annotated[
        Path | None,
        typer.Option(help=f"File with the token that adds and removes prompts; or the variable {ADMIN_TOKEN}."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where the models lie, such as cuda:0; an accelerator where there is one without it."),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Positions of one batch, padding included; an accelerator takes more.")
    ] = 1024,
    batch_prompts: Annotated[
        int | None, typer.Option(min=1, help="Prompts of one batch; all are mixed without it.")
    ] = None,
    waiting_rows: Annotated[int, typer.Option(min=1, help="Rows that may wait; further ones get 429.")] = 1024,
    writing_rows: Annotated[int, typer.Option(min=1, help="Completions that are written at once.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one completion, at most.")] = 512,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Seconds for one request; later is 504.")] = 30.0,
    rows: Annotated[int, typer.Option(min=1, help="Rows of one request.")] = 128,
    body_bytes: Annotated[int, typer.Option(min=1, help="Bytes of one request.")] = 1 << 20,
    drain_s: Annotated[float, typer.Option(min=0, help="Seconds for what is in flight when it is stopped.")] = 30.0,
    compiled: Annotated[
        bool, typer.Option(help="Turn prompts into keys and values where this changes nothing but the time.")
    ] = True,
    ray: Annotated[bool, typer.Option("--ray", help="Serve from replicas on Ray (extra ray-serve).")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the backbone on Ray.")] = 1,
) -> None:
    """Serve prompts over HTTP: /v1/completions, /v1/chat/completions, /v1/classify, /predict, /v1/models, /healthz, /metrics, and a page at /.

    All prompts share one backbone, and rows for different prompts one batch. Ctrl-C or SIGTERM finishes what is in flight.
    """
    quiet()
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SoftPromptError(f"softprompt serve needs {error.name}: pip install 'softprompt[serve]'.") from error
    from ..serving.engine import Limits
    from ..serving.http import Service

    service = Service(
        token=_token(token_file, TOKEN),
        admin_token=_token(admin_token_file, ADMIN_TOKEN),
        prompts_dir=_folder(prompts_dir),
        body_bytes=body_bytes,
        rows=rows,
        drain_s=drain_s,
    )
    if host not in LOCAL and service.token is None:
        raise SoftPromptError(
            f"--host {host}: expected a token where other machines reach the server; give --token-file or the variable {TOKEN}."
        )
    if ray and port == 0:
        raise SoftPromptError("--port 0: expected a port of your choice beside --ray.")
    if replicas > 1 and not ray:
        raise SoftPromptError("--replicas: expected --ray beside it; without it one process holds the backbone.")
    folders = _folders(prompt or [], service)
    limits = Limits(
        batch_tokens=batch_tokens,
        batch_prompts=batch_prompts,
        waiting_rows=waiting_rows,
        writing_rows=writing_rows,
        new_tokens=new_tokens,
        timeout_s=timeout_s,
    )
    options: dict[str, Any] = {"backbone": backbone, "compiles": compiled, "device": device, "limits": limits}
    if ray:
        from ..serving.http.cluster import run_on_ray

        run_on_ray(folders, service, options, host, port, replicas, _said)
        return
    from ..serving.http.server import run_here

    run_here(folders, service, options, host, port, _said, Stopped)


def _said(line: str) -> None:
    err.print(line, markup=False, highlight=False, soft_wrap=True)


def _token(file: Path | None, variable: str) -> str | None:
    """A token that a header can carry, from a file or a variable.

    Raises:
        SoftPromptError: the file cannot be read, or it holds none.
    """
    where = variable if file is None else str(file)
    try:
        text = os.environ.get(variable, "") if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SoftPromptError(f"{where}: expected a file with a token of printable ASCII ({error}).") from error
    token = text.strip()
    if not token and file is None:
        return None
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise SoftPromptError(
            f"{where}: expected one token of printable ASCII without spaces, which a header can carry, got {'nothing' if not token else 'other characters'}."
        )
    return token


def _folder(folder: Path | None) -> Path | None:
    if folder is not None and not folder.is_dir():
        raise SoftPromptError(f"--prompts-dir {folder}: expected a folder of adapters' folders, got no folder.")
    return folder


def _folders(given: list[str], service: Service) -> dict[str, Path]:
    """Name -> folder of the prompts that are served from the start."""
    from ..models import adapter_folder

    folders: dict[str, Path] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not (equals and name and folder):
            raise SoftPromptError(f"--prompt {one!r}: expected NAME=DIR, such as tone=runs/tone.")
        if name in folders:
            raise SoftPromptError(f"--prompt {name!r}: the name is given twice; take another one for {folder}.")
        folders[name] = adapter_folder(folder)
    if service.prompts_dir is not None:
        from ..serving.http.service import adapters_in

        for path in adapters_in(service.prompts_dir):
            folders.setdefault(path.name, path)
    if not folders and service.admin_token is None:
        where = (
            "" if service.prompts_dir is None else f", got none in {service.prompts_dir} and no admin token to add one"
        )
        raise SoftPromptError(f"expected a prompt to serve: --prompt NAME=DIR, or --prompts-dir DIR{where}.")
    return folders
