"""Weights of classes in the loss, for classes of which some have few rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .._types import SoftPromptError, announce, did_you_mean
from ..models.above import AboveBackbone
from .keys.options import BALANCED, RunOptions
from .prepare import Prepared


def weigh_classes(options: RunOptions, prepared: Prepared, fits_head: bool, smooths: bool) -> None:
    """Give the model the weights of its classes that a run asks for; see `softprompt.models.losses.label_loss`.

    "balanced" is ``w_c = N / (C n_c)`` where a row has one of C classes, n_c of N rows that of class c, and
    ``w_c = (N - n_c) / n_c`` where it may have several. Weights by name of classes of which a row has one are divided by their mean over
    the training rows, as balanced ones are by themselves: the loss keeps its size, and learning rates their meaning.

    Raises:
        SoftPromptError: the model's loss takes no weights, or the weights are not those of its classes.
    """
    if options.class_weights is None:
        return
    model, names = prepared.model, prepared.card.label_names
    if not isinstance(model, AboveBackbone) or not names:
        raise SoftPromptError(
            f"class_weights weigh classes of whole texts under head='pooled' or 'verbalizer': expected such a task, got {prepared.kind.name} with head={prepared.card.head!r}; drop class_weights."
        )
    if smooths:
        raise SoftPromptError(
            "class_weights weigh the loss that the model computes, and label_smoothing_factor takes the labels from it: expected one of the two; drop the other."
        )
    if fits_head:
        raise SoftPromptError(
            "class_weights weigh the loss of a head that is trained, head_fit='probe' fits it without: expected one of the two; use head_fit='gradient' or drop class_weights."
        )
    if options.class_weights == BALANCED:
        weights = _balanced(prepared.encoded["train"]["labels"], names, prepared.kind.one_label)
        shown = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names[:10], weights, strict=False))
        announce(f"class_weights: {shown}{', ...' * (len(names) > 10)}", "balanced by the training rows of each class")
    else:
        weights = _given(options.class_weights, names)
        if prepared.kind.one_label:
            labels = prepared.encoded["train"]["labels"]
            mean = sum(weights[label] for label in labels) / len(labels)
            weights = [weight / mean for weight in weights]
    model.class_weights = torch.tensor(weights)


def _balanced(labels: Sequence[Any], names: Sequence[str], one_label: bool) -> list[float]:
    rows, count = len(labels), len(names)
    if one_label:
        of_class = [sum(label == c for label in labels) for c in range(count)]
    else:
        of_class = [int(sum(flags[c] for flags in labels)) for c in range(count)]
    if missing := [name for name, found in zip(names, of_class, strict=True) if not found]:
        raise SoftPromptError(
            f"class_weights=balanced: class {missing[0]!r} has no training row to weigh; add rows of it, or give weights by name."
        )
    if one_label:
        return [rows / (count * found) for found in of_class]
    return [(rows - found) / found if found < rows else 1.0 for found in of_class]


def _given(weights: Any, names: Sequence[str]) -> list[float]:
    if unknown := [name for name in weights if name not in names]:
        raise SoftPromptError(
            f"class_weights: {unknown[0]!r} is no class; classes are {', '.join(names)}.{did_you_mean(str(unknown[0]), names)}"
        )
    found = [float(weights.get(name, 1.0)) for name in names]
    if wrong := [weight for weight in found if not (math.isfinite(weight) and weight > 0)]:
        raise SoftPromptError(f"class_weights: expected numbers above 0, got {wrong[0]}.")
    return found
