"""Paths of prompts that write: OpenAI's completions and chat, whole or as a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, StreamingResponse

from ..._types import SoftPromptError
from .. import engine as core
from . import bodies, replies
from .door import REFUSALS, Door, Refused, drop, gone
from .errors import body_of, problem


def writing(door: Door) -> APIRouter:
    """The paths of completions."""
    router = APIRouter()

    @router.post("/v1/completions", dependencies=[Depends(door.client)], responses=REFUSALS)
    async def completions(http: Request, body: bodies.CompletionBody) -> Any:
        """Continue one text or several, in OpenAI's form."""
        door.find(body.model, "completion")
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        return await _write(door, http, body, [{"prompt": text} for text in texts], body.max_tokens, chat=False)

    @router.post("/v1/chat/completions", dependencies=[Depends(door.client)], responses=REFUSALS)
    async def chat(http: Request, body: bodies.ChatBody) -> Any:
        """Answer messages, rendered by the chat template of the backbone's tokenizer, in OpenAI's form."""
        door.find(body.model, "completion", "chat")
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise SoftPromptError("max_tokens and max_completion_tokens are one setting: send one of them.")
        row = {"messages": [message.plain() for message in body.messages]}
        return await _write(door, http, body, [row], body.max_completion_tokens or body.max_tokens, chat=True)

    return router


async def _write(
    door: Door, http: Request, body: bodies.Sampled, rows: Sequence[dict[str, Any]], most: int | None, chat: bool
) -> Any:
    usage = body.stream_options is not None and body.stream_options.include_usage
    writing, form = body.writing(most), replies.Completions(body.model, chat, usage)
    if not body.stream:
        if body.stream_options is not None:
            raise SoftPromptError("stream_options: expected stream=true beside it.")
        asked = [core.Request(body.model, row, truncate=body.truncate, writing=writing) for row in rows]
        answers = await door.answered(http, asked)
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
            row,
            truncate=body.truncate,
            writing=writing,
            on_text=partial(give, index),
        )
        for index, row in enumerate(rows)
    ]
    futures = await door.submitted(asked)
    for index, future in enumerate(futures):
        future.add_done_callback(partial(end, index))
    first: asyncio.Future[Any] = asyncio.ensure_future(pieces.get())
    left = asyncio.ensure_future(gone(http))
    try:
        await asyncio.wait({first, left}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            raise Refused(problem(499, "the client has gone."))
        index, piece = first.result()
        if piece is None and (error := futures[index].exception()) is not None:  # nothing was sent: it has a status
            raise error
    except BaseException:
        first.cancel()
        drop(futures)
        raise
    finally:
        left.cancel()
    return _Stream(_events(form, futures, pieces, first.result(), usage), futures)


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
            drop(self.futures)


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
