"""Scores of finished runs by method and block, and what is missing of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..._types import SoftPromptError, check_choice

Line = Mapping[str, Any]


class Setting(NamedTuple):
    """A task with its number of training rows: ``shots`` per class, or ``rows`` in all (None: all)."""

    task: str
    shots: int | None
    rows: int | None

    def __str__(self) -> str:
        amount = f"{self.shots} shots" if self.shots else f"{self.rows} rows" if self.rows else ""
        return f"{self.task}, {amount}" if amount else self.task


class Block(NamedTuple):
    """A setting with a seed."""

    setting: Setting
    seed: int

    def __str__(self) -> str:
        return f"{self.setting}, seed {self.seed}"


@dataclass(frozen=True)
class LeftOut:
    """A run that does not count, and the reason: it failed, its score is not a number, or it is not there."""

    method: str
    block: Block
    reason: str


def setting_of(line: Line) -> Setting:
    """Return the setting of a line."""
    return Setting(line["task"], line.get("shots"), line.get("rows"))


def block_of(line: Line) -> Block:
    """Return the block of a line."""
    return Block(setting_of(line), line["seed"])


class Scores:
    """The scores of finished runs by method and block, and what is missing.

    Args:
        lines: mappings with ``method``, ``task``, ``shots``, ``rows``, ``seed``, ``status`` ("done" or "failed"),
            the score ``test``, and ``parameters``, ``steps``, ``curve`` and ``time``, which single functions read.
        methods: the methods to look at, in this order; None takes all, in order of appearance.

    Attributes:
        methods, settings: all of them, in the given order or in order of appearance.
        blocks: every block in which some method was tried, sorted by setting, then in order of appearance.
        lines: method -> block -> line, for the runs that count.
        left_out: the runs that do not count.

    Raises:
        SoftPromptError: a method has no lines, or one method has two finished lines on one block.
    """

    def __init__(self, lines: Iterable[Line], methods: Sequence[str] | None = None):
        lines = list(lines)
        there = list(dict.fromkeys(line["method"] for line in lines))
        for method in methods or ():
            check_choice("method in these results", method, there)
        self.methods = list(there if methods is None else methods)
        lines = [line for line in lines if line["method"] in self.methods]
        self.settings = list(dict.fromkeys(setting_of(line) for line in lines))
        order = {setting: i for i, setting in enumerate(self.settings)}
        self.blocks = sorted(dict.fromkeys(block_of(line) for line in lines), key=lambda block: order[block.setting])
        self.lines: dict[str, dict[Block, Line]] = {method: {} for method in self.methods}
        failures: dict[tuple[str, Block], str] = {}
        for line in lines:
            method, block = line["method"], block_of(line)
            if reason := self._unusable(line):
                failures[method, block] = reason
            elif block in self.lines[method]:
                raise SoftPromptError(
                    f"two finished runs of {method!r} on {block}; expected one per method and block: give one suite at a time, or name the methods apart."
                )
            else:
                self.lines[method][block] = line
        self.left_out = [
            LeftOut(method, block, failures.get((method, block), "no run"))
            for method in self.methods
            for block in self.blocks
            if block not in self.lines[method]
        ]

    def _unusable(self, line: Line) -> str:
        if line["status"] != "done":
            return f"failed: {line.get('error') or 'no reason given'}"
        value = line.get("test")
        if value is None:
            return "no test score"
        return "" if math.isfinite(value) else f"test score is {value}"

    def value(self, method: str, block: Block) -> float:
        """Return the score of a run that counts."""
        return float(self.lines[method][block]["test"])

    def seeds(self, method: str, setting: Setting) -> list[float]:
        """Return the scores of all runs that count in a setting, in the order of the blocks."""
        return [self.value(method, block) for block in self.lines[method] if block.setting == setting]

    def complete(self) -> list[Block]:
        """Return the blocks that all methods have finished."""
        return [block for block in self.blocks if all(block in lines for lines in self.lines.values())]

    def matrix(self, blocks: Sequence[Block]) -> np.ndarray:
        """Return scores [blocks, methods]."""
        scores = np.array([[self.value(method, block) for method in self.methods] for block in blocks])
        return scores.reshape(len(blocks), len(self.methods))


def by_setting(blocks: Sequence[Block]) -> dict[Setting, list[int]]:
    """Return the positions of each setting's blocks, in order of appearance."""
    groups: dict[Setting, list[int]] = {}
    for i, block in enumerate(blocks):
        groups.setdefault(block.setting, []).append(i)
    return groups
