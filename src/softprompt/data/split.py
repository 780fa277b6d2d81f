"""Which rows go where: drawn by class and by seed, the same on every machine."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from .._types import SoftPromptError
from .doubts import Say

TEST_FRACTION = 0.1  # of the rows, when no file holds a test split


@dataclass(frozen=True)
class Draw:
    """How the rows of a split are drawn; arguments and errors as `load_task` describes them."""

    shots: int | None
    seed: int
    dev_fraction: float

    def __post_init__(self) -> None:
        shots, seed, share = self.shots, self.seed, self.dev_fraction
        if shots is not None and (isinstance(shots, bool) or not isinstance(shots, int) or shots < 1):
            raise SoftPromptError(f"shots: expected a whole number from 1, or None for all rows, got {shots!r}.")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise SoftPromptError(f"seed: expected a whole number, got {seed!r}.")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 0.5:
            raise SoftPromptError(f"dev_fraction: expected a share from 0 to 0.5, got {share!r}.")

    def published(self, folder: Path | None) -> Path | None:
        """Return the folder of the published split with these shots and this seed; None where ``folder`` has none."""
        if folder is None or self.shots is None:
            return None
        split = folder / "kshot" / f"{self.shots}-{self.seed}"
        return split if split.is_dir() else None


@dataclass(frozen=True)
class Split:
    """Rows with uniform columns, and the file they come from."""

    rows: list[dict[str, Any]]
    file: str

    def pick(self, indices: Sequence[int]) -> Split:
        """Return the rows at ``indices``."""
        return Split([self.rows[i] for i in indices], self.file)

    def without(self, indices: Sequence[int]) -> Split:
        """Return the rows at all other places."""
        gone = set(indices)
        return self.pick([i for i in range(len(self.rows)) if i not in gone])

    @property
    def labels(self) -> list[int]:
        """The class index of each row; rows that do not have one class each are one class."""
        return single_labels([row.get("label", 0) for row in self.rows])

    @property
    def counts(self) -> Counter[int]:
        """How often each class, or tag, is there."""
        several = next((name for name in ("tags", "label") if isinstance(self.rows[0].get(name), list)), None)
        if several is not None:
            return Counter(label for row in self.rows for label in row[several])
        return Counter(self.labels)


@dataclass(frozen=True)
class Splits:
    """The three splits of a task, as far as they are there."""

    train: Split
    dev: Split | None
    test: Split | None

    @property
    def by_name(self) -> dict[str, Split | None]:
        """The splits under their names."""
        return {"train": self.train, "dev": self.dev, "test": self.test}


def drawn(given: Splits, draw: Draw, classes: Sequence[str], say: Say) -> Splits:
    """Carve from train the splits that no file holds, or draw few shots; no two drawn splits share a row.

    Args:
        given: the splits that files hold.
        draw: how to draw.
        classes: names of the classes to draw by; rows that do not have one class each are one class.
        say: hears of each draw.

    Raises:
        SoftPromptError: train has too few rows to carve from, or a class has fewer rows than shots.
    """
    total = len(given.train.rows)
    if given.test is None:
        test, train = _carve("test", given.train, total, TEST_FRACTION, draw.seed, say)
        with_test = Splits(train, given.dev, test)
    else:
        with_test = given
    if draw.shots is not None:
        return _few_shots(with_test, classes, draw.shots, draw.seed, say)
    if with_test.dev is not None:
        return with_test
    if not draw.dev_fraction:
        say("dev = none", "dev_fraction is 0 and no file is left for it")
        return with_test
    dev, rest = _carve("dev", with_test.train, total, draw.dev_fraction, draw.seed, say)
    return replace(with_test, train=rest, dev=dev)


def _carve(name: str, train: Split, total: int, fraction: float, seed: int, say: Say) -> tuple[Split, Split]:
    """A ``fraction`` of ``total`` rows, taken from train, and the rows that stay there."""
    taken = stratified(train.labels, max(1, round(total * fraction)), seed)
    if not taken:
        raise SoftPromptError(
            f"{train.file}: {len(train.rows)} rows are too few to carve a {name} split from; "
            f"give a {name} file or more rows. Train keeps a row of every class."
        )
    say(
        f"{name} = {len(taken)} rows of {train.file}",
        f"no file is left for it; {fraction:.0%} drawn{' by class' * (len(set(train.labels)) > 1)} with seed {seed}",
    )
    return train.pick(taken), train.without(taken)


def _few_shots(given: Splits, names: Sequence[str], shots: int, seed: int, say: Say) -> Splits:
    """Splits of ``shots`` rows per class; dev takes other rows of train, or of its own file where train has too few."""
    train = given.train
    taken = sample_shots(train.labels, names, shots, seed, train.file)
    say(f"train = {shots} rows per class of {train.file}", f"shots={shots}, drawn with seed {seed}")
    rest = train.without(taken)
    left = [rest.labels.count(c) for c in range(len(names))]
    if min(left) < shots and given.dev is not None:
        say(
            f"dev from {given.dev.file}",
            f"class {names[left.index(min(left))]!r} has only {min(left)} rows left in {train.file}",
        )
        dev = _shots_of(given.dev, names, shots, seed, f"dev, from {given.dev.file}")
    else:
        dev = _shots_of(rest, names, shots, seed, f"dev, from the rest of {rest.file}")
        say(f"dev = {shots} other rows per class of {train.file}", f"shots={shots}, drawn with seed {seed}")
    return Splits(train.pick(taken), dev, given.test)


def _shots_of(split: Split, names: Sequence[str], shots: int, seed: int, where: str) -> Split:
    return split.pick(sample_shots(split.labels, names, shots, seed, where))


def stratified(labels: Sequence[int], count: int, seed: int, leave: int = 1) -> list[int]:
    """Draw ``count`` row indices, each class in proportion, and leave at least ``leave`` rows of every class behind.

    Shares are rounded by largest remainder; there are fewer than ``count`` only where classes are too small to leave so many.
    """
    classes = _shuffled(labels, seed)
    spare = {c: max(0, len(members) - leave) for c, members in classes.items()}
    take = {c: min(count * len(members) // len(labels), spare[c]) for c, members in classes.items()}
    # Whole numbers only: a float remainder could round differently elsewhere.
    by_remainder = sorted(classes, key=lambda c: (-(count * len(classes[c]) % len(labels)), c))
    for c in by_remainder:
        if sum(take.values()) < count and take[c] < spare[c]:
            take[c] += 1
    return sorted(i for c, members in classes.items() for i in members[: take[c]])


def limited(rows: Dataset, limit: int | None) -> Dataset:
    """Return at most ``limit`` rows in their order, always the same ones.

    Each class is there in proportion, for files may be sorted by class.
    """
    if limit is None or limit >= len(rows):
        return rows
    labels = list(rows["label"]) if "label" in rows.column_names else [0] * len(rows)
    return rows.select(stratified(single_labels(labels), limit, seed=0, leave=0))


def single_labels(labels: Sequence[Any]) -> list[int]:
    """Return the class of each row to draw by: numbers and lists are no classes, and such rows one class."""
    return list(labels) if all(isinstance(label, int) for label in labels) else [0] * len(labels)


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
        size = len(classes.get(c, ()))
        if size < shots:
            raise SoftPromptError(
                f"{where}: class {name!r} has {size} rows, {shots} shots want {shots}; lower shots or add rows."
            )
    return sorted(i for members in classes.values() for i in members[:shots])


def _shuffled(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    """Row indices of each class, classes in order, indices shuffled (Python's own generator is the same everywhere)."""
    classes: dict[int, list[int]] = {c: [] for c in sorted(set(labels))}
    for i, label in enumerate(labels):
        classes[label].append(i)
    for c, members in classes.items():
        random.Random(f"{seed}/{c}").shuffle(members)
    return classes
