"""Completions that are being written, a token of each at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .backlog import Job
from .cohort import Cohort
from .request import Answer, Limits


class Finish(Protocol):
    """Hands over what became of a job."""

    def __call__(self, job: Job, error: BaseException | None, answer: Answer | None = None) -> None: ...


class Cohorts:
    """All batches of completions that are being written; those that began together are written together to the last.

    Args:
        limits: how many there may be.
        clock: seconds that only grow.
        finish: is called once for each job that ended, failed, or is waited for no more.
        is_unanswered: whether a job is still to be finished.
        began: is told the jobs of a batch that began, and the seconds of its first pass.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float],
        finish: Finish,
        is_unanswered: Callable[[Job], bool],
        began: Callable[[Sequence[Job], float], None],
    ):
        self.limits, self.clock = limits, clock
        self.finish, self.is_unanswered, self.began = finish, is_unanswered, began
        self.running: list[tuple[Cohort, float]] = []  # each with the time at which it began

    def __len__(self) -> int:
        return len(self.running)

    @property
    def writing(self) -> int:
        """Completions that have not ended."""
        return sum(text.reason is None for cohort, _ in self.running for text in cohort.texts)

    @property
    def room(self) -> int:
        """Completions that may begin now, in one batch."""
        if len(self.running) >= self.limits.cohorts:
            return 0
        return self.limits.writing_rows - sum(len(cohort.jobs) for cohort, _ in self.running)

    def begin(self, jobs: Sequence[Job]) -> None:
        """Let these jobs be written together."""
        try:
            self.running.append((jobs[0].served.lane.cohort(jobs), self.clock()))
        except Exception as error:
            for job in jobs:
                self.finish(job, error)

    def step(self) -> bool:
        """Write one token of each; returns whether there was any."""
        entries = list(self.running)
        for entry in entries:
            cohort, began = entry
            self._mind(cohort)
            if not cohort.over:
                try:
                    start = self.clock()
                    first = not any(text.ids for text in cohort.texts)
                    made = cohort.step()
                    if first:
                        self.began(cohort.jobs, self.clock() - start)
                except Exception as error:  # of one of them: the others are asked again, each by itself
                    self.running.remove(entry)
                    self._apart(cohort, error)
                    continue
                for at, piece in made:
                    self._give(cohort, at, piece, began)
            if cohort.over:
                self.running.remove(entry)
        return bool(entries)

    def end(self) -> None:
        """Write no more; the jobs are left to the caller."""
        for cohort, _ in self.running:
            for at in range(len(cohort.jobs)):
                cohort.end(at)

    def _mind(self, cohort: Cohort) -> None:
        """End completions that nobody waits for, or that are too late."""
        now = self.clock()
        for at, (job, text) in enumerate(zip(cohort.jobs, cohort.texts, strict=True)):
            if text.reason is None and job.is_gone(now):
                cohort.end(at)
                self.finish(job, job.why_gone())

    def _give(self, cohort: Cohort, at: int, piece: str | Exception, began: float) -> None:
        job, text = cohort.jobs[at], cohort.texts[at]
        if isinstance(piece, Exception):
            self.finish(job, piece)
            return
        if job.request.on_text is not None and piece:
            try:
                job.request.on_text(piece)
            except Exception:  # nobody listens any more
                job.answer.cancel()
        if text.reason is not None:
            waited, took = began - job.arrived, self.clock() - began
            made = {"completion": text.text}
            self.finish(job, None, Answer(made, job.encoded.tokens, len(text.ids), text.reason, waited, took))

    def _apart(self, cohort: Cohort, error: Exception) -> None:
        """Begin the completions of a batch that failed again, each by itself; one that was alone, or has given text, fails."""
        for job, text in zip(cohort.jobs, cohort.texts, strict=True):
            if not self.is_unanswered(job):
                continue
            if len(cohort.jobs) == 1 or (job.request.on_text is not None and text.ids):
                self.finish(job, error)
            else:
                self.begin([job])
