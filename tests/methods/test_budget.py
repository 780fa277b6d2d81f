"""Budgets: the largest rank that fits beside a short prompt."""

import pytest

from softprompt import SoftPromptError, equal_budget


@pytest.mark.parametrize("short, expected", [(40, (40, 45)), (60, (60, 30)), (80, (80, 15)), (None, (60, 30))])
def test_equal_budget_gives_depts_pairs(short, expected):
    assert equal_budget(100, 768, short=short) == expected


@pytest.mark.parametrize("hidden", [384, 768, 2048])
@pytest.mark.parametrize("length", [20, 100])
def test_equal_budget_is_the_largest_that_fits(length, hidden):
    m, rank = equal_budget(length, hidden, max_positions=128)
    assert m * hidden + rank * (128 + hidden) <= length * hidden < m * hidden + (rank + 1) * (128 + hidden)


@pytest.mark.parametrize(
    "length, short, words",
    [(2, None, "m=1 and rank=0"), (10, 10, "m=10 and rank=0"), (10, 12, "m=12 and rank=-2"), (10, 0, "m=0 and rank=7")],
)
def test_equal_budget_refuses_what_leaves_nothing(length, short, words):
    with pytest.raises(
        SoftPromptError,
        match=f"a budget of {length} virtual tokens leaves {words} at hidden_size=768, max_positions=256",
    ):
        equal_budget(length, 768, short=short)
