"""The way to the engine: who may pass, rows in, answers out, and what becomes of rows whose client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from ..._types import SoftPromptError
from .. import engine as core
from .errors import problem
from .guard import is_bearer
from .service import Service

ERROR = {"description": "What was expected, what came, and what to do, in OpenAI's form of an error."}
REFUSALS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 404, 408, 413, 415, 429, 500, 503, 504), ERROR)
WRITING = {"completion": "/v1/completions", "chat": "/v1/chat/completions"}  # kind of task -> where it is asked
ADMIN: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 403, 404, 408, 409, 413, 415, 500, 503), ERROR)


class Refused(Exception):
    """A response that is given at once."""

    def __init__(self, response: JSONResponse):
        self.response = response


@dataclass(frozen=True)
class Door:
    """What every path needs: the engine behind it, and what the operator decided."""

    engine: core.PromptEngine
    service: Service

    async def client(self, request: Request) -> None:
        """Refuse who has not the clients' token."""
        if self.service.token is not None and not is_bearer(request.headers.get("authorization"), self.service.token):
            raise Refused(
                problem(
                    401,
                    "expected the header Authorization: Bearer TOKEN with the server's token.",
                    {"WWW-Authenticate": "Bearer"},
                )
            )

    async def admin(self, request: Request) -> None:
        """Refuse who has not the admin's."""
        if self.service.admin_token is None or self.service.prompts_dir is None:
            raise Refused(
                problem(
                    403,
                    "prompts are not added or removed here: the server was started without --prompts-dir or without an admin token.",
                )
            )
        if not is_bearer(request.headers.get("authorization"), self.service.admin_token):
            raise Refused(
                problem(
                    401,
                    "expected the header Authorization: Bearer TOKEN with the admin token.",
                    {"WWW-Authenticate": "Bearer"},
                )
            )

    async def submitted(self, requests: Sequence[core.Request]) -> list[Future[core.Answer]]:
        """Hand requests to the engine: all of them or none."""
        if len(requests) > self.service.rows:
            raise SoftPromptError(
                f"expected at most {self.service.rows} rows in one request, got {len(requests)}; send them in parts."
            )

        def submit() -> list[Future[core.Answer]]:
            taken: list[Future[core.Answer]] = []
            try:
                for request in requests:
                    taken.append(self.engine.submit(request))
            except BaseException:
                drop(taken)
                raise
            return taken

        return await asyncio.to_thread(submit)  # a long text beside it must not hold up everybody else

    async def answered(self, http: Request, requests: Sequence[core.Request]) -> list[core.Answer]:
        """All answers; where the client goes away, or one row fails, the other rows are dropped."""
        futures = await self.submitted(requests)
        rows = [asyncio.wrap_future(future) for future in futures]
        whole = asyncio.ensure_future(asyncio.wait(rows, return_when=asyncio.FIRST_EXCEPTION))
        left = asyncio.ensure_future(gone(http))
        try:
            await asyncio.wait({whole, left}, return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                raise Refused(problem(499, "the client has gone."))
            if failed := next((error for row in rows if row.done() and (error := row.exception()) is not None), None):
                raise failed
            return [row.result() for row in rows]
        finally:
            for task in (whole, left):
                task.cancel()
            for row, future in zip(rows, futures, strict=True):
                row.cancel()
                future.cancel()
                if row.done() and not row.cancelled():
                    row.exception()  # somebody has looked at it

    def find(self, name: str, *kinds: str) -> core.Served:
        """The prompt of a name, for one of these kinds of tasks."""
        served = self.engine.shelf.find(name)
        assert isinstance(served, core.Served)
        if served.card.kind not in kinds:
            path = WRITING.get(served.card.kind, "/v1/classify")
            raise SoftPromptError(f"model {name!r} is for {served.card.kind}: expected a request to {path}.")
        return served


def drop(futures: Sequence[Future[Any]]) -> None:
    """Let nobody wait for these any more."""
    for future in futures:
        future.cancel()


async def gone(request: Request) -> None:
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
