"""The engine over made-up prompts and a clock that stands still: every request ends once, with its own answer."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from house.served import Clock, MadeUpShelf, ask, settle
from softprompt import NonFiniteError, SoftPromptError
from softprompt.serving.engine import (
    ClosingError,
    Limits,
    OverloadedError,
    PromptEngine,
    TooLateError,
    UnknownPromptError,
    Watcher,
    Writing,
)

TEXTS = ("red dog", "cat", "a much longer text", "poison", "nan")
NAMES = ("one", "two", "three")


def opened(*names: str, **limits: Any) -> tuple[PromptEngine, MadeUpShelf, Clock]:
    shelf, clock = MadeUpShelf(), Clock()
    engine = PromptEngine(shelf, Limits(**limits), clock)
    for name in names:
        done = engine.add(name, Path("writes" if name.startswith("w") else "reads"))
        settle(engine, [done])
    return engine, shelf, clock


def test_rows_of_many_prompts_are_one_batch_and_each_gets_its_own_answer() -> None:
    engine, shelf, _ = opened("one", "two", "three")
    futures = [engine.submit(ask(name, text)) for name in ("one", "two", "three") for text in TEXTS[:3]]
    assert engine.step()
    assert len(shelf.lanes[False].batches) == 1
    answers = settle(engine, futures)
    keys = {name: shelf.find(name).key for name in shelf.prompts}
    assert [one.prediction["label"] for one in answers] == [
        f"{keys[name]}:{text}" for name in ("one", "two", "three") for text in TEXTS[:3]
    ]


def test_one_row_that_breaks_its_batch_or_has_no_numbers_fails_alone() -> None:
    engine, _, _ = opened("one", "two")
    futures = [engine.submit(ask(name, text)) for name in ("one", "two") for text in TEXTS]
    settle(engine)
    errors = [future.exception(0) for future in futures]
    assert [type(error) for error in errors] == [type(None)] * 3 + [RuntimeError, NonFiniteError] + [type(None)] * 3 + [
        RuntimeError,
        NonFiniteError,
    ]


def test_completions_are_written_beside_rows_that_are_read_and_given_piece_by_piece() -> None:
    engine, _, _ = opened("one", "writer")
    pieces: list[str] = []
    long = engine.submit(ask("writer", "abc", on_text=pieces.append))
    engine.step()
    short = engine.submit(ask("one", "cat"))
    engine.step()
    assert short.done() and not long.done() and len(pieces) == 2
    (answer,) = settle(engine, [long])
    assert "".join(pieces) == answer.prediction["completion"] == "writer_1:abc"
    assert (answer.finish_reason, answer.completion_tokens) == ("stop", len("writer_1:abc"))


def test_a_completion_that_breaks_its_batch_fails_alone_and_the_others_are_written() -> None:
    engine, _, _ = opened("writer")
    futures = [engine.submit(ask("writer", text)) for text in ("ab", "poison", "c")]
    settle(engine)
    assert [future.exception(0) is None for future in futures] == [True, False, True]
    assert futures[2].result(0).prediction == {"completion": "writer_0:c"}


def test_the_deadline_is_looked_at_before_anything_is_computed() -> None:
    engine, shelf, clock = opened("one", "writer", timeout_s=10)
    futures = [engine.submit(ask("one", "cat")), engine.submit(ask("one", "dog", timeout_s=2))]
    clock.now = 2
    settle(engine)
    assert shelf.lanes[False].batches == [[("one", "cat")]]
    with pytest.raises(TooLateError, match="no answer within 2 s; send fewer rows at a time"):
        futures[1].result(0)
    written = engine.submit(ask("writer", "a long text", timeout_s=60))  # never more than the engine's own
    engine.step()
    clock.now = 13
    settle(engine)
    with pytest.raises(TooLateError, match="within 10 s"):
        written.result(0)


def test_cancelled_rows_are_dropped_and_cancelled_completions_end() -> None:
    engine, shelf, _ = opened("one", "writer")
    futures = [engine.submit(ask("one", "cat")), engine.submit(ask("one", "dog")), engine.submit(ask("writer", "abc"))]
    assert futures[0].cancel()
    engine.step()
    assert futures[2].cancel() and engine.writing == 1
    engine.step()
    assert engine.writing == 0  # of a text of twelve letters two were written
    settle(engine)
    assert shelf.lanes[False].batches == [[("one", "dog")]] and engine.writing == 0
    assert shelf.find("one").pending == shelf.find("writer").pending == 0


def test_who_listens_no_more_stops_the_writing() -> None:
    engine, _, _ = opened("writer")

    def deaf(piece: str) -> None:
        raise RuntimeError("the loop is closed")

    future = engine.submit(ask("writer", "abcdef", on_text=deaf))
    settle(engine)
    assert future.cancelled() and engine.writing == 0


def test_more_than_may_wait_is_refused_with_the_time_to_come_back() -> None:
    engine, _, _ = opened("one", waiting_rows=2)
    futures = [engine.submit(ask("one", "cat")) for _ in range(2)]
    with pytest.raises(OverloadedError, match="2 rows wait already, and at most 2 may; ask again later") as refused:
        engine.submit(ask("one", "cat"))
    assert refused.value.retry_after_s >= 1
    settle(engine, futures)
    engine.submit(ask("one", "cat"))


def test_a_removed_prompt_answers_what_it_has_and_its_name_is_free_at_once() -> None:
    engine, shelf, _ = opened("one")
    old = engine.submit(ask("one", "cat"))
    gone = engine.remove("one")
    with pytest.raises(UnknownPromptError):
        engine.submit(ask("one", "cat"))
    again = engine.add("one", Path("reads"))
    engine.step()
    assert again.done()
    new = engine.submit(ask("one", "cat"))
    assert [one.prediction["label"] for one in settle(engine, [old, new])] == ["one_0:cat", "one_1:cat"]
    assert gone.result(0) is None and shelf.lanes[False].loaded == {"one_1"}


def test_what_is_wrong_with_a_prompt_or_a_row_is_said_and_nothing_else_changes() -> None:
    engine, shelf, _ = opened("one")
    broken, taken = engine.add("two", Path("broken")), engine.add("one", Path("reads"))
    settle(engine)
    for future in (broken, taken):
        with pytest.raises(SoftPromptError, match=r"broken|taken"):
            future.result(0)
    with pytest.raises(SoftPromptError, match="expected a text"):
        engine.submit(ask("one", ""))
    with pytest.raises(UnknownPromptError):
        engine.remove("two")
    assert shelf.find("one").pending == 0


def test_closing_answers_what_is_there_and_takes_nothing_more() -> None:
    engine, _, _ = opened("one", "writer")
    futures = [engine.submit(ask("one", "cat")), engine.submit(ask("writer", "abc"))]
    engine.close()
    assert all(future.result(0) for future in futures)
    for call in (
        lambda: engine.submit(ask("one", "cat")),
        lambda: engine.add("x", Path("reads")),
        lambda: engine.remove("one"),
    ):
        with pytest.raises(ClosingError, match="the server stops; ask another one"):
            call()
    assert not engine.is_open


def test_what_has_no_answer_in_time_fails_when_the_engine_closes() -> None:
    engine, _, _ = opened("writer")
    future = engine.submit(ask("writer", "a" * 50))
    engine.close(timeout_s=0)
    with pytest.raises(ClosingError, match="the server stops before this was answered"):
        future.result(0)


def test_a_thread_of_its_own_answers_requests_of_many_threads() -> None:
    engine, shelf, _ = opened("one", "two", "writer")
    engine.start()
    answers: dict[tuple[str, str], Any] = {}

    def client(name: str, text: str) -> None:
        answers[name, text] = engine.submit(ask(name, text)).result(30)

    asked = [(name, f"text {i}") for name in ("one", "two", "writer") for i in range(20)]
    threads = [threading.Thread(target=client, args=one) for one in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    removed = engine.remove("two")
    assert removed.result(10) is None
    engine.close(10)
    for (name, text), answer in answers.items():
        assert next(iter(answer.prediction.values())).endswith(f":{text}")
        assert next(iter(answer.prediction.values())).startswith(f"{name}_")
    assert len(answers) == 60 and shelf.lanes[False].loaded == {"one_0"}


def test_an_engine_that_fails_says_so_and_lets_nobody_wait(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Watcher):
        def batch(self, jobs: Any, seconds: float) -> None:
            raise MemoryError("no memory")

    shelf = MadeUpShelf()
    engine = PromptEngine(shelf, watcher=Broken())
    shelf.place(shelf.load("one", Path("reads")))
    future = engine.submit(ask("one", "cat"))
    waits = engine.submit(ask("one", "dog"))
    engine.start()
    assert isinstance(future.exception(10), MemoryError) and isinstance(waits.exception(10), MemoryError)
    with pytest.raises(ClosingError, match=r"the engine has failed \(no memory\); start the server again"):
        engine.submit(ask("one", "cat"))
    assert not engine.is_open
    assert shelf.find("one").pending == 0


def test_a_row_that_ended_where_another_breaks_its_batch_is_answered() -> None:
    engine, shelf, _ = opened("writer")
    short = engine.submit(ask("writer", "a", writing=Writing(max_new_tokens=2)))
    broken = engine.submit(ask("writer", "abc"))
    engine.step()
    cohort, lane = engine._cohorts.running[0][0], shelf.lanes[True]
    kept = cohort.step

    def breaks() -> Any:
        kept()
        raise RuntimeError("after some rows were written")

    cohort.step = breaks  # type: ignore[method-assign]
    settle(engine)
    assert lane.loaded and all(future.done() for future in (short, broken))
    assert shelf.find("writer").pending == 0 and engine.writing == 0


def test_an_errand_that_nobody_waits_for_is_done_and_hurts_nobody() -> None:
    engine, shelf, _ = opened("one")
    added, removed = engine.add("two", Path("reads")), engine.remove("one")
    assert added.cancel() and removed.cancel()
    settle(engine)
    assert list(shelf.prompts) == ["two"] and len(shelf.lanes[False].loaded) == 1 and engine.is_open


def test_few_batches_of_completions_are_written_at_once_and_the_others_gather() -> None:
    engine, shelf, _ = opened("writer", cohorts=2, writing_rows=64)
    futures = []
    for number in range(6):
        futures.append(engine.submit(ask("writer", f"text {number}")))
        engine.step()
    settle(engine, futures)
    assert [len(batch) for batch in shelf.lanes[True].batches] == [1, 1, 4]


def test_what_is_refused_is_told_to_the_watcher() -> None:
    refused = []

    class Seeing(Watcher):
        def refused(self, name: str, error: BaseException) -> None:
            refused.append((name, type(error)))

    shelf = MadeUpShelf()
    shelf.place(shelf.load("one", Path("reads")))
    engine = PromptEngine(shelf, Limits(waiting_rows=1), watcher=Seeing())
    engine.submit(ask("one", "cat"))
    for name in ("one", "made-up"):
        with pytest.raises((OverloadedError, UnknownPromptError)):
            engine.submit(ask(name, "cat"))
    assert refused == [("one", OverloadedError)]  # a name that a client makes up is no counter


class Life(RuleBasedStateMachine):
    """Prompts come and go while rows are asked for, cancelled and forgotten; then the engine is closed."""

    asked = Bundle("asked")

    def __init__(self) -> None:
        super().__init__()
        self.shelf, self.clock = MadeUpShelf(), Clock()
        self.engine = PromptEngine(
            self.shelf, Limits(waiting_rows=6, timeout_s=5, batch_tokens=40, writing_rows=3), self.clock
        )
        for name, folder in (("one", "reads"), ("two", "writes")):  # else most rows ask for a prompt that is not there
            self.shelf.place(self.shelf.load(name, Path(folder)))
        self.expected: dict[Future[Any], tuple[str, str, float]] = {}  # future -> the prompt's key, text, deadline
        self.removed: list[Future[Any]] = []

    @rule(name=st.sampled_from(NAMES), folder=st.sampled_from(["reads", "writes", "broken"]))
    def add(self, name: str, folder: str) -> None:
        self.engine.add(name, Path(folder))

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        there = name in self.shelf.prompts
        try:
            self.removed.append(self.engine.remove(name))
            assert there
        except UnknownPromptError:
            assert not there

    @rule(target=asked, name=st.sampled_from(NAMES), text=st.sampled_from(TEXTS), limit=st.sampled_from([None, 1.0]))
    def submit(self, name: str, text: str, limit: float | None) -> Any:
        served = self.shelf.prompts.get(name)
        full = self.engine.waiting >= 6
        try:
            future = self.engine.submit(ask(name, text, timeout_s=limit, writing=Writing(max_new_tokens=8)))
        except UnknownPromptError:
            assert served is None
            return None
        except OverloadedError:
            assert full
            return None
        assert served is not None and not full
        self.expected[future] = (served.key, text, self.clock.now + (limit or 5.0))
        return future

    @rule(future=consumes(asked))
    def cancel(self, future: Any) -> None:
        if future is not None and future.cancel():
            self.expected.pop(future, None)

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def step(self) -> None:
        self.engine.step()

    @rule()
    def drain(self) -> None:
        settle(self.engine)
        assert all(future.done() for future in self.expected)
        assert all(future.done() for future in self.removed)

    @invariant()
    def answers_are_the_rows_own(self) -> None:
        for future, (key, text, deadline) in list(self.expected.items()):
            if not future.done():
                continue
            error = future.exception(0)
            if error is None:
                (made,) = future.result(0).prediction.values()
                assert made in (f"{key}:{text}", f"{key}:{text}"[:8])
            elif isinstance(error, TooLateError):
                assert self.clock.now >= deadline
            else:
                assert isinstance(error, (RuntimeError, NonFiniteError)) and text in ("poison", "nan")
            del self.expected[future]

    @invariant()
    def nothing_is_held_for_nobody(self) -> None:
        loaded = self.shelf.lanes[False].loaded | self.shelf.lanes[True].loaded
        assert {one.key for one in self.shelf.prompts.values()} <= loaded
        assert all(one.pending >= 0 for one in self.shelf.prompts.values())

    def teardown(self) -> None:
        self.engine.close()
        assert all(future.done() for future in self.expected)
        self.answers_are_the_rows_own()
        assert all(one.pending == 0 for one in self.shelf.prompts.values())
        assert {one.key for one in self.shelf.prompts.values()} == (
            self.shelf.lanes[False].loaded | self.shelf.lanes[True].loaded
        )


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_rows_that_are_written_count_against_the_limit() -> None:
    engine, _, _ = opened("writer", cohorts=4, writing_rows=3)
    futures, most = [], 0
    for _ in range(3):
        futures += [engine.submit(ask("writer", "a text")) for _ in range(2)]
        engine.step()
        most = max(most, engine.writing)
    settle(engine, futures)
    assert most == 3


def test_a_text_that_was_heard_is_not_sent_twice() -> None:
    engine, _, _ = opened("writer")
    pieces: list[str] = []
    heard = engine.submit(ask("writer", "abc", on_text=pieces.append))
    other = engine.submit(ask("writer", "abc"))
    engine.step()

    def breaks() -> None:
        raise RuntimeError("no memory")

    engine._cohorts.running[0][0].step = breaks
    settle(engine)
    assert pieces == ["w"] and isinstance(heard.exception(0), RuntimeError) and other.exception(0) is None


def test_one_slow_row_does_not_say_how_long_to_wait() -> None:
    engine, _, clock = opened("one")
    future = engine.submit(ask("one", "cat"))
    clock.now = 20.0
    settle(engine, [future])
    assert engine.retry_after_s() == pytest.approx(2.0)
