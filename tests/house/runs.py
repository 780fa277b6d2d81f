"""Short runs, their options, and what stops them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import softprompt
from softprompt.cli import main
from softprompt.training.keys.options import RunOptions


def trained(encoder, animals, folder, **more):
    return softprompt.train(options(encoder, animals, folder, **more), progress=False)


def told_of_states(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("unprompted states:")]


def infoprompt_options(encoder, data, folder, **more):
    flat = {"backbone": str(encoder), "data": str(data), "output_dir": str(folder), "method": "infoprompt"}
    small = {
        "num_virtual_tokens": 4,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "max_length": 24,
        "dtype": "float32",
    }
    return softprompt.RunOptions.from_flat({**flat, **small, "learning_rate": 0.05, "disable_tqdm": True, **more})


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, act: Callable[[Any], None]):
        self.step, self.act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.act(kwargs["model"])


def values(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


class StopAt(TrainerCallback):
    """Stand-in for a kill: leave the loop after its ``step``-th step, in phases whose folder has ``where`` in it."""

    def __init__(self, step, where=""):
        self.step, self.where = step, where

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.where in args.output_dir:
            raise KeyboardInterrupt


def options(encoder: Path, data: Path, output: Path, **more: Any) -> RunOptions:
    flat = {
        "backbone": str(encoder),
        "data": str(data),
        "output_dir": str(output),
        "method": "prompt_tuning",
        "num_virtual_tokens": 4,
    }
    small = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "max_length": 24,
        "dtype": "float32",  # exact, and the same on every machine
        "disable_tqdm": True,
    }
    return RunOptions.from_flat({**flat, **small, **more})


class StopAfter(TrainerCallback):
    """Stand-in for a kill: leave the training loop right after a checkpoint."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if round(state.epoch or 0) == self.epoch:
            raise KeyboardInterrupt


class StopAtSave(TrainerCallback):
    """Stand-in for a kill right after the checkpoint of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def call(monkeypatch: pytest.MonkeyPatch, *words: object, stdin: str = "") -> int:
    monkeypatch.setattr(sys, "argv", ["softprompt", *map(str, words)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def train_shortly(backbone: Path, data: Path, output: Path, **more: Any) -> Path:
    flat = {"backbone": str(backbone), "data": str(data), "output_dir": str(output), "method": "prompt_tuning"}
    short = {"num_virtual_tokens": 3, "max_length": 24, "dtype": "float32", "max_steps": 2, "learning_rate": 1e-2}
    softprompt.train(softprompt.RunOptions.from_flat({**flat, **short, **more}), progress=False)
    return output
