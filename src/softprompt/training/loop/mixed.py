"""The trainer of several prompts at once, on batches in which each row has its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerControl

from ..._files import write_json
from ...data import WithAdapterNames
from ...models.kinds import KINDS
from .trainer import PromptTrainer

PROMPTS, BEST, CHOICES = "prompts_model.safetensors", "best.safetensors", "choices.json"


@dataclass(frozen=True)
class Learner:
    """One of the prompts: its adapter, and the rows by which its checkpoint is chosen.

    Attributes:
        task: what the log calls it.
        adapter: its name in the model.
        dev: encoded rows, with the column of adapters' names.
        kind: of the task.
        label_names: of the task.
    """

    task: str
    adapter: str
    dev: Dataset
    kind: str
    label_names: list[str]


@dataclass
class Choice:
    """What is known of the best state of a prompt: the step, its score (higher is better) and loss, and all evaluations."""

    step: int | None = None
    score: float = 0.0
    loss: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class MixedTrainer(PromptTrainer):
    """`PromptTrainer` for several adapters of one model: each row goes through the one that its column ``adapter_names`` names.

    - The loss is the mean over the rows of a batch, so a prompt's gradient is that of its own rows alone, times their share.
    - Each prompt is evaluated on its own rows, and keeps the state that was best there; of ties the one with the lower loss, and of
      equal losses the later one. ``eval_NAME`` without a task is the mean over the tasks.
    - A checkpoint holds all prompts, with the best state of each, so a resumed run goes on with both.

    Args:
        learners: the prompts.
        chooses: whether the best state of each is put back at the end.
        *args, **kwargs: as for `PromptTrainer`.
    """

    control: TrainerControl

    def __init__(self, *args: Any, learners: Sequence[Learner], chooses: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.learners, self.chooses = list(learners), chooses
        self.choices = {learner.adapter: Choice() for learner in self.learners}
        self._best: dict[str, Tensor] = {}

    def values_of(self, adapter: str) -> dict[str, Tensor]:
        """The trained values of one prompt and its head, by their names in the model."""
        return {name: value for name, value in self._values().items() if f".{adapter}." in name}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:  # after a loss that is not finite, too
            if self.chooses:
                self._put_back(self._best)

    def scores_of(self, learner: Learner, rows: Dataset) -> dict[str, float]:
        """The scores of one prompt on rows of its own, as ``eval_NAME``."""
        kind, names = KINDS[learner.kind], learner.label_names
        self.compute_metrics = kind.metrics(names)
        self.preprocess_logits_for_metrics = kind.kept
        found = self._scores(rows)
        return {f"eval_{name}": found[f"eval_{name}"] for name in kind.scores(names) if f"eval_{name}" in found}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        scores = {learner.task: self.scores_of(learner, learner.dev) for learner in self.learners}
        for learner in self.learners:
            self._choose(learner, scores[learner.task])
        shared = [name for name in scores[self.learners[0].task] if all(name in own for own in scores.values())]
        means = {name: sum(own[name] for own in scores.values()) / len(scores) for name in shared}
        each = {
            f"eval_{task}_{name.removeprefix('eval_')}": value
            for task, own in scores.items()
            for name, value in own.items()
        }
        metrics = {**means, **each}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _choose(self, learner: Learner, scores: dict[str, float]) -> None:
        """Keep the state of a prompt if it is the best so far."""
        choice, step = self.choices[learner.adapter], self.state.global_step
        choice.history.append({"epoch": float(self.state.epoch or 0), "step": step, **scores})
        score = scores[f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"]
        better = (score if self.args.greater_is_better else -score, -scores["eval_loss"])
        if choice.step is None or better >= (choice.score, -choice.loss):
            choice.step, choice.score, choice.loss = step, better[0], -better[1]
            self._best |= self.values_of(learner.adapter)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and WithAdapterNames.column not in self._signature_columns:
            self._signature_columns.append(WithAdapterNames.column)

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.cpu() for name, value in self._values().items()}, folder / PROMPTS)
        save_file({name: value.cpu() for name, value in self._best.items()}, folder / BEST)
        write_json(folder / CHOICES, {adapter: asdict(choice) for adapter, choice in self.choices.items()})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._put_back(load_file(folder / PROMPTS))
        device = torch.device(self.args.device)
        self._best = {name: value.to(device) for name, value in load_file(folder / BEST).items()}
        chosen = json.loads((folder / CHOICES).read_text(encoding="utf-8"))
        self.choices = {adapter: Choice(**choice) for adapter, choice in chosen.items()}
