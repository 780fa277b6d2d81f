"""What a watcher is: a callback that only looks, and knows which runs it is for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..data import Collate
from ..models import Kind


@dataclass(frozen=True)
class Watched:
    """The parts of a run that watchers take.

    Attributes:
        rows: encoded training rows.
        dev: encoded dev rows.
        collate: makes a batch of rows.
        folder: the run's folder.
    """

    rows: Dataset
    dev: Dataset
    collate: Collate
    folder: Path


def batches_of(rows: Dataset, collate: Collate) -> DataLoader:
    """Batches of rows in their order."""
    # its own generator: without one, going through a loader draws from the state that dropout draws from
    return DataLoader(rows, batch_size=64, collate_fn=collate, generator=torch.Generator())


class Watcher(TrainerCallback, ABC):
    """A callback that a run makes by the name that ``track`` gives.

    Attributes:
        reads_prompt: whether it needs a soft prompt.
        needs: the words with which it refuses a kind of task that has nothing for it.
    """

    reads_prompt: ClassVar[bool] = True
    needs: ClassVar[str] = ""

    @classmethod
    def wants(cls, kind: Kind) -> bool:
        """Say whether it has something to record of this kind of task."""
        return True

    @classmethod
    @abstractmethod
    def made_for(cls, run: Watched) -> Watcher:
        """Make the watcher of a run."""
