"""Counters, times and states of an engine behind the server, with a shelf that computes nothing."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest

from house.served import Clock, MadeUpShelf, ask, settle
from softprompt import NonFiniteError, SoftPromptError
from softprompt.serving.engine import (
    Answer,
    Limits,
    PromptEngine,
    Watcher,
)
from softprompt.serving.http import Service, make_app, replies
from softprompt.serving.http.door import Door
from softprompt.serving.http.metrics import Metrics
from softprompt.serving.http.writing import _events


def opened(**options: Any) -> tuple[PromptEngine, MadeUpShelf, Clock]:
    shelf, clock = MadeUpShelf(), Clock()
    for name, folder in (("one", "reads"), ("two", "reads"), ("writer", "writes")):
        shelf.place(shelf.load(name, Path(folder)))
    return PromptEngine(shelf, Limits(), clock, **options), shelf, clock


def test_rows_of_a_request_are_taken_all_or_none() -> None:
    engine, shelf, _ = opened()
    with pytest.raises(SoftPromptError, match="expected a text"):
        asyncio.run(Door(engine, Service()).submitted([ask("one", "cat"), ask("one", "")]))
    settle(engine)
    assert shelf.lanes[False].batches == []


def test_counters_tell_what_the_engine_did() -> None:
    metrics = Metrics()
    engine, shelf, clock = opened(watcher=metrics)
    lane, kept = shelf.lanes[False], shelf.lanes[False].logits

    def slow(rows: Any) -> Any:
        clock.now += 2
        return kept(rows)

    lane.logits = slow  # type: ignore[method-assign]
    for name, text in (("one", "cat"), ("one", "dog"), ("two", "bird")):
        engine.submit(ask(name, text))
    clock.now = 3
    metrics.text(engine)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"softprompt_{name}", labels)

    assert (value("waiting_rows"), value("prompts")) == (3, 3)
    settle(engine)
    assert (value("batch_rows_sum"), value("batch_prompts_sum"), value("batch_rows_count")) == (3, 2, 1)
    assert (value("queued_seconds_sum"), value("computed_seconds_sum")) == (9, 6)
    assert value("tokens_total", prompt="one", kind="read") == 6
    assert value("tokens_total", prompt="one", kind="written") == 0
    settle(engine, [engine.submit(ask("writer", "ab")), engine.submit(ask("writer", "cd"))])
    assert value("tokens_total", prompt="writer", kind="read") == 4
    assert value("tokens_total", prompt="writer", kind="written") == 2 * len("writer_2:ab")
    assert value("batch_rows_sum") == 5
    metrics.text(engine)
    assert value("waiting_rows") == 0


def test_health_says_503_as_soon_as_nothing_is_taken() -> None:
    async def health(engine: PromptEngine) -> httpx.Response:
        transport = httpx.ASGITransport(make_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get("/healthz")

    engine, _, _ = opened()
    assert asyncio.run(health(engine)).status_code == 200
    engine.close()
    closing = asyncio.run(health(engine))
    assert (closing.status_code, closing.json()) == (503, {"status": "closing"})
    engine.failure = MemoryError()
    failed = asyncio.run(health(engine))
    assert (failed.status_code, failed.json()) == (503, {"status": "failed"})


def test_a_stream_that_fails_half_way_says_so() -> None:
    async def events() -> list[str]:
        failed: Future[Answer] = Future()
        failed.set_exception(NonFiniteError("no numbers"))
        pieces: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()
        pieces.put_nowait((0, None))
        return [one async for one in _events(replies.Completions("m", False), [failed], pieces, (0, "a"), False)]

    piece, said = asyncio.run(events())
    assert json.loads(piece.removeprefix("data: "))["choices"][0]["text"] == "a"
    assert json.loads(said.removeprefix("data: "))["error"]["code"] == "not_finite"


# test_engine.py


def test_an_answer_says_how_long_it_waited_and_was_computed() -> None:
    engine, shelf, clock = opened()
    lane, kept = shelf.lanes[False], shelf.lanes[False].logits

    def slow(rows: Any) -> Any:
        clock.now += 2
        return kept(rows)

    lane.logits = slow  # type: ignore[method-assign]
    future = engine.submit(ask("one", "cat"))
    clock.now = 3
    (read,) = settle(engine, [future])
    assert (read.queued_s, read.computed_s) == (3, 2)
    future = engine.submit(ask("writer", "a"))
    clock.now += 4
    engine.step()
    clock.now += 1
    (written,) = settle(engine, [future])
    assert (written.queued_s, written.computed_s) == (4, 1)


def test_a_name_that_is_taken_again_keeps_its_counters() -> None:
    removed: list[str] = []

    class Seeing(Watcher):
        def removed(self, name: str) -> None:
            removed.append(name)

    engine, _, _ = opened(watcher=Seeing())
    engine.submit(ask("one", "cat"))
    gone, again = engine.remove("one"), engine.add("one", Path("reads"))
    settle(engine, [gone, again])
    assert removed == []
    settle(engine, [engine.remove("one")])
    assert removed == ["one"]


# test_shelf.py
