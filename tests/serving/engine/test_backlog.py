"""Which of the waiting rows go into one batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from house.served import ask
from softprompt.serving.engine.backlog import Backlog, Job
from softprompt.serving.engine.request import Encoded, Limits

SERVED = {name: SimpleNamespace(name=name, group=name[0]) for name in ("a1", "a2", "a3", "b1")}


def job(name: str, length: int, texts: int = 1) -> Job:
    return Job(ask(name, "x"), SERVED[name], Encoded({}, {}, length, length, texts), 0.0, 1.0)


def filled(*jobs: Job) -> Backlog:
    backlog = Backlog()
    for one in jobs:
        backlog.push(one)
    return backlog


def anything(job: Job) -> bool:
    return True


def cost(batch: list[Job]) -> int:
    return max(one.length for one in batch) * sum(one.inputs for one in batch)


def test_rows_of_one_group_are_mixed_and_the_longest_stands_first() -> None:
    jobs = [job("a1", 4), job("b1", 4), job("a2", 6), job("a3", 5)]
    backlog = filled(*jobs)
    assert backlog.take(anything, Limits()) == [jobs[2], jobs[3], jobs[0]]
    assert backlog.take(anything, Limits()) == [jobs[1]] and len(backlog) == 0


def test_a_batch_keeps_to_its_positions_and_takes_the_rows_nearest_in_length() -> None:
    jobs = [job("a1", 10), job("a1", 100), job("a2", 11), job("a2", 9)]
    backlog = filled(*jobs)
    assert set(backlog.take(anything, Limits(batch_tokens=33))) == {jobs[0], jobs[2], jobs[3]}
    assert backlog.take(anything, Limits(batch_tokens=33)) == [jobs[1]]  # one row may be more than the budget


def test_a_row_much_longer_than_the_others_goes_by_itself() -> None:
    jobs = [*(job("a1", 10) for _ in range(4)), job("a2", 200), job("a3", 12)]
    backlog = filled(*jobs)
    assert set(backlog.take(anything, Limits())) == {*jobs[:4], jobs[5]}
    assert backlog.take(anything, Limits()) == [jobs[4]]


def test_a_row_that_does_not_fit_leaves_room_for_a_shorter_one() -> None:
    jobs = [*(job("a1", 10) for _ in range(9)), job("a2", 12), job("a3", 7)]
    assert jobs[10] in filled(*jobs).take(anything, Limits(batch_tokens=100))


def test_two_texts_of_a_row_are_two_inputs() -> None:
    backlog = filled(job("a1", 10, texts=2), job("a2", 10, texts=2))
    assert len(backlog.take(anything, Limits(batch_tokens=39))) == 1


@pytest.mark.parametrize("prompts, rows, taken", [(1, None, 2), (2, None, 3), (None, 2, 2), (None, None, 4)])
def test_a_batch_may_be_kept_to_few_prompts_or_rows(prompts: int | None, rows: int | None, taken: int) -> None:
    backlog = filled(job("a1", 5), job("a2", 5), job("a1", 5), job("a3", 5))
    assert len(backlog.take(anything, Limits(batch_prompts=prompts), rows)) == taken


@given(
    st.lists(st.tuples(st.sampled_from(sorted(SERVED)), st.integers(1, 50), st.integers(1, 2)), max_size=20),
    st.integers(1, 200),
)
def test_every_row_is_taken_once_and_the_oldest_is_never_left(rows: list[tuple[Any, ...]], budget: int) -> None:
    jobs = [job(*row) for row in rows]
    backlog, seen = filled(*jobs), []
    while len(backlog):
        oldest = next(one for one in jobs if one not in seen)
        batch = backlog.take(anything, Limits(batch_tokens=budget))
        assert oldest in batch and len({one.served.group for one in batch}) == 1
        assert len(batch) == 1 or cost(batch) <= budget
        seen += batch
    assert sorted(map(id, seen)) == sorted(map(id, jobs))


def test_rows_go_together_up_to_a_share_of_padding() -> None:
    served = SimpleNamespace(name="a1", group="a")

    def taken(*lengths: int) -> int:
        backlog = Backlog()
        for tokens in lengths:
            backlog.push(Job(ask("a1", "x"), served, Encoded({}, {}, tokens, tokens, 1), 0.0, 1.0))
        return len(backlog.take(lambda job: True, Limits()))

    assert (taken(10, 30), taken(10, 31)) == (2, 1)
