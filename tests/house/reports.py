"""Folders of runs for reports, written by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softprompt.topology import persistence
from softprompt.watch.shape import _coded, _described


def records(steps: int, tokens: int, layers: int = 1, width: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """What `read_topology` gives of a prompt that walks at random."""
    draw = np.random.default_rng(seed)
    clouds = draw.normal(size=(layers, tokens, width)) + 0.1 * draw.normal(size=(steps, layers, tokens, width)).cumsum(
        0
    )
    return [
        {
            "step": 10 * i,
            "epoch": i,
            "seconds": 0.1,
            "share": 0.1,
            "layers": {
                str(layer): _described(persistence(torch.tensor(cloud, dtype=torch.float32)), None)
                for layer, cloud in enumerate(of_step)
            },
            "prompt": of_step.astype(np.float32),
        }
        for i, of_step in enumerate(clouds)
    ]


def write_run(
    folder: Path, history: list[dict[str, Any]], shape: list[dict[str, Any]] | None = None, **info: Any
) -> Path:
    """A folder with ``result.json``, and with ``topology.jsonl.gz`` where there is a shape."""
    folder.mkdir(parents=True)
    document = {
        "run_info": {"train_config": {"method": info.pop("method", "ept"), "seed": info.pop("seed", 7)}},
        "train_info": {
            "dev accuracy": 0.75,
            "test accuracy": 0.7,
            "test loss": 9.0,
            "num_trainable_params": 1234,
            "metrics": history,
            **info,
        },
        "meta_info": {"dataset_info": {"source": info.pop("source", "messages")}},
    }
    (folder / "result.json").write_text(json.dumps(document))
    if shape:
        lines = ({**record, "prompt": _coded(record["prompt"])} for record in shape)
        (folder / "topology.jsonl.gz").write_bytes(b"".join(gzip.compress(json.dumps(line).encode()) for line in lines))
    return folder


def history(steps: int = 8, **terms: float) -> list[dict[str, Any]]:
    """A log: falling losses, rising accuracy, and the chosen checkpoint scored twice at its end."""
    lines: list[dict[str, Any]] = []
    for i in range(1, steps + 1):
        lines.append({"step": 10 * i, "loss": 2.0 / i, **{name: value / i for name, value in terms.items()}})
        lines.append({"step": 10 * i, "eval_loss": 1.5 / i, "eval_accuracy": 0.5 + 0.04 * i, "eval_runtime": 0.1})
    return [*lines, *({"step": 10 * steps, "eval_loss": 9.0, "eval_accuracy": 0.1} for _ in range(2))]
