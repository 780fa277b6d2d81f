"""What a client of the server relies on: numbers, limits and states that a body, an answer or a counter carries."""

from __future__ import annotations

import asyncio
import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest

from house.live import heads, live
from house.served import Clock, MadeUpShelf, ask, settle, shelved, train_readers
from softprompt import NonFiniteError, SoftPromptError
from softprompt.serving.engine import (
    Answer,
    ClosingError,
    Limits,
    OverloadedError,
    PromptEngine,
    TakenError,
    TooLateError,
    TooLongError,
    UnknownPromptError,
    Watcher,
    Writing,
)
from softprompt.serving.http import Service, bodies, make_app, replies
from softprompt.serving.http.door import Door
from softprompt.serving.http.errors import INTERNAL, body_of
from softprompt.serving.http.metrics import Metrics
from softprompt.serving.http.writing import _events

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("http")


@pytest.fixture(scope="module")
def readers(root):
    return train_readers(root, "plain", "deep", "pair")


@pytest.fixture(scope="module")
def reading(readers, root):
    engine = PromptEngine(shelved(readers), watcher=Metrics()).start()
    service = Service(token="guest", admin_token="chief", prompts_dir=root / "prompts", body_bytes=4000, rows=8)
    with live(engine, service) as address:
        yield address


@pytest.fixture(scope="module")
def writing(writers):
    engine = PromptEngine(shelved(writers), Limits(new_tokens=30)).start()
    engine.shelf.find("short").tokenizer.chat_template = TEMPLATE
    with live(engine) as address:
        yield address


def post(address, path, body, token="guest"):
    return httpx.post(f"{address}{path}", json=body, headers=heads(token), timeout=30)


def error(response):
    return str(response.json()["error"]["message"])


def test_what_a_body_says_reaches_the_writing() -> None:
    asked = {"model": "m", "prompt": "x"}
    body = bodies.CompletionBody(**asked)
    assert body.writing(body.max_tokens) == Writing(16, 1.0, 1.0, (), None)  # OpenAI's defaults
    neutral = bodies.CompletionBody(**asked, temperature=None, top_p=None, stop=None, max_tokens=None)
    assert neutral.writing(neutral.max_tokens) == Writing(None, 1.0, 1.0, (), None)
    own = bodies.CompletionBody(**asked, temperature=0.5, top_p=0.9, stop="a", seed=7)
    assert own.writing(3) == Writing(3, 0.5, 0.9, ("a",), 7)
    assert bodies.CompletionBody(**asked, stop=["a", "b"]).writing(3).stop == ("a", "b")
    said = bodies.Message(role="developer", content="x").plain()
    assert said == {"role": "system", "content": "x"}  # templates know no developer


def test_usage_counts_what_was_read_and_what_was_written(writing: str) -> None:
    body = {"model": "short", "prompt": ["red dog", "red"], "max_tokens": 1, "temperature": 0}
    made = post(writing, "/v1/completions", body, None).json()
    assert made["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_max_tokens_of_a_chat_by_either_name(writing: str) -> None:
    chat: dict[str, Any] = {"model": "short", "messages": [{"role": "user", "content": "red dog"}], "temperature": 0}
    for name in ("max_tokens", "max_completion_tokens"):
        made = post(writing, "/v1/chat/completions", {**chat, name: 1}, None).json()
        assert made["usage"]["completion_tokens"] == 1
    said = post(writing, "/v1/chat/completions", {**chat, "max_tokens": 1, "max_completion_tokens": 1}, None)
    assert (said.status_code, "are one setting: send one of them" in error(said)) == (400, True)
    said = post(writing, "/v1/chat/completions", {**chat, "stream_options": {"include_usage": True}}, None)
    assert (said.status_code, "expected stream=true beside it" in error(said)) == (400, True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_prompt_is_cut_where_that_is_asked_for(writing: str, stream: bool) -> None:
    long = {"model": "short", "prompt": "red dog " * 30, "max_tokens": 2, "stream": stream}
    assert post(writing, "/v1/completions", long, None).status_code == 400
    assert post(writing, "/v1/completions", {**long, "truncate": True}, None).status_code == 200


def test_predict_cuts_where_that_is_asked_for(reading: str) -> None:
    body = {"model": "plain", "inputs": "red dog " * 30}
    assert post(reading, "/predict", body).status_code == 400
    assert post(reading, "/predict", {**body, "truncate": True}).status_code == 200


def test_a_model_says_what_it_reads(reading: str) -> None:
    said = {n: httpx.get(f"{reading}/v1/models/{n}", headers=heads("guest")).json() for n in ("plain", "pair", "deep")}
    assert {name: one["texts"] for name, one in said.items()} == {"plain": 1, "pair": 2, "deep": 1}
    assert {name: one["compiled"] for name, one in said.items()} == {"plain": False, "pair": False, "deep": True}
    assert all(one["max_length"] == 24 and one["task"] == "classification" for one in said.values())


def test_a_prompt_is_added_from_the_folder_of_its_name(reading: str, root: Path) -> None:
    shutil.copytree(root / "prompts" / "pair", root / "prompts" / "fresh")
    made = post(reading, "/admin/prompts", {"name": "fresh"}, "chief")
    assert made.status_code == 201 and made.json()["texts"] == 2
    httpx.delete(f"{reading}/admin/prompts/fresh", headers=heads("chief"))


def test_the_slowest_row_says_the_timing() -> None:
    rows = [Answer({}, 1, queued_s=0.001, computed_s=0.004), Answer({}, 1, queued_s=0.003, computed_s=0.002)]
    assert replies.timing(rows) == {"Server-Timing": "queue;dur=3.0, compute;dur=4.0"}


@pytest.mark.parametrize(
    "failed, status, code",
    [
        (UnknownPromptError("x"), 404, "model_not_found"),
        (TakenError("x"), 409, "name_taken"),
        (TooLongError("x"), 400, "context_length_exceeded"),
        (OverloadedError("x", 1.0), 429, "too_many_waiting"),
        (TooLateError("x"), 504, "timeout"),
        (ClosingError("x"), 503, "closing"),
        (NonFiniteError("x"), 500, "not_finite"),
        (SoftPromptError("x"), 400, "invalid_value"),
        (ValueError("a secret"), 500, None),
    ],
)
def test_an_error_has_the_status_that_a_client_acts_on(failed: Exception, status: int, code: str | None) -> None:
    got, document = body_of(failed)
    assert (got, document["error"]["code"]) == (status, code)
    assert document["error"]["message"] == ("x" if code else INTERNAL)


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


def test_a_row_counts_its_texts_their_tokens_and_its_positions(readers) -> None:
    shelf = shelved(readers)
    row = {"text": "red dog", "text_pair": "It was good"}
    made = {n: shelf.find(n).encode(row if n == "pair" else {"text": "red dog"}, Writing(), False) for n in readers}
    assert (made["plain"].tokens, made["plain"].texts) == (4, 1)
    assert (made["pair"].tokens, made["pair"].texts) == (9, 2)
    virtual = {n: shelf.find(n).model.peft_config[shelf.find(n).key].num_virtual_tokens for n in readers}
    assert made["plain"].length == 4 + virtual["plain"] and made["pair"].length == 5 + virtual["pair"]
    assert made["deep"].length == 4  # compiled: no position of the prompt is run


# test_guard.py
def test_a_body_that_is_announced_too_long_is_not_read() -> None:
    from softprompt.serving.http.guard import BodyLimit

    got: list[Any] = []

    async def never(*_: Any) -> Any:
        raise AssertionError("nothing of it is read")

    async def send(message: Any) -> None:
        got.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"5")]
    asyncio.run(BodyLimit(never, 4)({"type": "http", "method": "POST", "headers": headers}, never, send))
    assert got[0]["status"] == 413
