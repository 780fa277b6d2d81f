"""What a watcher is: a callback that looks on, and knows which runs it is for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from datasets import Dataset
from transformers import TrainerCallback

from ..data import Collate
from ..models import Kind


@dataclass(frozen=True)
class Watched:
    """What watchers take of a run.

    Attributes:
        rows: encoded, in training.
        dev: encoded.
        collate: rows to batch.
        folder: of the run.
    """

    rows: Dataset
    dev: Dataset
    collate: Collate
    folder: Path


class Watcher(TrainerCallback, ABC):
    """A callback that a run makes by the name that ``track`` gives.

    Attributes:
        reads_prompt: whether it needs a soft prompt.
        needs: what it says where a kind of task has nothing for it.
    """

    reads_prompt: ClassVar[bool] = True
    needs: ClassVar[str] = ""

    @classmethod
    def wants(cls, kind: Kind) -> bool:
        """Whether it has something to record of this kind of task."""
        return True

    @classmethod
    @abstractmethod
    def made_for(cls, run: Watched) -> Watcher:
        """The watcher of a run."""
