"""The engine: requests in, answers out; one thread at a time runs the models."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from ..._types import SoftPromptError, log
from .backlog import Backlog, Job
from .cohorts import Cohorts
from .request import Answer, ClosingError, Limits, OverloadedError, Request

IDLE_S = 0.05  # between two looks at deadlines while nothing else happens


class Shelved(Protocol):
    """What an engine asks of a `softprompt.serving.engine.Shelf`."""

    prompts: dict[str, Any]

    def find(self, name: str) -> Any: ...
    def load(self, name: str, folder: Path) -> Any: ...
    def place(self, served: Any) -> None: ...
    def take_off(self, name: str) -> Any: ...
    def unload(self, served: Any) -> None: ...


class Watcher:
    """Is told what an engine does, in the thread that does it; this one does nothing with it."""

    def batch(self, jobs: Sequence[Job], seconds: float) -> None:
        """A batch has run."""

    def ended(self, job: Job, error: BaseException | None, answer: Answer | None) -> None:
        """A request has its answer or its error; both are None where it was cancelled."""

    def refused(self, name: str, error: BaseException) -> None:
        """A request for a prompt that is served was not taken."""

    def removed(self, name: str) -> None:
        """A prompt is served no more."""


class PromptEngine:
    """Answers requests for many prompts in mixed batches.

    `submit` may be called in any thread. The models belong to whoever calls `step`: after `start` a thread of the engine's own,
    else the caller. A step is one errand (a prompt loaded or unloaded), one batch of rows that are read, and one token of each
    completion that is being written, so none of these waits for the end of another.

    Args:
        shelf: the prompts.
        limits: what is taken on.
        clock: seconds that only grow.
        watcher: is told what happens.
    """

    def __init__(
        self,
        shelf: Shelved,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        watcher: Watcher | None = None,
    ):
        self.shelf, self.limits, self.clock = shelf, limits or Limits(), clock
        self.watcher = watcher or Watcher()
        self.failure: BaseException | None = None  # of the engine itself: it answers nothing any more
        self._backlog = Backlog()
        self._unanswered: dict[Job, None] = {}
        self.unanswered = 0  # rows that failed because the engine was closed
        self._cohorts = Cohorts(
            self.limits, clock, self._finish, lambda job: job in self._unanswered, self.watcher.batch
        )
        self._errands: list[tuple[Callable[[], tuple[bool, Any]], Future[Any]]] = []
        self._more = threading.Condition()
        self._closing = False
        self._queued_s = 0.0  # that rows wait for their batch, of late
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ for any thread

    def submit(self, request: Request) -> Future[Answer]:
        """Take a request; the future has its answer, may be cancelled, and fails with one of the errors below or a `NonFiniteError`.

        Raises:
            UnknownPromptError: no such prompt.
            OverloadedError: too many rows wait.
            TooLongError: the text is too long.
            ClosingError: the engine stops.
            SoftPromptError: the row is not what the prompt reads.
        """
        with self._more:
            self._check_open()
            served = self.shelf.find(request.prompt)
            served.pending += 1  # from here on it stays loaded
            waiting = len(self._backlog)
        try:
            self._check_room(waiting)
            encoded = served.encode(request.row, request.writing, request.truncate, self.limits.new_tokens)
            now, limit = self.clock(), self.limits.timeout_s
            limit = limit if request.timeout_s is None else min(request.timeout_s, limit)
            job = Job(request, served, encoded, now, now + limit)
            with self._more:
                self._check_open()
                self._check_room(len(self._backlog))
                self._backlog.push(job)
                self._unanswered[job] = None
                self._more.notify_all()
        except BaseException as error:
            self._release(served)
            self.watcher.refused(served.name, error)
            raise
        return job.answer

    def add(self, name: str, folder: str | Path) -> Future[Any]:
        """Load a prompt and serve it under ``name``; the future has the prompt, or what is wrong with it."""

        def load() -> tuple[bool, Any]:
            served = self.shelf.load(name, Path(folder))
            with self._more:
                self.shelf.place(served)
            return True, served

        return self._errand(load)

    def remove(self, name: str) -> Future[None]:
        """Serve a prompt no more; requests that it has are answered, then the future is done and the prompt out of memory.

        Raises:
            UnknownPromptError: no such prompt.
        """
        with self._more:
            self._check_open()
            served = self.shelf.take_off(name)

        def unload() -> tuple[bool, Any]:
            with self._more:
                if served.pending:
                    return False, None
            self.shelf.unload(served)
            if name not in self.shelf.prompts:  # it may be that of another prompt by now
                self.watcher.removed(name)
            return True, None

        return self._errand(unload)

    def retry_after_s(self) -> float:
        """Seconds in which there is probably room: as long as rows have waited of late."""
        return max(1.0, self._queued_s)

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        return len(self._backlog)

    @property
    def writing(self) -> int:
        """Completions that are being written."""
        return self._cohorts.writing

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return not self._closing and self.failure is None

    # ------------------------------------------------------------------ the thread of the models

    def start(self) -> PromptEngine:
        """Let a thread of the engine's own do the steps."""
        self._thread = threading.Thread(target=self._run, name="softprompt-engine", daemon=True)
        self._thread.start()
        return self

    def close(self, timeout_s: float | None = None) -> None:
        """Take nothing more, answer what is there, and stop; what has no answer after ``timeout_s`` fails with `ClosingError`."""
        with self._more:
            self._closing = True
            self._more.notify_all()
        end = None if timeout_s is None else time.monotonic() + timeout_s
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                self._fail_all(ClosingError("the server stops before this was answered; ask again."))
            return
        while self.step():
            if end is not None and time.monotonic() > end:
                break
        self._fail_all(ClosingError("the server stops before this was answered; ask again."))

    def step(self) -> bool:
        """Do what there is to do, one piece of each sort; returns whether there was anything."""
        did = self._do_errand()
        did |= self._drop()
        did |= self._read()
        did |= self._begin()
        return self._cohorts.step() or did

    def _run(self) -> None:
        try:
            while True:
                if self.step():
                    continue
                with self._more:
                    if self._closing and not len(self._backlog) and not self._cohorts and not self._errands:
                        return
                    if not len(self._backlog) and not self._cohorts:
                        self._more.wait(IDLE_S if self._errands else None)
        except BaseException as error:
            self.failure = error
            log.exception("the engine stops")
            self._fail_all(error)

    # ------------------------------------------------------------------ one piece of each sort

    def _do_errand(self) -> bool:
        """The first errand that can be done."""
        with self._more:
            errands = list(self._errands)
        for entry in errands:
            errand, done = entry
            result, error = None, None
            try:
                over, result = errand()
            except Exception as failure:
                over, error = True, failure
                if not isinstance(failure, SoftPromptError):
                    log.exception("a prompt cannot be loaded or unloaded")
            if over:
                with self._more:
                    self._errands.remove(entry)
                _tell(done, result, error)
                return True
        return False

    def _drop(self) -> bool:
        """Take out what nobody waits for any more, and what is too late."""
        now = self.clock()
        with self._more:
            gone = self._backlog.drop(lambda job: job.is_gone(now))
        for job in gone:
            self._finish(job, job.why_gone())
        return bool(gone)

    def _read(self) -> bool:
        """One batch of rows that are read."""
        with self._more:
            jobs = self._backlog.take(lambda job: not job.served.writes, self.limits)
        if jobs:
            self._run_batch(jobs)
        return bool(jobs)

    def _begin(self) -> bool:
        """One batch of completions that begin, where there is room."""
        room = self._cohorts.room
        if room <= 0:
            return False
        with self._more:
            jobs = self._backlog.take(lambda job: job.served.writes, self.limits, room)
        if jobs:
            self._cohorts.begin(jobs)
        return bool(jobs)

    def _run_batch(self, jobs: Sequence[Job]) -> None:
        began = self.clock()
        try:
            logits = jobs[0].served.lane.logits([(job.served, job.encoded.inputs) for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                self._finish(jobs[0], error)
            else:  # of one of them: each by itself
                for job in jobs:
                    self._run_batch([job])
            return
        took = self.clock() - began
        self.watcher.batch(jobs, took)
        for job, own in zip(jobs, logits, strict=True):
            try:
                read = ("the request", job.encoded.row)
                made = job.served.kind.answer(job.served, read, job.encoded.inputs, own)
            except Exception as error:
                self._finish(job, error)
                continue
            self._finish(
                job, None, Answer(made, job.encoded.tokens, 0, None, began - job.arrived, self.clock() - began)
            )

    # ------------------------------------------------------------------ the end of a job

    def _finish(self, job: Job, error: BaseException | None, answer: Answer | None = None) -> None:
        """Hand over the answer or the error, once; without both the request was cancelled."""
        with self._more:
            if job not in self._unanswered:  # it failed when the engine was closed
                return
            del self._unanswered[job]
        if answer is not None:
            self._queued_s = 0.9 * self._queued_s + 0.1 * answer.queued_s
        if (answer is not None or error is not None) and job.answer.set_running_or_notify_cancel():
            if answer is not None:
                job.answer.set_result(answer)
            else:
                job.answer.set_exception(error)
        self._release(job.served)
        self.watcher.ended(job, error, answer)

    def _release(self, served: Any) -> None:
        with self._more:
            served.pending -= 1
            if not served.pending and self._errands:
                self._more.notify_all()

    def _fail_all(self, error: BaseException) -> None:
        with self._more:
            self._backlog.drop(lambda job: True)
            jobs = list(self._unanswered)
            errands, self._errands = self._errands, []
        self._cohorts.end()
        self.unanswered += len(jobs)
        for job in jobs:
            self._finish(job, error)
        for _, done in errands:
            if not done.done():
                _tell(done, None, error)

    # ------------------------------------------------------------------ small things

    def _check_open(self) -> None:
        if self.failure is not None:
            raise ClosingError(f"the engine has failed ({self.failure}); start the server again.")
        if self._closing:
            raise ClosingError("the server stops; ask another one.")

    def _errand(self, errand: Callable[[], tuple[bool, Any]]) -> Future[Any]:
        done: Future[Any] = Future()
        with self._more:
            self._check_open()
            self._errands.append((errand, done))
            self._more.notify_all()
        return done

    def _check_room(self, waiting: int) -> None:
        if waiting >= self.limits.waiting_rows:
            raise OverloadedError(
                f"{waiting} rows wait already, and at most {self.limits.waiting_rows} may; ask again later.",
                self.retry_after_s(),
            )


def _tell(done: Future[Any], result: Any, error: BaseException | None) -> None:
    """Say what came of an errand, if anybody still wants to know."""
    if not done.set_running_or_notify_cancel():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
