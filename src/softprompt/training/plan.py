"""What a run would do, found out without weights and without computing anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import lengths_of
from ..methods import find_method
from ..models.precision import AUTO, automatic_dtype
from .folder import check_folder
from .options import RunOptions
from .prepare import prepare
from .run import configure


def plan(options: RunOptions, resume: bool = False) -> dict[str, Any]:
    """Check options, output folder, data, columns, classes, backbone, positions and the method's config, as `train` would.

    Returns:
        What the run would train on and how; the backbone's architecture is built, its weights are not read.

    Raises:
        SoftPromptError: as `train`, for what can be known without computing.
    """
    check_folder(Path(options.output_dir), options, resume)
    if options.dtype == AUTO:
        options = replace(options, dtype=automatic_dtype(bool(options.training.get("use_cpu")))[0])
    prepared = prepare(options, weights=False)
    config = configure(options, find_method(options.method), prepared)
    card, splits = prepared.card, prepared.encoded
    classes: dict[str, int] = {}
    if card.kind == "classification":
        counts = Counter(splits["train"]["labels"])
        classes = {name: counts[index] for index, name in enumerate(card.label_names)}
    return {
        "task": prepared.task.name,
        "kind": card.kind,
        "rows": {name: len(rows) for name, rows in splits.items()},
        "training rows of each class": classes,
        "longest row, in tokens": max(lengths_of(splits["train"]), default=0),
        "max_length": card.max_length,
        "backbone": card.backbone,
        "model_type": prepared.model.config.model_type,
        "dtype": card.dtype,
        "head": card.head,
        "pooling": card.pooling,
        "pairs": card.pairs,
        "method": options.method,
        "virtual tokens": getattr(config, "num_virtual_tokens", None),
        "output": options.output_dir,
    }
