"""The application: its paths, its errors, its beginning and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..._types import SoftPromptError, log
from ..._version import __version__
from ..engine import PromptEngine
from .door import Door, Refused
from .errors import invalid, problem, response_of
from .guard import BodyLimit
from .operating import operating
from .reading import reading
from .service import Service
from .writing import writing


def make_app(engine: PromptEngine, service: Service | None = None) -> FastAPI:
    """The application over an engine that has been started; it closes the engine when it ends.

    Args:
        engine: with the prompts; its watcher is the one of ``/metrics`` if it is a `Metrics`.
        service: what the operator decides.
    """
    door = Door(engine, service or Service())

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close, door.service.drain_s)

    app = FastAPI(
        title="softprompt", version=__version__, lifespan=life, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(BodyLimit, limit=door.service.body_bytes)
    for paths in (writing, reading, operating):
        app.include_router(paths(door))
    _say_errors(app)
    return app


def _say_errors(app: FastAPI) -> None:
    """Every error has OpenAI's form."""

    @app.exception_handler(Refused)
    async def _refused(_: Request, error: Refused) -> JSONResponse:
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
