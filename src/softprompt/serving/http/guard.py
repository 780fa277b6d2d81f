"""What stands in front of every request: its size, and who asks."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .errors import problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class BodyLimit:
    """Refuses bodies that are no JSON by their headers, bodies of more than ``limit`` bytes, whether their length is announced or not, and those that take longer than
    ``seconds`` to come; no more of one is ever kept."""

    def __init__(self, app: Any, limit: int, seconds: float = 30.0):
        self.app, self.limit, self.seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limit:
            await self._refuse(scope, receive, send)
            return
        heads = dict(scope["headers"])
        if scope.get("method") == "POST" and not heads.get(b"content-type", b"").lower().startswith(
            b"application/json"
        ):
            await problem(415, "expected the header Content-Type: application/json, and a body of JSON.")(
                scope, receive, send
            )
            return
        if b"content-encoding" in heads:
            await problem(415, "expected a body of plain JSON, got a Content-Encoding; send it uncompressed.")(
                scope, receive, send
            )
            return
        try:
            body = await asyncio.wait_for(self._body(receive), self.seconds)
        except TimeoutError:
            await problem(408, f"expected the whole body within {self.seconds:g} s.")(scope, receive, send)
            return
        if body is None:
            return
        if len(body) > self.limit:
            await self._refuse(scope, receive, send)
            return
        given = False

        async def replayed() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()  # that the client has gone
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replayed, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The body, or as much of it as shows that it is too long; None where the client has gone."""
        body, more = b"", True
        while more and len(body) <= self.limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = problem(413, f"expected a body of at most {self.limit} bytes; send fewer rows at a time.")
        await response(scope, receive, send)


def is_bearer(header: str | None, token: str) -> bool:
    """Whether an Authorization header carries ``token``; compared in a time that does not tell how much of it is right."""
    kind, _, given = (header or "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
