"""What an engine does, counted for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..engine import Answer, PromptEngine, Watcher
from ..engine.backlog import Job

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics(Watcher):
    """Counters, each with the names of prompts that are served: a name that a client makes up gets none."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("softprompt_requests", "Requests by their end.", ["prompt", "end"], **made)
        self.tokens = Counter("softprompt_tokens", "Tokens read and written.", ["prompt", "kind"], **made)
        self.queued = Histogram("softprompt_queued_seconds", "From arrival to batch.", buckets=SECONDS, **made)
        self.computed = Histogram("softprompt_computed_seconds", "From batch to answer.", buckets=SECONDS, **made)
        self.rows = Histogram("softprompt_batch_rows", "Rows of a batch.", buckets=ROWS, **made)
        self.prompts = Histogram("softprompt_batch_prompts", "Prompts of a batch.", buckets=ROWS, **made)
        self.waiting = Gauge("softprompt_waiting_rows", "Rows that wait.", **made)
        self.writing = Gauge("softprompt_writing_rows", "Completions that are being written.", **made)
        self.served = Gauge("softprompt_prompts", "Prompts that are served.", **made)

    def batch(self, jobs: Sequence[Job], seconds: float) -> None:
        self.rows.observe(len(jobs))
        self.prompts.observe(len({id(job.served) for job in jobs}))

    def ended(self, job: Job, error: BaseException | None, answer: Answer | None) -> None:
        name = job.served.name
        end = "answered" if answer else "cancelled" if error is None else type(error).__name__
        self.requests.labels(name, end).inc()
        if answer is not None:
            self.tokens.labels(name, "read").inc(answer.prompt_tokens)
            self.tokens.labels(name, "written").inc(answer.completion_tokens)
            self.queued.observe(answer.queued_s)
            self.computed.observe(answer.computed_s)

    def refused(self, name: str, error: BaseException) -> None:
        self.requests.labels(name, type(error).__name__).inc()

    def removed(self, name: str) -> None:
        for counter in (self.requests, self.tokens):
            counter.remove_by_labels({"prompt": name})

    def text(self, engine: PromptEngine) -> bytes:
        """All of it, as Prometheus reads it."""
        self.waiting.set(engine.waiting)
        self.writing.set(engine.writing)
        self.served.set(len(engine.shelf.prompts))
        return generate_latest(self.registry)
