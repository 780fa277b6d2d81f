"""A head that is fitted, not trained: the linear probe of the prompted states, anew before each evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..._types import SoftPromptError, announce
from ...data import Collate, by_length
from ...models.classifier import PooledClassifier
from ...models.probe import fit_probe, head_features, set_head
from ...objectives import OBJECTIVES
from ...tuner import SoftPromptConfig


def comparing(config: PeftConfig | None) -> str | None:
    """The name of an adapter's objective that compares the inputs of a batch by their classes, if it has one."""
    entries = config.objectives if isinstance(config, SoftPromptConfig) else []
    return next((entry["name"] for entry in entries if OBJECTIVES[entry["name"]].compares_rows), None)


def choose_head_fit(asked: str, rate: float | None, model: nn.Module, config: PeftConfig | None = None) -> str:
    """How the head learns; "auto" fits a probe where an objective shapes the states that it reads, and says so.

    Args:
        asked: "auto", "gradient" or "probe".
        rate: learning rate that the user gave the head, or None; "auto" takes it for a wish to train.
        model: with its head.
        config: of the adapter that it has or will get, or None.

    Raises:
        SoftPromptError: "probe" for a head that is no single linear layer, or beside a learning rate.
    """
    pooled = isinstance(model, PooledClassifier)
    if asked == "probe" and not pooled:
        raise SoftPromptError(
            "head_fit='probe' fits one linear layer on pooled states: expected a classification with head='pooled', got another head; use head_fit='gradient'."
        )
    if asked == "probe" and rate is not None:
        raise SoftPromptError(
            f"head_learning_rate={rate:g} is of a head that is trained, head_fit='probe' fits it: expected one of the two; drop the other."
        )
    if asked != "auto":
        return asked
    name = comparing(config)
    if not pooled or name is None:
        return "gradient"
    if rate is not None:
        announce("head_fit=gradient", f"head_learning_rate={rate:g} is of a head that is trained")
        return "gradient"
    announce("head_fit=probe", f"the objective {name!r} shapes the states that the head reads")
    return "probe"


class HeadFitCallback(TrainerCallback):
    """Fit the head of a `PooledClassifier` on the prompted states of the training rows whenever an evaluation is due.

    The head that is evaluated is the one that the checkpoint keeps. See `softprompt.models.probe.fit_probe`.

    Args:
        rows: encoded training rows.
        collate: rows to batch.
        batch_size: rows at a time, of similar length; None for an eighth of the rows, but 8 to 64: in large batches of few rows
            up to half of all positions are padding.
    """

    def __init__(self, rows: Dataset, collate: Collate, batch_size: int | None = None):
        self.rows, self.collate = by_length(rows), collate
        self.batch_size = min(64, max(8, len(rows) // 8)) if batch_size is None else batch_size

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_evaluate:
            self.fit(kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.on_step_end(args, state, control, **kwargs)

    def fit(self, model: nn.Module) -> None:
        """Fit the head now."""
        head = _linear_head(model)
        batches = DataLoader(self.rows, batch_size=self.batch_size, collate_fn=self.collate)
        features, labels = head_features(model, head, batches), np.asarray(self.rows["labels"])
        set_head(head, *fit_probe(features, labels, head.out_features))


def _bare(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _linear_head(model: nn.Module) -> nn.Linear:
    """The layer that is at work: PEFT keeps the original beside a copy per adapter."""
    head = _bare(model).classifier
    if isinstance(head, ModulesToSaveWrapper):
        head = head.modules_to_save[head.active_adapters[0]]
    assert isinstance(head, nn.Linear)  # choose_head_fit saw to it
    return head
