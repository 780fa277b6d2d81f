"""What a run would do, found out without weights and without computing anything."""

from __future__ import annotations

from collections import Counter
from typing import Any

from peft import PeftConfig

from ..data import lengths_of
from .check import check_run
from .check_together import check_together, refuse_beside
from .keys.options import RunOptions
from .metric import Metric
from .prepare import Prepared


def plan(options: RunOptions, resume: bool = False, metric: Metric | None = None) -> dict[str, Any]:
    """Check whatever `train` checks before it computes: `softprompt.training.check.check_run`, and say what it would do.

    Returns:
        What the run would train on and how; the backbone's architecture is built, its weights are not read.

    Raises:
        SoftPromptError: as `train`, for what can be known without computing.
    """
    if options.task_column is None:
        run = check_run(options, resume, weights=False, metric=metric)
        return _of_one(options, run.prepared, run.config)
    refuse_beside(metric)
    tasks = check_together(options, resume, weights=False).parts
    return {"tasks": {part.name: _of_one(part.options, part.prepared, part.config) for part in tasks}}


def _of_one(options: RunOptions, prepared: Prepared, config: PeftConfig) -> dict[str, Any]:
    card, splits = prepared.card, prepared.encoded
    train = prepared.task.train
    labels = train["label"] if "label" in train.column_names else []
    own = [label if isinstance(label, list) else [label] for label in labels]
    counts = Counter(index for of_row in own for index in of_row)
    classes = {name: counts[index] for index, name in enumerate(card.label_names)} if own else {}
    if own and not card.label_names:
        classes = {"smallest number": min(counts), "largest number": max(counts)}
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
        "features": options.features if card.features is None else card.features,
        "method": options.method,
        "virtual tokens": getattr(config, "num_virtual_tokens", None),
        "output": options.output_dir,
    }
