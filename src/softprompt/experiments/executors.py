"""Where cells of a suite, and trials of a search, run: in this process, in other processes, or on a Ray cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Protocol

from .._environment import quiet_libraries
from .._types import SoftPromptError, check_choice
from .cell import failed_line, one_line, run_cell

Line = dict[str, Any]  # what is written down of a job that has ended
Started = Callable[[Any], None]


@dataclass(frozen=True)
class Work:
    """What is done with a job, be it a cell or a trial; it can be sent to another process.

    Attributes:
        run: makes the line of a job with a number of CPU threads.
        failed: makes that of one that did not come to its end, of the error and the seconds.
    """

    run: Callable[[Any, int], Line]
    failed: Callable[[Any, str, float], Line]


CELL_WORK = Work(run_cell, failed_line)


class Executor(Protocol):
    """It runs jobs and yields one line for each, in the order in which they end; it tells ``started`` when one begins.

    A job is asked for when there is room for it, so what comes next may depend on what has ended.
    """

    @property
    def threads(self) -> int: ...

    def run(self, jobs: Iterable[Any], started: Started, work: Work = CELL_WORK) -> Iterator[Line]: ...


@dataclass(frozen=True)
class InProcess:
    """Run one job after the other, in this process.

    Args:
        threads: CPU threads of each job.
    """

    threads: int = 1

    def run(self, jobs: Iterable[Any], started: Started, work: Work = CELL_WORK) -> Iterator[Line]:
        for job in jobs:
            started(job)
            yield work.run(job, self.threads)


@dataclass(frozen=True)
class ProcessPool:
    """Run several jobs at once, each worker in a fresh process; a worker that dies fails its job and is replaced.

    Where there are several GPUs, the workers take turns on them.

    Args:
        workers: jobs at a time.
        threads: CPU threads of each job.
    """

    workers: int
    threads: int = 1

    def run(self, jobs: Iterable[Any], started: Started, work: Work = CELL_WORK) -> Iterator[Line]:
        waiting, over = iter(jobs), False
        free = deque(range(self.workers))
        workers: dict[int, _Worker] = {}
        busy: dict[Connection, tuple[int, Any]] = {}
        try:
            while busy or not over:
                while free and not over:
                    if (job := next(waiting, None)) is None:
                        over = True
                        break
                    slot = free.popleft()
                    if slot in workers and not workers[slot].alive():  # it died after its last job
                        workers.pop(slot).stop()
                    if slot not in workers:
                        workers[slot] = _Worker(slot, self.threads)
                    workers[slot].connection.send((work, job))
                    busy[workers[slot].connection] = slot, job
                    started(job)
                for connection in wait(list(busy)) if busy else ():
                    assert isinstance(connection, Connection)
                    slot, job = busy.pop(connection)
                    free.append(slot)
                    try:
                        line = connection.recv()
                    except (EOFError, OSError):
                        line = work.failed(job, workers.pop(slot).last_words(), 0.0)
                    yield line
        finally:
            for worker in workers.values():
                worker.stop()


class _Worker:
    """A process that runs the jobs it is sent; its end of the pipe closes when it dies, ours when we do."""

    def __init__(self, slot: int, threads: int):
        import torch

        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        devices = visible_device(slot, torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        self.process = context.Process(target=_serve, args=(theirs, threads, devices))
        self.process.start()
        theirs.close()

    def alive(self) -> bool:
        return self.process.is_alive()

    def last_words(self) -> str:
        self.connection.close()
        self.process.join()
        code = self.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = " (killed, perhaps for want of memory; use fewer --workers)" if code == -9 else ""
        return f"the worker process ended with {how}{hint}"

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def visible_device(slot: int, devices: int, visible: str | None) -> str | None:
    """Choose the GPU of a worker, as ``CUDA_VISIBLE_DEVICES``; None leaves things as they are (no GPU, or one)."""
    if devices < 2:
        return None
    names = visible.split(",") if visible else [str(i) for i in range(devices)]
    return names[slot % devices]


def _serve(connection: Connection, threads: int, devices: str | None) -> None:
    """Life of a worker: jobs in, lines out, until the other end closes or its process is gone."""
    if (parent := parent_process()) is not None:
        Thread(target=_end_with, args=(parent,), daemon=True).start()
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    quiet_libraries()
    try:
        while True:
            work, job = connection.recv()
            connection.send(work.run(job, threads))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return


def _end_with(parent: BaseProcess) -> None:
    """A suite, or a search, that is killed leaves no work behind."""
    parent.join()
    os._exit(1)


@dataclass(frozen=True)
class Ray:
    """Run jobs as tasks of a Ray cluster (extra ``ray``); data, backbones and the output of trials must lie at the same path everywhere.

    Args:
        address: address of the cluster ("auto", "ray://host:10001"); None takes RAY_ADDRESS, or starts a local cluster that
            ends with the work.
        cpus_per_cell: CPUs that a job reserves; it computes with as many threads as ``threads`` says.
        gpus_per_cell: GPUs that a job reserves; 0.5 puts two on one.
        retries: how often a job runs again when its worker or machine was lost.
        threads: CPU threads of each job.
    """

    address: str | None = None
    cpus_per_cell: float = 1
    gpus_per_cell: float = 0
    retries: int = 1
    threads: int = 1

    def run(self, jobs: Iterable[Any], started: Started, work: Work = CELL_WORK) -> Iterator[Line]:
        ray = _ray()
        ours = not ray.is_initialized()
        if ours:
            kept = {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "HF_HOME") if name in os.environ}
            try:
                ray.init(address=self.address, log_to_driver=False, runtime_env={"env_vars": kept})
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise SoftPromptError(
                    f"--address {self.address!r}: no Ray cluster answers there ({one_line(error)})."
                ) from error
        task = ray.remote(_remote).options(
            num_cpus=self.cpus_per_cell, num_gpus=self.gpus_per_cell, max_retries=self.retries
        )
        waiting, over = iter(jobs), False
        running: dict[Any, Any] = {}
        try:
            self._check_resources(ray.cluster_resources())
            while running or not over:
                room = self._room(ray.cluster_resources())
                while not over and len(running) < room:
                    if (job := next(waiting, None)) is None:
                        over = True
                        break
                    running[task.remote(work, job, self.threads)] = job
                    started(job)
                if not running:
                    break
                ready, _ = ray.wait(list(running), num_returns=1)
                job = running.pop(ready[0])
                try:
                    line = ray.get(ready[0])
                except ray.exceptions.RayError as error:
                    line = work.failed(job, f"Ray lost it: {one_line(error)}", 0.0)
                yield line
        finally:
            for left in running:
                ray.cancel(left, force=True)
            if ours:
                ray.shutdown()

    def _room(self, resources: dict[str, float]) -> int:
        """Count the jobs that fit on the cluster at once, at least one."""
        shares = {"CPU": self.cpus_per_cell, "GPU": self.gpus_per_cell}
        fits = [int(resources.get(name, 0) / share) for name, share in shares.items() if share]
        return max(1, min(fits, default=1))

    def _check_resources(self, resources: dict[str, float]) -> None:
        for name, share in (("CPU", self.cpus_per_cell), ("GPU", self.gpus_per_cell)):
            if share > resources.get(name, 0):
                raise SoftPromptError(
                    f"--{name.lower()}s-per-cell {share:g}: the Ray cluster has {resources.get(name, 0):g} {name}s; ask for fewer."
                )


def _remote(work: Work, job: Any, threads: int) -> Line:
    quiet_libraries()
    return work.run(job, threads)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a comparison reports to nobody
    try:
        import ray
    except ImportError as error:
        raise SoftPromptError("--executor ray needs Ray; run: pip install 'softprompt[ray]'.") from error
    return ray


EXECUTORS: dict[str, type[InProcess] | type[ProcessPool] | type[Ray]] = {
    "in-process": InProcess,
    "pool": ProcessPool,
    "ray": Ray,
}


def make_executor(name: str, **flags: Any) -> Executor:
    """Make the executor that the command line names; "auto" is a pool where there are several ``workers``.

    Args:
        name: "auto", or one of `EXECUTORS`.
        flags: values for the fields of all executors; each takes its own.

    Raises:
        SoftPromptError: there is no such executor.
    """
    check_choice("executor", name, ("auto", *EXECUTORS))
    if name == "auto":
        name = "pool" if flags["workers"] > 1 else "in-process"
    kind = EXECUTORS[name]
    return kind(**{field.name: flags[field.name] for field in fields(kind)})
