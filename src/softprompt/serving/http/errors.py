"""Errors in OpenAI's form: what was expected, what came, what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse

from ..._types import NonFiniteError, SoftPromptError
from ..engine import ClosingError, OverloadedError, TooLateError, TooLongError, UnknownPromptError

INTERNAL = "the server failed on this request; its log says more."
# of an error, the first that fits: status, type, code
KINDS: tuple[tuple[type[BaseException], int, str, str], ...] = (
    (UnknownPromptError, 404, "invalid_request_error", "model_not_found"),
    (TooLongError, 400, "invalid_request_error", "context_length_exceeded"),
    (OverloadedError, 429, "rate_limit_error", "too_many_waiting"),
    (TooLateError, 504, "timeout_error", "timeout"),
    (ClosingError, 503, "service_unavailable", "closing"),
    (NonFiniteError, 500, "server_error", "not_finite"),
    (SoftPromptError, 400, "invalid_request_error", "invalid_value"),
)


def body_of(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and document of an error; what is no error of ours says nothing of itself."""
    for kind, status, name, code in KINDS:
        if isinstance(error, kind):
            return status, _document(str(error), name, code)
    return 500, _document(INTERNAL, "server_error", None)


def response_of(error: BaseException) -> JSONResponse:
    """The response for an error."""
    status, document = body_of(error)
    wait = {"Retry-After": str(math.ceil(error.retry_after_s))} if isinstance(error, OverloadedError) else None
    return JSONResponse(document, status, wait)


def problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A response that refuses."""
    kind = {401: "authentication_error", 403: "permission_error"}.get(status, "invalid_request_error")
    return JSONResponse(_document(message, kind, None), status, dict(headers or {}))


def invalid(errors: Sequence[Any]) -> JSONResponse:
    """The response for a body that is none of the form: its first faults, each with its place."""
    found = []
    for error in errors[:3]:
        place = ".".join(str(part) for part in error["loc"] if part != "body" and not str(part).startswith("function-"))
        got = error.get("input")
        if error["type"] == "extra_forbidden":
            found.append(f"{place}: there is no such field in this request")
            continue
        came = "" if isinstance(got, dict | list) or error["type"] == "missing" else f", got {got!r:.60}"
        found.append(f"{place or 'body'}: {error['msg']}{came}")
    return JSONResponse(_document("; ".join(found) + ".", "invalid_request_error", "invalid_body"), 400)


def _document(message: str, kind: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
