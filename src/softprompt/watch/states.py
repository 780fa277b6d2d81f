"""The states of dev rows that a head reads, before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from .._files import write_bytes
from .._types import SoftPromptError, announce
from ..data import Collate, by_length, stratified
from ..models import Kind, PooledClassifier
from ..models.probe import head_features
from ._base import Watched, Watcher, batches_of

STATES = "states.safetensors"
ROWS = 300


class StatesCallback(Watcher):
    """Write what a pooled head reads of some dev rows, before training and of the checkpoint that is kept, to one file.

    The file holds ``before`` and ``after`` [N, H], float32, and ``labels`` [N]; N is at most 300, each class in proportion. A run that goes
    on keeps the states from before it was stopped, where the file is whole. A model without a pooled head has none: that is announced, and there is no file.

    Args:
        path: the file.
        rows: encoded rows, with labels of whole texts.
        collate: makes a batch of rows.
    """

    reads_prompt: ClassVar[bool] = False
    needs: ClassVar[str] = "states are those that a head reads of whole texts"

    def __init__(self, path: str | Path, rows: Dataset, collate: Collate):
        few = rows if len(rows) <= ROWS else rows.select(stratified(rows["labels"], ROWS, seed=0))
        self.path, self.rows, self.collate = Path(path), by_length(few), collate
        self._before: Tensor | None = None

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
        elif state.is_world_process_zero and not state.global_step:
            self._before = self._states(kwargs["model"])
            self._write({"before": self._before})
        elif state.is_world_process_zero:  # of a run that goes on they are on disk, or lost: the model has moved
            try:
                self._before = read_states(self.path).get("before")
            except SoftPromptError as error:
                announce("no states from before training", str(error))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and _head_of(kwargs["model"]) is not None:
            before = {} if self._before is None else {"before": self._before}
            self._write({**before, "after": self._states(kwargs["model"])})

    def _states(self, model: Any) -> Tensor:
        return torch.from_numpy(head_features(model, _head_of(model), batches_of(self.rows, self.collate)))

    def _write(self, states: dict[str, Tensor]) -> None:
        write_bytes(self.path, save({**states, "labels": torch.tensor(self.rows["labels"])}))


def read_states(path: str | Path) -> dict[str, Tensor]:
    """What a `StatesCallback` wrote; empty where there is no file. A run that was killed has no ``after``.

    Raises:
        SoftPromptError: the file is damaged.
    """
    try:
        return load_file(path) if Path(path).is_file() else {}
    except SafetensorError as error:
        raise SoftPromptError(
            f"{path}: expected the states of rows, got a damaged file ({error}); remove it."
        ) from error


def _head_of(model: Any) -> Any:
    """The linear head of a pooled classifier inside ``model``, if it has one."""
    return next((part.classifier for part in model.modules() if isinstance(part, PooledClassifier)), None)
