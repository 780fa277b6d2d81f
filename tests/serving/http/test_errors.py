"""The status and the code of each error."""

from __future__ import annotations

import pytest

from softprompt import NonFiniteError, SoftPromptError
from softprompt.serving.engine import (
    ClosingError,
    OverloadedError,
    TakenError,
    TooLateError,
    TooLongError,
    UnknownPromptError,
)
from softprompt.serving.http.errors import INTERNAL, body_of


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
