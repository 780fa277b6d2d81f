"""What objectives need of a training run: a clock, and a place for their critics in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..._types import announce
from ...objectives import ObjectiveSet
from ...tuner import SoftPromptModel, distribute_into, gathered, is_first_process

CRITICS = "objectives.safetensors"


def active_objectives(model: nn.Module) -> ObjectiveSet | None:
    """The objectives of a PEFT model's active prompt, or None."""
    if not isinstance(model, PeftModel) or not isinstance(model.base_model, SoftPromptModel):
        return None
    return model.base_model.state.active_objectives()  # at every step, so no search for it


class ObjectivesCallback(TrainerCallback):
    """Tell the objectives of a model how far training is, and keep their critics in checkpoints.

    Critics are not part of the saved adapter; a checkpoint holds them as ``objectives.safetensors``. `PromptTrainer` does all
    this by itself; give the callback to any other `transformers.Trainer`, as the first one.

    Args:
        critics: keep them in checkpoints under ``output_dir``; False for a trainer that does.
    """

    def __init__(self, critics: bool = True):
        self.critics = critics

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.critics and state.global_step:
            load_critics(kwargs["model"], Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if (objectives := active_objectives(kwargs["model"])) is not None:
            objectives.progress, objectives.step = state.global_step / max(state.max_steps, 1), state.global_step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.critics:
            save_critics(kwargs["model"], Path(args.output_dir) / f"checkpoint-{state.global_step}")


def save_critics(model: nn.Module, folder: str | Path) -> None:
    """Write the critics of a model's objectives into a checkpoint's folder; nothing where there are none.

    Of several processes all must call it; the first one writes.
    """
    objectives = active_objectives(model)
    if objectives is not None and (tensors := gathered(objectives.state_dict())) and is_first_process():
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(tensors, Path(folder) / CRITICS)


def load_critics(model: nn.Module, folder: str | Path) -> None:
    """Read the critics back from a checkpoint's folder; announces when it has none."""
    objectives, path = active_objectives(model), Path(folder) / CRITICS
    if objectives is None or not objectives.state_dict():
        return
    if path.is_file():
        distribute_into(objectives, load_file(path))
    else:
        announce("critics start anew", f"{path} is not there")
