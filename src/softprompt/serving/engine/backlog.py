"""Requests that wait, and which of them go into one batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from .request import Answer, Encoded, Limits, Request, TooLateError

PADDING = 1.5  # positions of a batch for one that is no padding: more costs more than a pass of its own


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
        request: what was asked.
        served: the prompt that it is for.
        encoded: its row.
        arrived, deadline: of the engine's clock, in seconds.
        answer: the caller's; cancelled where nobody waits any more.
    """

    request: Request
    served: Any
    encoded: Encoded
    arrived: float
    deadline: float
    answer: Future[Answer] = field(default_factory=Future)

    @property
    def length(self) -> int:
        return self.encoded.length

    @property
    def inputs(self) -> int:
        return self.encoded.texts

    def is_gone(self, now: float) -> bool:
        """Whether nobody waits for it any more, or it is too late."""
        return self.answer.cancelled() or now >= self.deadline

    def why_gone(self) -> TooLateError | None:
        """What a job that is gone ends with; None where it was cancelled."""
        if self.answer.cancelled():
            return None
        limit = self.deadline - self.arrived
        return TooLateError(f"no answer within {limit:g} s; send fewer rows at a time, or ask for fewer tokens.")


class Backlog:
    """Jobs in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: dict[Job, None] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def push(self, job: Job) -> None:
        self._jobs[job] = None

    def drop(self, gone: Callable[[Job], bool]) -> list[Job]:
        """Take out and return the jobs for which ``gone`` holds."""
        dropped = [job for job in self._jobs if gone(job)]
        for job in dropped:
            del self._jobs[job]
        return dropped

    def take(self, wanted: Callable[[Job], bool], limits: Limits, rows: int | None = None) -> list[Job]:
        """Take out one batch: the oldest job that is ``wanted``, and the jobs of its group that are nearest to it in length.

        The batch costs at most ``limits.batch_tokens`` positions (its inputs times the longest), or is one job; no more than a third of
        them is padding; it has at most ``rows`` jobs. The oldest is always among them, so none waits for ever behind others that pack better.
        """
        oldest = next(filter(wanted, self._jobs), None)
        if oldest is None:
            return []
        group: Hashable = oldest.served.group
        mates = [job for job in self._jobs if job is not oldest and job.served.group == group and wanted(job)]
        mates.sort(key=lambda job: abs(job.length - oldest.length))
        batch, longest, inputs, prompts = [oldest], oldest.length, oldest.inputs, {id(oldest.served)}
        real = longest * inputs
        for job in mates:
            if rows is not None and len(batch) >= rows:
                break
            if limits.batch_prompts is not None and len(prompts | {id(job.served)}) > limits.batch_prompts:
                continue
            cost = max(longest, job.length) * (inputs + job.inputs)
            if cost > limits.batch_tokens or cost > PADDING * (real + job.length * job.inputs):
                continue
            batch.append(job)
            longest, inputs, real = max(longest, job.length), inputs + job.inputs, real + job.length * job.inputs
            prompts.add(id(job.served))
        for job in batch:
            del self._jobs[job]
        return sorted(batch, key=lambda job: -job.length)
