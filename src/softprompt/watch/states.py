"""The states of dev rows that a head reads, before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainerState, TrainingArguments

from .._types import announce
from ..data import Collate, by_length, stratified
from ..models import Kind, PooledClassifier
from ..models.probe import head_features
from ._base import Watched, Watcher

STATES = "states.safetensors"
ROWS = 300


class StatesCallback(Watcher):
    """Write what a pooled head reads of some dev rows, before training and of the checkpoint that is kept, to one file.

    The file holds ``before`` and ``after`` [N, H], float32, and ``labels`` [N]; N is at most 300, each class in proportion. A run that goes
    on keeps the states from before it was stopped. A model without a pooled head has none: that is announced, and there is no file.

    Args:
        path: the file.
        rows: encoded rows, with labels of whole texts.
        collate: makes a batch of rows.
    """

    reads_prompt: ClassVar[bool] = False
    needs: ClassVar[str] = "states are those that a head reads of whole texts"

    def __init__(self, path: str | Path, rows: Dataset, collate: Collate, batch_size: int = 64):
        few = rows if len(rows) <= ROWS else rows.select(stratified(rows["labels"], ROWS, seed=0))
        self.path, self.rows, self.collate, self.batch_size = Path(path), by_length(few), collate, batch_size

    @classmethod
    def wants(cls, kind: Kind) -> bool:
        return kind.one_label

    @classmethod
    def made_for(cls, run: Watched) -> StatesCallback:
        return cls(run.folder / STATES, run.dev, run.collate)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if _head_of(kwargs["model"]) is None:
            announce("no states", "the model has no pooled head that would read them")
        elif state.is_world_process_zero and not (state.global_step and self.path.is_file()):
            self._write({"before": self._states(kwargs["model"])})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.path.is_file():
            self._write({"before": load_file(self.path)["before"], "after": self._states(kwargs["model"])})

    def _states(self, model: Any) -> Tensor:
        loader = DataLoader(self.rows, batch_size=self.batch_size, collate_fn=self.collate)
        return torch.from_numpy(head_features(model, _head_of(model), loader))

    def _write(self, states: dict[str, Tensor]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_file({**states, "labels": torch.tensor(self.rows["labels"])}, self.path)


def read_states(path: str | Path) -> dict[str, Tensor]:
    """What a `StatesCallback` wrote; empty where there is no file. A run that was killed has no ``after``."""
    return load_file(path) if Path(path).is_file() else {}


def _head_of(model: Any) -> Any:
    """The linear head of a pooled classifier inside ``model``, if it has one."""
    return next((part.classifier for part in model.modules() if isinstance(part, PooledClassifier)), None)
