"""What stands in front of every request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from softprompt.serving.http.guard import BodyLimit, is_bearer


@pytest.mark.parametrize(
    "header, good",
    [
        ("Bearer secret", True),
        ("bearer secret", True),
        ("Bearer  secret ", True),
        ("Bearer secre", False),
        ("Bearer secret2", False),
        ("Basic secret", False),
        ("secret", False),
        ("Bearer", False),
        ("Bearer \u00e9", False),
        ("", False),
        (None, False),
    ],
)
def test_only_the_whole_token_is_the_token(header: str | None, good: bool) -> None:
    assert is_bearer(header, "secret") is good


def sent(
    messages: list[dict[str, Any]], limit: int, announced: str | None = None, wait_s: float = 0.0
) -> tuple[list[Any], list[Any]]:
    """What an application behind the limit reads, and what the client gets."""
    read, got, waiting = [], [], list(messages)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read.append(await receive())
        read.append(await receive())

    async def receive() -> Any:
        await asyncio.sleep(wait_s)
        return waiting.pop(0)

    async def send(message: Any) -> None:
        got.append(message)

    headers = [(b"content-type", b"application/json")]
    headers += [] if announced is None else [(b"content-length", announced.encode())]
    asyncio.run(
        BodyLimit(app, limit, seconds=0.2)({"type": "http", "method": "POST", "headers": headers}, receive, send)
    )
    return read, got


def test_a_body_within_the_limit_comes_whole_and_the_end_of_the_client_is_heard() -> None:
    parts = [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.request", "body": b"cd"}]
    read, got = sent([*parts, {"type": "http.disconnect"}], 4)
    assert (
        read == [{"type": "http.request", "body": b"abcd", "more_body": False}, {"type": "http.disconnect"}] and not got
    )


@pytest.mark.parametrize("announced", [None, "5", "99999999999999999999", "x"])
def test_a_longer_one_is_refused_before_the_application_reads_it(announced: str | None) -> None:
    parts = [{"type": "http.request", "body": b"abc", "more_body": True}] * 2
    read, got = sent(parts, 4, announced)
    assert not read and got[0]["status"] == 413


def test_one_that_never_ends_is_given_up() -> None:
    parts = [{"type": "http.request", "body": b"", "more_body": True}] * 100
    read, got = sent(parts, 4, wait_s=0.05)
    assert not read and got[0]["status"] == 408


def test_a_client_that_goes_in_the_middle_is_forgotten() -> None:
    parts = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]
    assert sent(parts, 4) == ([], [])


def test_a_body_that_is_announced_too_long_is_not_read() -> None:
    got: list[Any] = []

    async def never(*_: Any) -> Any:
        raise AssertionError("nothing of it is read")

    async def send(message: Any) -> None:
        got.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"5")]
    asyncio.run(BodyLimit(never, 4)({"type": "http", "method": "POST", "headers": headers}, never, send))
    assert got[0]["status"] == 413
