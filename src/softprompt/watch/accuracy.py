"""How well a model fits its own training rows, watched over training."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..data import Collate, by_length
from ..models import Kind
from ..tuner import evaluating
from ._base import Watched, Watcher, batches_of


class TrainAccuracyCallback(Watcher):
    """Note the accuracy on all training rows as ``train_accuracy`` in the trainer's log history, after each evaluation in training.

    It changes neither the model nor the random state.

    Args:
        rows: encoded training rows, with labels [N] of whole texts.
        collate: makes a batch of rows.
    """

    reads_prompt: ClassVar[bool] = False
    needs: ClassVar[str] = "accuracy is that of labelled texts"

    def __init__(self, rows: Dataset, collate: Collate):
        self.rows, self.collate = by_length(rows), collate
        self._training = False

    @classmethod
    def wants(cls, kind: Kind) -> bool:
        return kind.one_label

    @classmethod
    def made_for(cls, run: Watched) -> TrainAccuracyCallback:
        return cls(run.rows, run.collate)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False  # what is evaluated from now on is the chosen checkpoint, not the last step's

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._training:
            state.log_history.append({"train_accuracy": self.score(kwargs["model"]), "step": state.global_step})

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Return the share of rows whose largest logit is now the label."""
        right, device = 0, next(model.parameters()).device
        with evaluating(model):
            for batch in batches_of(self.rows, self.collate):
                call = {key: value.to(device) for key, value in batch.items()}
                right += int((model(**call).logits.argmax(-1) == call["labels"]).sum())
        return right / len(self.rows)
