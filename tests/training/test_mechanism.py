"""What a run notes of its mechanism."""

from softprompt.training.loop.trainer import SHARE
from softprompt.training.mechanism import mechanism


def test_a_share_that_was_never_finite_is_announced_and_left_out(caplog):
    log = [
        {f"{SHARE}a": 0.2, f"{SHARE}b": float("nan")},
        {f"{SHARE}a": float("inf"), f"{SHARE}b": float("nan")},
        {"loss": 1},
    ]
    with caplog.at_level("INFO", logger="softprompt"):
        assert mechanism(None, log) == {"gradient_share": {"a": 0.2}}
    assert "no share of b: its gradient was at no time finite" in caplog.text
