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


def test_a_share_that_came_out_far_above_what_was_asked_is_announced(caplog):
    log = [{f"{SHARE}a": 0.5, f"{SHARE}b": 0.5, f"{SHARE}c": 9.0}, {f"{SHARE}a": 1.5, f"{SHARE}b": 0.1}]
    terms = [{"name": "a", "share": -0.3}, {"name": "b", "share": 0.3}, {"name": "c", "weight": 1.0}]
    with caplog.at_level("INFO", logger="softprompt"):
        assert mechanism(None, log, None, terms)["gradient_share"] == {"a": 1.0, "b": 0.3, "c": 9.0}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "gradient_share of a is 1, 0.3 was asked for"
    ]
