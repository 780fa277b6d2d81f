"""Errors in OpenAI's form: what was expected, what came, what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse

from ..._types import NonFiniteError, SoftPromptError
from ..engine import ClosingError, OverloadedError, TakenError, TooLateError, TooLongError, UnknownPromptError

INTERNAL = "the server failed on this request; its log says more."


class UnknownFolderError(SoftPromptError):
    """The operator has no such folder."""


# of an error, the first that fits: status, type, code
KINDS: tuple[tuple[type[BaseException], int, str, str], ...] = (
    (UnknownPromptError, 404, "invalid_request_error", "model_not_found"),
    (UnknownFolderError, 404, "invalid_request_error", "folder_not_found"),
    (TakenError, 409, "invalid_request_error", "name_taken"),
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


# fields of several forms: what a client may send, where pydantic would name each form that it is not
FORMS = {
    "input": "a text, an object with text (and text_pair) or with tokens, or a list of these, none of them empty",
    "inputs": 'a text, or a list of lists of one text or of two, such as [["a"], ["b"]], none of them empty',
    "prompt": "a text or a list of texts, none of them empty",
    "messages": "a list of objects with role (system, developer, user or assistant) and content (a text, or a list of parts of type text)",
    "stop": "a text or up to 4 texts, none of them empty",
}


# settings of OpenAI's that are taken at the value that changes nothing
UNSERVED = (
    "n",
    "echo",
    "best_of",
    "logprobs",
    "suffix",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "tools",
    "response_format",
    "raw_scores",
)


def invalid(errors: Sequence[Any]) -> JSONResponse:
    """The response for a body that is none of the form: its faults, each with its place."""
    found: dict[str, str] = {}
    for error in errors:
        path = [str(part) for part in error["loc"] if part != "body"]
        name, place = (path or ["body"])[0], ".".join(path) or "body"
        if error["type"] == "json_invalid":
            found["body"] = (
                f"expected one JSON document, got {error.get('ctx', {}).get('error', 'something else')} at character {path[0]}"
            )
        elif error["type"] == "extra_forbidden":
            found[path[-1]] = "there is no such field here"
        elif error["type"] == "missing":
            found[place] = "expected a value, got none"
        elif name in FORMS:
            found.setdefault(name, f"expected {FORMS[name]}")
        elif name in UNSERVED:
            found.setdefault(
                name, f"expected no such setting, which is not served here, got {error.get('input')!r:.60}"
            )
        else:
            got = error.get("input")
            found.setdefault(name, error["msg"] + ("" if isinstance(got, dict | list) else f", got {got!r:.60}"))
    message = "; ".join(f"{place}: {said}" for place, said in list(found.items())[:5]) + "."
    param = next(iter(found)) if len(found) == 1 else None
    return JSONResponse(_document(message, "invalid_request_error", "invalid_body", param), 400)


def _document(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
