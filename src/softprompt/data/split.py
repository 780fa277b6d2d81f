"""Which rows go where: drawn by class and by seed, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence

from datasets import Dataset

from .._types import SoftPromptError


def stratified(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Draw about ``count`` row indices, each class in proportion, and leave at least one row of every class behind.

    Shares are rounded by largest remainder, so that ``count`` is met exactly unless classes are too small.
    """
    classes = _shuffled(labels, seed)
    spare = {c: len(rows) - 1 for c, rows in classes.items()}
    take = {c: min(count * len(rows) // len(labels), spare[c]) for c, rows in classes.items()}
    # Whole numbers only: a float remainder could round differently elsewhere.
    by_remainder = sorted(classes, key=lambda c: (-(count * len(classes[c]) % len(labels)), c))
    for c in by_remainder:
        if sum(take.values()) < count and take[c] < spare[c]:
            take[c] += 1
    return sorted(i for c, rows in classes.items() for i in rows[: take[c]])


def limited(rows: Dataset, limit: int | None) -> Dataset:
    """At most ``limit`` rows in their order, always the same ones: each class in proportion, for files may be sorted by it."""
    if limit is None or limit >= len(rows):
        return rows
    labels = rows["label"] if "label" in rows.column_names else [0] * len(rows)
    return rows.select(stratified(labels, limit, seed=0))


def sample_shots(labels: Sequence[int], label_names: Sequence[str], shots: int, seed: int, where: str) -> list[int]:
    """Draw exactly ``shots`` row indices of every class; fewer shots with the same seed are a subset of more.

    Args:
        labels: class index of each row.
        label_names: names of the classes; completion rows are one class.
        shots: rows per class.
        seed: seed of the draw.
        where: what an error calls the rows.

    Raises:
        SoftPromptError: a class has fewer rows than ``shots``.
    """
    classes = _shuffled(labels, seed)
    for c, name in enumerate(label_names):
        found = len(classes.get(c, ()))
        if found < shots:
            raise SoftPromptError(
                f"{where}: class {name!r} has {found} rows, {shots} shots want {shots}; lower shots or add rows."
            )
    return sorted(i for rows in classes.values() for i in rows[:shots])


def _shuffled(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    """Row indices of each class, classes in order, rows shuffled (Python's own generator is the same everywhere)."""
    classes: dict[int, list[int]] = {c: [] for c in sorted(set(labels))}
    for i, label in enumerate(labels):
        classes[label].append(i)
    for c, rows in classes.items():
        random.Random(f"{seed}/{c}").shuffle(rows)
    return classes
