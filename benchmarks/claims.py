"""What the papers claim of their methods, and what the published cells say of it, each with its interval.

The verdict follows from the interval alone: "seen" where all of it is on the claim's side, "the opposite is seen" where all of it is
on the other, "cannot be told" else, and "too few runs" below `FEW` blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from scipy import stats

import studies
from softprompt.experiments.records import read_cells
from softprompt.experiments.statistics import Line, Scores, compare, steps_to_target

LABEL_WORDS, PROBE, ROWS = "label words, 16 shots", "probe head, 16 shots", "probe head, 64 training rows"
CELLS = {LABEL_WORDS: "masked-lm", PROBE: "few-shot", ROWS: "mechanisms"}
SPREAD = 0.95  # of intervals that are computed here
FEW = 6  # blocks: an interval of fewer is one of the seeds that happened to run


class Seen(NamedTuple):
    """A figure, its interval, what neither claim nor opposite would give, and the number of blocks behind it."""

    text: str
    low: float
    high: float
    neutral: float
    blocks: int


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, where it was asked here, the figure, and whether the claim is a higher one."""

    paper: str
    sentence: str
    setting: str
    measure: Callable[[], Seen | None]
    higher: bool = True

    @property
    def line(self) -> str:
        seen = self.measure()
        text, blocks = ("-", 0) if seen is None else (seen.text, seen.blocks)
        return f"| {self.paper} | {self.sentence} | {self.setting} | {text} | {blocks} | {self.verdict(seen)} |"

    def verdict(self, seen: Seen | None) -> str:
        if seen is None:
            return "not run"
        if seen.blocks < FEW:
            return "too few runs"
        if seen.low <= seen.neutral <= seen.high:
            return "cannot be told"
        return "**seen**" if (seen.low > seen.neutral) == self.higher else "**the opposite is seen**"


def difference(lines: Callable[[], list[Line]], method: str, reference: str) -> Seen | None:
    """Points of test accuracy, `method` minus `reference`, on the blocks that both have finished."""
    scores = _both(lines(), method, reference)
    found = None if scores is None else compare(scores, reference).lines[0]
    if found is None or found.difference is None or found.interval is None:
        return None
    low, high = (100 * end for end in found.interval)
    return Seen(f"{100 * found.difference:+.1f} points ({low:+.1f} to {high:+.1f})", low, high, 0.0, found.units)


def pace(lines: Callable[[], list[Line]], method: str, reference: str) -> Seen | None:
    """Steps to the reference's best dev score, as a share of the reference's own; never is infinite."""
    scores = _both(lines(), method, reference)
    found = None if scores is None else next(s for s in steps_to_target(scores, reference) if s.method == method)
    if found is None or found.median is None or found.interval is None:
        return None
    low, high = found.interval
    shown = [f"{value:.2f}" if math.isfinite(value) else "never" for value in (found.median, low, high)]
    return Seen(f"{shown[0]} of the steps ({shown[1]} to {shown[2]})", low, high, 1.0, len(found.shares))


def spread(method: str, reference: str) -> Seen | None:
    """Standard deviations of test accuracy over starts of the prompt, `method` over `reference`; the interval is that of F."""
    lines = studies.cells("starts")
    values = [[line["test"] for line in lines if line["options"]["method"] == name] for name in (method, reference)]
    if min(map(len, values)) < 3:
        return None
    ratio = stats.tstd(values[0]) / stats.tstd(values[1])
    free = [len(each) - 1 for each in values]
    low, high = (ratio / math.sqrt(stats.f.ppf(q, *free)) for q in ((1 + SPREAD) / 2, (1 - SPREAD) / 2))
    return Seen(f"{ratio:.2f} times the deviation ({low:.2f} to {high:.2f})", low, high, 1.0, min(map(len, values)))


def _both(lines: Sequence[Line], method: str, reference: str) -> Scores | None:
    """The cells of the two methods, in the settings and with the seeds where both have run."""
    done = [line for line in lines if line["status"] == "done"]
    there = {line["method"] for line in done}
    return Scores(done, [reference, method]) if {method, reference} <= there else None


def _cells(setting: str) -> list[Line]:
    """The cells with today's defaults, of 16 rows per class or of training rows."""
    lines = read_cells(studies.CELLS / f"{CELLS[setting]}.jsonl").values()
    return [line for line in lines if setting == ROWS or line["shots"] == 16]


def _accuracy(paper: str, sentence: str, method: str, reference: str, settings: Sequence[str]) -> list[Claim]:
    return [
        Claim(paper, sentence, setting, partial(difference, partial(_cells, setting), method, reference))
        for setting in settings
    ]


def _speed(paper: str, method: str) -> list[Claim]:
    return [
        Claim(
            paper,
            "reaches prompt tuning's best dev score in fewer steps",
            setting,
            partial(pace, partial(_cells, setting), method, "prompt_tuning"),
            higher=False,
        )
        for setting in (LABEL_WORDS, PROBE)
    ]


BEFORE = "probe head, 2026-11"  # studies that have not been made with today's defaults
CLAIMS = [
    *_accuracy("EPT", "more accurate than prompt tuning of its length", "ept", "prompt_tuning", (LABEL_WORDS, PROBE)),
    *_accuracy("EPT", "more accurate than DePT", "ept", "dept", (LABEL_WORDS,)),
    *_accuracy("EPT", "the fusion helps", "ept", "ept, no fusion", (ROWS,)),
    *_accuracy("EPT", "the spaces help", "ept", "ept, no spaces", (ROWS,)),
    *_accuracy("SPT", "searched layers beat drawn ones", "spt", "spt, random layers", (LABEL_WORDS,)),
    Claim(
        "SPT",
        "searched layers beat drawn ones",
        BEFORE,
        partial(difference, partial(studies.cells, "spt"), "spt, 3 searched layers", "spt, 3 random layers"),
    ),
    *_accuracy("SPT", "more accurate than prompt tuning", "spt", "prompt_tuning", (LABEL_WORDS, PROBE)),
    *_accuracy("InfoPrompt", "more accurate than prompt tuning", "infoprompt", "prompt_tuning", (LABEL_WORDS, PROBE)),
    *_speed("InfoPrompt", "infoprompt"),
    Claim(
        "InfoPrompt", "depends less on the start", BEFORE, partial(spread, "infoprompt", "prompt_tuning"), higher=False
    ),
    *_accuracy("TSLoss", "more accurate than cross-entropy alone", "tsloss", "prompt_tuning", (LABEL_WORDS, PROBE)),
    Claim(
        "TSLoss",
        "more accurate than cross-entropy alone",
        "head that knows nothing, 2026-11",
        partial(difference, studies.topology_cells, "with ts_loss", studies.PLAIN),
    ),
    *_speed("TSLoss", "tsloss"),
]


def table() -> str:
    """Every claim, a line each."""
    head = "| paper | claim | asked of | seen (95 % interval) | blocks | verdict |\n|---|---|---|---:|---:|---|"
    return "\n".join([head, *(claim.line for claim in CLAIMS)])
