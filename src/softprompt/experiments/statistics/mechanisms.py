"""Whether the mechanism of a method acted: the figures that runs have noted, by setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .scores import Scores, Setting


@dataclass(frozen=True)
class Figure:
    """One figure of a method in a setting: its name, and what each run says, in the order of the blocks."""

    method: str
    setting: Setting
    name: str
    values: tuple[float, ...]


def mechanisms(scores: Scores) -> list[Figure]:
    """Every figure of ``extra.mechanism``, of the runs that count and have it; see `softprompt.training.mechanism.mechanism`.

    A list is a figure for each of its numbers (``gates 1``), and so is a mapping for each of its names (``gradient_share tightness``).
    """
    found: dict[tuple[str, Setting, str], list[float]] = {}
    for method in scores.methods:
        for block, line in scores.lines[method].items():
            for name, value in _flat((line.get("extra") or {}).get("mechanism") or {}):
                found.setdefault((method, block.setting, name), []).append(value)
    return [Figure(*key, tuple(values)) for key, values in found.items()]


def _flat(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {part}", number) for part, number in value.items())
        elif isinstance(value, list):
            yield from ((f"{name} {position}", number) for position, number in enumerate(value, 1))
        else:
            yield name, value
