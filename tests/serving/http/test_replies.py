"""What an answer says of itself."""

from __future__ import annotations

from softprompt.serving.engine import (
    Answer,
)
from softprompt.serving.http import replies


def test_the_slowest_row_says_the_timing() -> None:
    rows = [Answer({}, 1, queued_s=0.001, computed_s=0.004), Answer({}, 1, queued_s=0.003, computed_s=0.002)]
    assert replies.timing(rows) == {"Server-Timing": "queue;dur=3.0, compute;dur=4.0"}
