"""The structural evolution of a prompt: its persistent homology, and the prompt itself, over training."""

from __future__ import annotations

import base64
import gzip
import json
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from .._files import append_bytes, to_json, write_bytes
from .._types import SoftPromptError
from ..models.finite import check_finite
from ..prompts import Prompt
from ..topology import Persistence, bottleneck, metrics, persistence, wasserstein
from ..tuner import prompts_of
from ._base import Watched, Watcher
from .bounds import check_prompted

TOPOLOGY = "topology.jsonl.gz"


class TopologyCallback(Watcher):
    """Record every layer's diagram, its metrics, and the prompt, to one file per run.

    The file is a sequence of gzip members, each one JSON line: a killed run keeps all complete records, and `read_topology`
    leaves out a record that was cut short. A resumed run drops the records after its checkpoint and goes on. A prompt that
    reads the input is recorded as it is before it reads.

    A record holds ``step``, ``epoch``, ``seconds`` (spent on it), ``share`` (records' part of the time since training began),
    and ``prompt`` [D, P, H] in float32. Per layer it holds the bars ``h0`` and ``h1`` as (birth, death),
    `softprompt.topology.metrics`, and the ``bottleneck`` and ``wasserstein`` distance of each degree to the record before.

    Args:
        path: the file, ``.jsonl.gz``.
        every: steps between two records; None records at the start and after each epoch.
        metric: "euclidean" or "cosine".

    Source: the quantities are those of arXiv 2602.16500; the distances between checkpoints are this library's.
    """

    def __init__(self, path: str | Path, every: int | None = None, metric: str = "euclidean"):
        if every is not None and every < 1:
            raise SoftPromptError(f"every: expected a number of steps of at least 1, got {every}.")
        self.path, self.every, self.metric = Path(path), every, metric
        self._before: list[Persistence] = []
        self._began = self._spent = 0.0

    @classmethod
    def made_for(cls, run: Watched) -> TopologyCallback:
        return cls(run.folder / TOPOLOGY)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        check_prompted(kwargs["model"])
        self._began, self._spent, self._before = time.perf_counter(), 0.0, []
        if not state.is_world_process_zero:
            return
        kept = [record for record in read_topology(self.path) if record["step"] <= state.global_step]
        write_bytes(self.path, b"".join(_packed({**r, "prompt": _coded(r["prompt"])}) for r in kept))
        if kept:
            self._before = [persistence(torch.from_numpy(cloud), self.metric) for cloud in kept[-1]["prompt"]]
        if not kept or kept[-1]["step"] < state.global_step:
            self._record(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            self._record_or_stop(state, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.every is None:
            self._record_or_stop(state, kwargs["model"])

    @torch.no_grad()
    def _record_or_stop(self, state: TrainerState, model: Any) -> None:
        # all processes hold the same prompt and stop together: one alone would leave the others waiting for it
        check_finite(f"virtual tokens at step {state.global_step}", _prompt_of(model)().prefix)
        if state.is_world_process_zero:
            self._record(state, model)

    @torch.no_grad()
    def _record(self, state: TrainerState, model: Any) -> None:
        started = time.perf_counter()
        prompt = _prompt_of(model)
        clouds = prompt().prefix.float().cpu()
        diagrams = [persistence(cloud, self.metric) for cloud in clouds]
        before: list[Persistence | None] = [*self._before] or [None] * len(diagrams)
        layers = {
            str(layer): _described(new, old) for layer, new, old in zip(prompt.layers, diagrams, before, strict=True)
        }
        self._before = diagrams
        now = time.perf_counter()
        self._spent += now - started
        record = {
            "step": state.global_step,
            "epoch": state.epoch,
            "seconds": now - started,
            "share": self._spent / max(now - self._began, 1e-9),
            "layers": layers,
            "prompt": _coded(clouds.numpy()),
        }
        append_bytes(self.path, _packed(record))


def read_topology(path: str | Path) -> list[dict[str, Any]]:
    """Read the complete records of a `TopologyCallback`'s file, prompts as arrays [D, P, H]; none where there is no file."""
    return topology_records(path)[0]


def topology_records(path: str | Path) -> tuple[list[dict[str, Any]], bool]:
    """What `read_topology` gives, and whether that is the whole file: a kill may have cut it short, or it is damaged."""
    data = Path(path).read_bytes() if Path(path).is_file() else b""
    records: list[dict[str, Any]] = []
    while data:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            lines = member.decompress(data).splitlines()
            if not member.eof:
                return records, False
            for line in lines:
                record = json.loads(line)
                shape, coded = record["prompt"]["shape"], record["prompt"]["float32"]
                record["prompt"] = np.frombuffer(base64.b64decode(coded), dtype="<f4").reshape(shape).copy()
                records.append(record)
        except (zlib.error, ValueError, KeyError, TypeError):
            return records, False
        data = member.unused_data
    return records, True


def topology_summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up a run's records: their cost, and per layer the shape of the last prompt and how much it still moved.

    ``h0_motion`` of a layer is the mean Wasserstein distance of H0 between consecutive records in their second half; None
    where there is no such pair.

    Args:
        records: what `read_topology` returns, at least one.
    """
    layers = {}
    for layer, last in records[-1]["layers"].items():
        late = [record["layers"][layer].get("wasserstein") for record in records[len(records) // 2 :]]
        moved = [distance[0] for distance in late if distance is not None]
        layers[layer] = {**last["metrics"], "h0_motion": sum(moved) / len(moved) if moved else None}
    spent = {"seconds": sum(record["seconds"] for record in records), "share": records[-1]["share"]}
    return {"records": len(records), **spent, "layers": layers}


def _prompt_of(model: Any) -> Prompt:
    prompt = prompts_of(model).active_prompt()
    assert prompt is not None  # adapters are not disabled while one is trained
    return prompt


def _described(new: Persistence, old: Persistence | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"h0": new.h0.tolist(), "h1": new.h1.tolist(), "metrics": metrics(new)}
    if old is not None:
        for name, distance in (("bottleneck", bottleneck), ("wasserstein", wasserstein)):
            facts[name] = [float(distance(new.diagram(d), old.diagram(d))) for d in (0, 1)]
    return facts


def _coded(prompt: np.ndarray) -> dict[str, Any]:
    raw = np.ascontiguousarray(prompt, dtype="<f4")
    return {"shape": list(raw.shape), "float32": base64.b64encode(raw.tobytes()).decode()}


def _packed(record: dict[str, Any]) -> bytes:
    return gzip.compress(to_json(record).encode() + b"\n", mtime=0)
