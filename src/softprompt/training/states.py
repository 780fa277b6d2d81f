"""States of the frozen backbone, computed once for all epochs: without the prompt, and below its first layer (``cache_below``)."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .._files import written_whole
from .._types import SoftPromptError, announce
from ..data import BELOW, UNPROMPTED, Collate, WithStates, batches_by_length, number_columns
from ..tuner import SoftPromptConfig, SoftPromptModel, add_weights, find_backbone, first_of_machine, prompts_of
from .keys.options import RunOptions
from .loop.critics import active_objectives
from .prepare import Prepared

MIB = 2**20
# of a config: where it came from, and its head's classes
NO_FACTS = {
    "_name_or_path",
    "transformers_version",
    "architectures",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
}


def needs_unprompted(model: nn.Module) -> bool:
    """Whether objectives or prompt of the model read states of the unprompted pass."""
    if not isinstance(model, PeftModel) or not isinstance(model.base_model, SoftPromptModel):
        return False
    prompt, objectives = prompts_of(model).active_prompt(), active_objectives(model)
    reads = prompt is not None and prompt.reads_unprompted
    return reads or (objectives is not None and objectives.ever_needs(UNPROMPTED))


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
    """Add the column ``unprompted``: the state ``[N][H]`` of the bare backbone for each encoded row, float32.

    Computed once, in the backbone's own precision, and kept on disk under a key of rows, backbone and representation. Of
    several processes the first one of each machine computes, and the others read.

    Args:
        model: a PEFT model with a soft prompt.
        rows: encoded rows.
        collate: rows to batch.
        batch_size: rows at a time, of similar length.
        progress: told (rows done, rows in all) after each batch.
    """
    state = prompts_of(model)
    how = state.settings[model.active_adapter].representation
    path = cache_folder() / "unprompted" / f"{key_of(model, rows, how)}.safetensors"
    with first_of_machine():
        if path.is_file():
            announce("unprompted states", f"{len(rows)} of them from {path}")
            unprompted = load_file(path)[UNPROMPTED].numpy()
        else:
            unprompted = np.zeros((len(rows), state.backbone.hidden_size), dtype=np.float32)
            for picked, batch in batches_by_length(rows, collate, model.device, batch_size, progress):
                unprompted[picked] = state.bare_states(batch).float().cpu().numpy()
            with written_whole(path) as partial:
                save_file({UNPROMPTED: torch.from_numpy(unprompted)}, partial)
    kept = rows.remove_columns(UNPROMPTED) if UNPROMPTED in rows.column_names else rows
    return kept.add_column(UNPROMPTED, list(unprompted))


def key_of(model: PeftModel, rows: Dataset, which: str) -> str:
    """A digest of what states depend on: ``which`` they are, token ids and labels, weights (a sample of each), dtype."""
    digest, state = hashlib.sha256(), prompts_of(model)
    digest.update(which.encode())
    facts = {key: value for key, value in state.backbone.stack.config.to_dict().items() if key not in NO_FACTS}
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name in number_columns(rows):
        digest.update(name.encode())
        for value in rows[name]:
            digest.update(np.asarray(value, dtype=np.int64).tobytes() + b"|")
    add_weights(digest, state.backbone.stack.named_parameters())
    return digest.hexdigest()[:32]


def check_below(options: RunOptions, config: PeftConfig, prepared: Prepared) -> None:
    """Refuse ``cache_below`` before anything is trained, where it cannot be used.

    Raises:
        SoftPromptError: a PEFT baseline, a prompt that may enter at layer 0 or changes the embeddings, the backbone's
            dropout, or more states than ``cache_below_limit``.
    """
    if options.cache_below == "none":
        return
    given = f"cache_below={options.cache_below!r}"
    if not isinstance(config, SoftPromptConfig):
        raise SoftPromptError(
            f"{given} needs a soft prompt, whose first layer is known: expected a method of this library, got {options.method!r}; leave cache_below out."
        )
    if not config.layers or config.layers[0] == 0 or config.max_positions:
        why = "enters at layer 0"
        if config.placement == "gated" and not config.layers:
            why = "is searched, and may enter at layer 0"
        elif config.max_positions:
            why = "changes the embeddings (max_positions)"
        raise SoftPromptError(
            f"{given}: expected a prompt that enters above layer 0, below which nothing changes in training, got one that {why}; name its layers, such as layers=[3, 4], or leave cache_below out."
        )
    if options.backbone_dropout:
        raise SoftPromptError(
            f"{given}: expected backbone_dropout=False, got True: with dropout the states differ at every step; leave one of them out."
        )
    size, tokens = _size(options, prepared), _tokens(prepared)
    if size > options.cache_below_limit:
        raise SoftPromptError(
            f"{given}: expected at most cache_below_limit={options.cache_below_limit} MiB of states, got {math.ceil(size)} MiB ({tokens:,} tokens of training and dev rows, {options.dtype}); raise cache_below_limit, set shots or a smaller max_length, or leave cache_below out."
        )


def _tokens(prepared: Prepared) -> int:
    splits = [prepared.encoded[name] for name in ("train", "dev") if name in prepared.encoded]
    return sum(len(ids) for rows in splits for ids in rows["input_ids"])


def _size(options: RunOptions, prepared: Prepared) -> float:
    """MiB of the states of all training and dev rows."""
    width = find_backbone(prepared.model).width
    return _tokens(prepared) * width * getattr(torch, options.dtype).itemsize / MIB


def add_below(
    model: PeftModel,
    splits: list[Dataset],
    collate: Collate,
    keep: str,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Dataset], WithStates]:
    """Compute the states of all rows' tokens at the first layer that the model's prompt enters, so that no step does.

    They are in the backbone's dtype, without padding. "disk" keeps them in $SOFTPROMPT_CACHE under a key of rows, backbone
    and layer, and reads from there what a batch needs.

    Args:
        model: a PEFT model with a soft prompt.
        splits: data sets of encoded rows.
        collate: rows to batch.
        keep: "memory" or "disk".
        batch_size: rows at a time, of similar length.
        progress: told (rows done, rows in all of a data set) after each batch.

    Returns:
        The data sets with the column ``below``, a row's number, and the collator that puts its states in that place.

    Raises:
        SoftPromptError: the layers below the prompt cannot be left out.
    """
    state = prompts_of(model)
    first, layers = state.entry_layer(), state.backbone.num_layers
    states: list[Tensor] = []
    numbered = []
    for rows in splits:
        folder = cache_folder() / BELOW if keep == "disk" else None
        of_split = _states(model, rows, collate, folder, batch_size, progress)
        kept = rows.remove_columns(BELOW) if BELOW in rows.column_names else rows
        numbered.append(kept.add_column(BELOW, list(range(len(states), len(states) + len(rows)))))
        states += of_split
    size = sum(s.numel() * s.element_size() for s in states) / MIB
    announce(
        f"cache_below={keep}",
        f"{size:.1f} MiB hold what {sum(map(len, states)):,} tokens of {len(states)} rows are at layer {first}; a step runs {layers - first} of {layers} layers",
    )
    return numbered, WithStates(collate, states, BELOW)


def _states(
    model: PeftModel,
    rows: Dataset,
    collate: Collate,
    folder: Path | None,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> list[Tensor]:
    """The states [S_i, H] of each row: views into one tensor, in memory or mapped from a file in ``folder``."""
    state = prompts_of(model)
    lengths = [len(ids) for ids in rows["input_ids"]]
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    dtype, width = state.backbone.stack.dtype, state.backbone.width

    def fill(flat: Tensor) -> None:
        for picked, batch in batches_by_length(rows, collate, model.device, batch_size, progress):
            below, real = state.states_below(batch).to("cpu", dtype), batch["attention_mask"].cpu() != 0
            for row, own, where in zip(picked, below, real, strict=True):
                flat[starts[row] : starts[row + 1]] = own[where]

    if folder is None:
        flat = torch.empty(starts[-1], width, dtype=dtype)
        fill(flat)
    else:
        path = folder / key_of(model, rows, f"below layer {state.entry_layer()}")
        if path.is_file():
            announce("states below the prompt", f"those of {len(rows)} rows from {path}")
        else:
            with written_whole(path) as partial:
                fill(_mapped(partial, (starts[-1], width), dtype, shared=True))
        flat = _mapped(path, (starts[-1], width), dtype, shared=False)
    return list(flat.split(lengths))


def _mapped(path: Path, shape: tuple[int, int], dtype: torch.dtype, shared: bool) -> Tensor:
    """The file as a tensor whose pages are read when they are used; ``shared`` makes it, and writes what is set."""
    return torch.from_file(str(path), shared=shared, size=shape[0] * shape[1], dtype=dtype).view(shape)
