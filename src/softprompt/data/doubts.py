"""Say what is doubtful about class names and small splits where no row is wrong."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

Say = Callable[[str, str], None]

FEW = 10  # rows; scores of fewer say little
MANY = 0.1  # of the rows of a split that stand in train, too
MISSING = {"nan", "null", "n/a"}  # as other programs write a cell without a value
SHOWN = 5  # names in one sentence


def doubt_names(names: Sequence[str], counts: Mapping[int, int], say: Say) -> None:
    """Say which names look like one class written in two ways, and which like a list or an object.

    Args:
        names: class names as they stand in the data.
        counts: rows of each class index.
        say: is told each doubt, and why it matters.
    """
    alike: dict[str, list[int]] = {}
    for c, name in enumerate(names):
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).split()).casefold(), []).append(c)
    for same in alike.values():
        if len(same) > 1:
            sizes = ", ".join(f"{names[c]!r} ({counts.get(c, 0)} rows)" for c in same)
            say(
                f"{len(same)} classes differ only by white space, case or form of characters: {sizes}",
                "each of them is a class of its own; write them alike if they mean one",
            )
    missing = [name for name in names if name.casefold() in MISSING]
    if missing:
        say(
            f"class names look like missing labels: {_some(missing)}",
            "text in a cell is a name; empty cells alone are missing labels, which blank_rows=drop leaves out",
        )
    nested = [name for name in names if name[0] + name[-1] in ("[]", "{}")]
    if nested:
        say(
            f"class names look like lists or objects: {_some(nested)}",
            "a cell is taken as one name, and a row has one class",
        )


def doubt_single_rows(names: Sequence[str], counts: Mapping[int, int], say: Say) -> None:
    """Say which classes have one row only."""
    single = [name for c, name in enumerate(names) if counts.get(c) == 1]
    if single:
        what = "class with one row" if len(single) == 1 else f"{len(single)} classes with one row"
        say(f"{what}: {_some(single)}", "one example is all to learn from, and none is left to measure by")


def doubt_sizes(sizes: Mapping[str, int], say: Say) -> None:
    """Say which splits have so few rows that scores on them say little."""
    small = [f"{name} has {size}" for name, size in sizes.items() if size < FEW]
    if small:
        say(
            f"few rows: {', '.join(small)}",
            f"scores of fewer than {FEW} rows say little; one row moves them by a tenth or more",
        )


def doubt_overlap(overlap: Mapping[str, int], sizes: Mapping[str, int], say: Say) -> None:
    """Say which splits stand in train to a good part.

    Args:
        overlap: "train/test" -> rows of test whose input stands in train.
        sizes: rows of each split.
        say: is told each doubt, and why it matters.
    """
    for name, size in sizes.items():
        if (same := overlap.get(f"train/{name}", 0)) > MANY * size:
            say(
                f"{same} of {size} {name} rows stand in train, too",
                "scores on them say what was learned by heart; keep these rows in one of the two",
            )


def doubt_one_class(names: Sequence[str], counts: Mapping[str, Mapping[int, int]], say: Say) -> None:
    """Say which splits have rows of one class alone; ``counts`` has the rows of each class by split."""
    for split, of_class in counts.items():
        if len(present := [c for c, count in of_class.items() if count]) == 1:
            say(
                f"every row of {split} is of the class {names[present[0]]!r}",
                "scores on them do not say whether classes are told apart",
            )


def doubt_contradictions(labels: Iterable[tuple[Hashable, Any]], say: Say) -> None:
    """Say how many inputs of train have different labels there; ``labels`` are pairs of an input and its label."""
    of_input: dict[Hashable, set[Any]] = {}
    for given, label in labels:
        of_input.setdefault(given, set()).add(label)
    if count := sum(len(found) > 1 for found in of_input.values()):
        inputs = "input stands" if count == 1 else "inputs stand"
        say(
            f"{count} {inputs} in train with different labels", "at most one of them can be learned; correct the labels"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"{name!r:.60}" for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
