"""The application: each path, what it asks the engine, and what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from ..._types import SoftPromptError, log
from ..._version import __version__
from .. import engine as core
from ..engine.shelf import NAME
from . import bodies, replies
from .errors import UnknownFolderError, body_of, invalid, problem, response_of
from .guard import BodyLimit, is_bearer
from .metrics import Metrics

ERROR = {"description": "What was expected, what came, and what to do, in OpenAI's form of an error."}
REFUSALS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 404, 408, 413, 415, 429, 500, 503, 504), ERROR)
ADMIN: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 403, 404, 408, 409, 413, 415, 500, 503), ERROR)
PAGE = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass
class Service:
    """What an operator decides.

    Attributes:
        token: that every client sends; None lets in whoever reaches the server.
        admin_token: that adds and removes prompts; None lets nobody.
        prompts_dir: the folder whose folders may be served.
        body_bytes: of one request.
        rows: of one request.
        drain_s: seconds for what is in flight when the server stops.
    """

    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    prompts_dir: Path | None = None
    body_bytes: int = 1 << 20
    rows: int = 128
    drain_s: float = 30.0


class _Refused(Exception):
    """A response that is given at once."""

    def __init__(self, response: JSONResponse):
        self.response = response


def make_app(engine: core.PromptEngine, service: Service | None = None) -> FastAPI:
    """The application over an engine that has been started; it closes the engine when it ends.

    Args:
        engine: with the prompts; its watcher is the one of ``/metrics`` if it is a `Metrics`.
        service: what the operator decides.
    """
    service = service or Service()

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close, service.drain_s)

    app = FastAPI(
        title="softprompt", version=__version__, lifespan=life, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(BodyLimit, limit=service.body_bytes)

    # ------------------------------------------------------------------ who asks

    async def client(request: Request) -> None:
        if service.token is not None and not is_bearer(request.headers.get("authorization"), service.token):
            raise _Refused(
                problem(
                    401,
                    "expected the header Authorization: Bearer TOKEN with the server's token.",
                    {"WWW-Authenticate": "Bearer"},
                )
            )

    async def admin(request: Request) -> None:
        if service.admin_token is None or service.prompts_dir is None:
            raise _Refused(
                problem(
                    403,
                    "prompts are not added or removed here: the server was started without --prompts-dir or without an admin token.",
                )
            )
        if not is_bearer(request.headers.get("authorization"), service.admin_token):
            raise _Refused(
                problem(
                    401,
                    "expected the header Authorization: Bearer TOKEN with the admin token.",
                    {"WWW-Authenticate": "Bearer"},
                )
            )

    # ------------------------------------------------------------------ errors

    @app.exception_handler(_Refused)
    async def _refused(_: Request, error: _Refused) -> JSONResponse:
        return error.response

    @app.exception_handler(SoftPromptError)
    async def _ours(_: Request, error: SoftPromptError) -> JSONResponse:
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error.errors())

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        said = {
            404: f"no such path: {request.url.path:.80}; /v1/models lists what is served.",
            405: f"{request.method} is not for this path: expected {(error.headers or {}).get('Allow', 'another method')}.",
            400: "expected a body of JSON in UTF-8, not nested deeply.",
        }
        return problem(error.status_code, said.get(error.status_code, str(error.detail)), error.headers)

    @app.exception_handler(Exception)
    async def _other(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return response_of(error)

    # ------------------------------------------------------------------ rows in, answers out

    async def submitted(requests: Sequence[core.Request]) -> list[Future[core.Answer]]:
        if len(requests) > service.rows:
            raise SoftPromptError(
                f"expected at most {service.rows} rows in one request, got {len(requests)}; send them in parts."
            )

        def submit() -> list[Future[core.Answer]]:
            taken: list[Future[core.Answer]] = []
            try:
                for request in requests:
                    taken.append(engine.submit(request))
            except BaseException:
                _drop(taken)
                raise
            return taken

        return await asyncio.to_thread(submit)  # a long text beside it must not hold up everybody else

    async def answered(http: Request, requests: Sequence[core.Request]) -> list[core.Answer]:
        """All answers; where the client goes away, or one row fails, the other rows are dropped."""
        futures = await submitted(requests)
        rows = [asyncio.wrap_future(future) for future in futures]
        whole = asyncio.ensure_future(asyncio.wait(rows, return_when=asyncio.FIRST_EXCEPTION))
        gone = asyncio.ensure_future(_gone(http))
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                raise _Refused(problem(499, "the client has gone."))
            if failed := next((error for row in rows if row.done() and (error := row.exception()) is not None), None):
                raise failed
            return [row.result() for row in rows]
        finally:
            for task in (whole, gone):
                task.cancel()
            for row, future in zip(rows, futures, strict=True):
                row.cancel()
                future.cancel()
                if row.done() and not row.cancelled():
                    row.exception()  # somebody has looked at it

    def find(name: str, *kinds: str) -> core.Served:
        served = engine.shelf.find(name)
        assert isinstance(served, core.Served)
        if served.card.kind not in kinds:
            paths = {"completion": "/v1/completions"}.get(served.card.kind, "/v1/classify")
            raise SoftPromptError(f"model {name!r} is for {served.card.kind}: expected a request to {paths}.")
        return served

    # ------------------------------------------------------------------ texts that are written

    @app.post("/v1/completions", dependencies=[Depends(client)], responses=REFUSALS)
    async def completions(http: Request, body: bodies.CompletionBody) -> Any:
        """Continue one text or several, in OpenAI's form."""
        find(body.model, "completion")
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        return await write(http, body, texts, body.max_tokens, chat=False)

    @app.post("/v1/chat/completions", dependencies=[Depends(client)], responses=REFUSALS)
    async def chat(http: Request, body: bodies.ChatBody) -> Any:
        """Answer messages, rendered by the chat template of the backbone's tokenizer, in OpenAI's form."""
        served = find(body.model, "completion")
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise SoftPromptError("max_tokens and max_completion_tokens are one setting: send one of them.")
        text = _rendered(served, [message.plain() for message in body.messages])
        return await write(http, body, [text], body.max_completion_tokens or body.max_tokens, chat=True)

    async def write(http: Request, body: bodies.Sampled, texts: Sequence[str], most: int | None, chat: bool) -> Any:
        usage = body.stream_options is not None and body.stream_options.include_usage
        writing, form = body.writing(most), replies.Completions(body.model, chat, usage)
        if not body.stream:
            if body.stream_options is not None:
                raise SoftPromptError("stream_options: expected stream=true beside it.")
            asked = [
                core.Request(body.model, {"prompt": text}, truncate=body.truncate, writing=writing) for text in texts
            ]
            answers = await answered(http, asked)
            return JSONResponse(form.whole(answers), headers=replies.timing(answers))
        pieces: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def give(index: int, piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, (index, piece))

        def end(index: int, _: Future[core.Answer]) -> None:
            give(index, None)

        asked = [
            core.Request(
                body.model,
                {"prompt": text},
                truncate=body.truncate,
                writing=writing,
                on_text=partial(give, index),
            )
            for index, text in enumerate(texts)
        ]
        futures = await submitted(asked)
        for index, future in enumerate(futures):
            future.add_done_callback(partial(end, index))
        first: asyncio.Future[Any] = asyncio.ensure_future(pieces.get())
        gone = asyncio.ensure_future(_gone(http))
        try:
            await asyncio.wait({first, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                raise _Refused(problem(499, "the client has gone."))
            index, piece = first.result()
            if piece is None and (error := futures[index].exception()) is not None:  # nothing was sent: it has a status
                raise error
        except BaseException:
            first.cancel()
            _drop(futures)
            raise
        finally:
            gone.cancel()
        return _Stream(_events(form, futures, pieces, first.result(), usage), futures)

    # ------------------------------------------------------------------ texts that are read

    @app.post("/v1/classify", dependencies=[Depends(client)], responses=REFUSALS)
    async def classify(http: Request, body: bodies.ClassifyBody) -> JSONResponse:
        """Classify texts or pairs of them, or tag words; in the form of vLLM's /classify."""
        served = find(body.model, "classification", "tokens")
        answers = await answered(http, [core.Request(body.model, row, truncate=body.truncate) for row in body.rows()])
        return JSONResponse(replies.classes(body.model, served, answers), headers=replies.timing(answers))

    @app.post("/predict", dependencies=[Depends(client)], responses=REFUSALS)
    async def predict(http: Request, body: bodies.PredictBody) -> JSONResponse:
        """Classify texts, in the form of text-embeddings-inference."""
        name = body.model or _only_classifier(engine)
        find(name, "classification")
        answers = await answered(http, [core.Request(name, row, truncate=body.truncate) for row in body.rows()])
        made = [replies.ranked(answer) for answer in answers]
        return JSONResponse(made[0] if isinstance(body.inputs, str) else made, headers=replies.timing(answers))

    # ------------------------------------------------------------------ what is served

    @app.get("/v1/models", dependencies=[Depends(client)], responses={401: ERROR})
    async def models() -> dict[str, Any]:
        """The prompts that are served."""
        served = [engine.shelf.prompts[name] for name in sorted(engine.shelf.prompts)]
        return {"object": "list", "data": [replies.model(one) for one in served]}

    @app.get("/v1/models/{name}", dependencies=[Depends(client)], responses={401: ERROR, 404: ERROR, 400: ERROR})
    async def one_model(name: str) -> dict[str, Any]:
        """One prompt."""
        return replies.model(engine.shelf.find(name))

    @app.post("/admin/prompts", status_code=201, dependencies=[Depends(admin)], responses=ADMIN)
    async def add(body: bodies.PromptBody) -> Any:
        """Serve a prompt from a folder of --prompts-dir."""
        folder = _folder(service, body.folder or body.name)
        served = await asyncio.wrap_future(engine.add(body.name, folder))
        return replies.model(served)

    @app.delete("/admin/prompts/{name}", dependencies=[Depends(admin)], responses=ADMIN)
    async def remove(name: str) -> dict[str, Any]:
        """Serve a prompt no more; answered when its requests in flight are."""
        await asyncio.wrap_future(engine.remove(name))
        return {"id": name, "object": "model", "deleted": True}

    # ------------------------------------------------------------------ how it goes

    @app.get("/healthz", responses={503: ERROR})
    async def health() -> JSONResponse:
        """200 while requests are taken, 503 else."""
        state = {"status": "ok" if engine.is_open else "failed" if engine.failure else "closing"}
        return JSONResponse(state, 200 if engine.is_open else 503)

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=[Depends(client)], responses={401: ERROR})
    async def metrics() -> PlainTextResponse:
        """Counters, for Prometheus."""
        kept = engine.watcher if isinstance(engine.watcher, Metrics) else Metrics()
        return PlainTextResponse(kept.text(engine), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, kind in (("", "html"), ("page.css", "css"), ("page.js", "javascript")):
        _serve_page(app, path, kind)
    return app


def _serve_page(app: FastAPI, path: str, kind: str) -> None:
    text = (files("softprompt.serving.http") / "page" / (path or "page.html")).read_text(encoding="utf-8")

    async def page() -> HTMLResponse:
        return HTMLResponse(text, media_type=f"text/{kind}; charset=utf-8", headers=PAGE)

    app.api_route(f"/{path}", methods=["GET", "HEAD"], include_in_schema=False)(page)


class _Stream(StreamingResponse):
    """Server-sent events; when they end, however they end, nobody waits for the completions any more."""

    def __init__(self, events: AsyncIterator[str], futures: Sequence[Future[core.Answer]]):
        heads = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=heads)
        self.futures = futures

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            _drop(self.futures)


def _drop(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        future.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    form: replies.Completions,
    futures: Sequence[Future[core.Answer]],
    pieces: asyncio.Queue[tuple[int, str | None]],
    event: tuple[int, str | None],
    usage: bool,
) -> AsyncIterator[str]:
    """The pieces of completions as server-sent events."""
    begun: set[int] = set()
    open_ones = len(futures)
    while True:
        index, piece = event
        if piece is not None:
            yield _event(form.piece(index, piece, first=index not in begun))
            begun.add(index)
        else:
            if (error := futures[index].exception()) is not None:
                yield _event(body_of(error)[1])
                return
            reason = futures[index].result().finish_reason
            yield _event(form.piece(index, "", reason, first=index not in begun))
            open_ones -= 1
        if not open_ones:
            break
        event = await pieces.get()
    if usage:
        yield _event(form.end([future.result() for future in futures]))
    yield "data: [DONE]\n\n"


def _event(document: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _rendered(served: core.Served, messages: list[dict[str, str]]) -> str:
    """Messages as the one text that the backbone reads."""
    if not getattr(served.tokenizer, "chat_template", None):
        raise SoftPromptError(
            f"the backbone of {served.name!r} has no chat template; send one text to /v1/completions."
        )
    from jinja2 import TemplateError

    try:
        return str(served.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError) as error:  # a template may refuse an order of roles
        raise SoftPromptError(f"messages: the backbone's chat template takes no such messages ({error}).") from error


def _only_classifier(engine: core.PromptEngine) -> str:
    names = sorted(name for name, one in list(engine.shelf.prompts.items()) if one.card.kind == "classification")
    if len(names) != 1:
        raise SoftPromptError(
            f"model: expected the name of a prompt where not exactly one classifies, got none; there are {', '.join(names) or 'none'}."
        )
    return names[0]


def adapters_in(root: Path) -> list[Path]:
    """The adapters' folders directly in a folder; no link leads out of it."""
    inside = (path for path in sorted(root.iterdir()) if (path / "adapter_config.json").is_file())
    return [path for path in inside if path.resolve().parent == root.resolve()]


def _folder(service: Service, name: str) -> Path:
    """A folder of the operator's by its name: never a path."""
    root = service.prompts_dir
    assert root is not None
    known = [path.name for path in adapters_in(root) if NAME.fullmatch(path.name)]
    if name not in known:
        raise UnknownFolderError(
            f"folder {name!r:.80}: expected the name of an adapter's folder of the operator's: {', '.join(known) or 'there is none'}."
        )
    return root / name
