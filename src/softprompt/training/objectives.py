"""What objectives need of a training run: a clock, a place in checkpoints, and states computed once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .._types import announce
from ..objectives import ObjectiveSet
from ..tuner import SoftPromptModel, distribute_into, first_of_machine, gathered, is_first_process

COLUMN, BELOW = "unprompted", "below"  # states of a row, which the prompt's hooks take
# of a config: where it came from, and its head's classes
NO_FACTS = {"_name_or_path", "transformers_version", "architectures", "id2label", "label2id", "num_labels"}
CRITICS = "objectives.safetensors"
Collate = Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]


def active_objectives(model: nn.Module) -> ObjectiveSet | None:
    """The objectives of a PEFT model's active prompt, or None."""
    if not isinstance(model, PeftModel) or not isinstance(model.base_model, SoftPromptModel):
        return None
    return model.base_model.state.active_objectives()


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


def needs_unprompted(model: nn.Module) -> bool:
    """Whether objectives or prompt of the model read states of the unprompted pass."""
    if not isinstance(model, PeftModel) or not isinstance(model.base_model, SoftPromptModel):
        return False
    prompt, objectives = model.base_model.state.active_prompt(), active_objectives(model)
    reads = prompt is not None and prompt.reads_unprompted
    return reads or (objectives is not None and objectives.ever_needs(COLUMN))


def cache_folder() -> Path:
    """Where computed states are kept: $SOFTPROMPT_CACHE, or softprompt/ in the user's cache."""
    given = os.environ.get("SOFTPROMPT_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "softprompt"


def add_unprompted(
    model: PeftModel,
    rows: Dataset,
    collate: Collate,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Add the column ``unprompted``: the state [N][H] of the bare backbone for each encoded row, float32.

    Computed once, in the backbone's own precision, and kept on disk under a key of rows, backbone and representation. Of
    several processes the first one of each machine computes, and the others read.

    Args:
        model: a PEFT model with a soft prompt.
        rows: encoded rows.
        collate: rows to batch.
        batch_size: rows at a time, of similar length.
        progress: told (rows done, rows in all) after each batch.
    """
    state = model.base_model.state
    how = state.settings[model.active_adapter].representation
    path = cache_folder() / "unprompted" / f"{key_of(model, rows, how)}.safetensors"
    with first_of_machine():
        if path.is_file():
            announce("unprompted states", f"{len(rows)} of them from {path}")
            found = load_file(path)[COLUMN].numpy()
        else:
            found = np.zeros((len(rows), state.backbone.hidden_size), dtype=np.float32)
            for picked, batch in batches_by_length(rows, collate, model.device, batch_size, progress):
                found[picked] = state.bare_states(batch).float().cpu().numpy()
            with written_whole(path) as partial:
                save_file({COLUMN: torch.from_numpy(found)}, partial)
    kept = rows.remove_columns(COLUMN) if COLUMN in rows.column_names else rows
    return kept.add_column(COLUMN, list(found))


def batches_by_length(
    rows: Dataset,
    collate: Collate,
    device: torch.device,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """The numbers of rows of similar length, and their batch, until all rows were there once."""
    order = np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable")
    numbers = rows.select_columns(_columns(rows))
    for start in range(0, len(rows), batch_size):
        picked = order[start : start + batch_size]
        batch = collate(numbers.select(picked).to_list())
        yield picked, {key: value.to(device) for key, value in batch.items()}
        if progress is not None:
            progress(min(start + batch_size, len(rows)), len(rows))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Inside, a file to write to; it takes its place at ``path`` when all went well, so nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _columns(rows: Dataset) -> list[str]:
    """The columns of numbers, which a model may take; not texts."""
    first = rows[0] if len(rows) else {}
    return sorted(
        name
        for name, value in first.items()
        if name not in (COLUMN, BELOW)
        and all(isinstance(v, int) for v in (value if isinstance(value, list) else [value]))
    )


def key_of(model: PeftModel, rows: Dataset, which: str) -> str:
    """A digest of what states depend on: ``which`` they are, token ids and labels, weights (a sample of each), dtype."""
    digest, state = hashlib.sha256(), model.base_model.state
    digest.update(which.encode())
    facts = {key: value for key, value in state.backbone.stack.config.to_dict().items() if key not in NO_FACTS}
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name in _columns(rows):
        digest.update(name.encode())
        for value in rows[name]:
            digest.update(np.asarray(value, dtype=np.int64).tobytes() + b"|")
    for name, parameter in state.backbone.stack.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 4096)].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + sample.tobytes())
    return digest.hexdigest()[:32]
