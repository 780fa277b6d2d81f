"""What the papers claim of their methods, and what the published cells say of it, each with its interval.

The verdict follows from the interval alone: "seen" where all of it is on the claim's side, "the opposite is seen" where all of it is
on the other, "cannot be told" else, and "too few runs" below `FEW` blocks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import NamedTuple

from scipy import stats

import studies
from softprompt.experiments.statistics import Line, Setting, block_of, curve_of, first_step, median_interval, setting_of

LABEL_WORDS, PROBE, ROWS = "label words, 16 shots", "probe head, 16 shots", "probe head, 64 training rows"
SUITES = {LABEL_WORDS: "masked-lm", PROBE: "few-shot", ROWS: "mechanisms"}
SPREAD = 0.95  # of intervals that are computed here
FEW = 6  # blocks


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
    """Points of accuracy, `method` minus `reference`, on the blocks that both have finished: the mean of the settings' means.

    The interval is Student's, from the deviation within settings of all settings together: N blocks of K settings leave N - K
    degrees of freedom. (The bootstrap of `softprompt compare` is too short for two or three seeds.)
    """
    found: dict[Setting, list[float]] = {}
    for own, other in _pairs(lines(), method, reference):
        found.setdefault(setting_of(own), []).append(100 * (own["test"] - other["test"]))
    if not found:
        return None
    mean = fmean(fmean(values) for values in found.values())
    (variance, free), half = _within(found.values()), math.inf
    if free:
        error = math.sqrt(variance * sum(1 / len(values) for values in found.values())) / len(found)
        half = stats.t.ppf((1 + SPREAD) / 2, free) * error
    text = f"{mean:+.1f} points" + (f" ({mean - half:+.1f} to {mean + half:+.1f})" if free else "")
    return Seen(text, mean - half, mean + half, 0.0, sum(map(len, found.values())))


def pace(lines: Callable[[], list[Line]], method: str, reference: str) -> Seen | None:
    """Steps to the highest dev score that both runs of a block reach, as a share of the reference's: the median."""
    shares = []
    for own, other in _pairs(lines(), method, reference):
        curves = curve_of(own), curve_of(other)
        if all(curves):
            goal = min(max(score for _, score in curve) for curve in curves)
            shares.append(first_step(curves[0], goal) / first_step(curves[1], goal))
    if not shares:
        return None
    median, interval = statistics.median(shares), median_interval(shares)
    low, high = (-math.inf, math.inf) if interval is None else interval
    text = f"{median:.2f} of the steps" + ("" if interval is None else f" ({low:.2f} to {high:.2f})")
    return Seen(text, low, high, 1.0, len(shares))


def spread(lines: Callable[[], list[Line]], method: str, reference: str) -> Seen | None:
    """Deviations of accuracy over starts of the prompt within each task, `method` over `reference`; the interval is that of F."""
    found: dict[str, dict[str, list[float]]] = {method: {}, reference: {}}
    for line in lines():
        if (name := line["options"]["method"]) in found:
            found[name].setdefault(line["task"], []).append(line["test"])
    variances, free = zip(*(_within(by_task.values()) for by_task in found.values()), strict=True)
    if not all(free):
        return None
    ratio = math.sqrt(variances[0] / variances[1])
    low, high = (ratio / math.sqrt(stats.f.ppf(q, *free)) for q in ((1 + SPREAD) / 2, (1 - SPREAD) / 2))
    return Seen(f"{ratio:.2f} times the deviation ({low:.2f} to {high:.2f})", low, high, 1.0, min(free) + 1)


def _within(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """The variance within groups, of all of them together, and its degrees of freedom; 0 where there are none."""
    several = [values for values in groups if len(values) > 1]
    free = sum(len(values) - 1 for values in several)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
    return (squares / free if free else 0.0), free


def _pairs(lines: Sequence[Line], method: str, reference: str) -> list[tuple[Line, Line]]:
    """The runs of the two methods on each block that both have finished."""
    done = [line for line in lines if line["status"] == "done"]
    runs = [{block_of(line): line for line in done if line["method"] == name} for name in (method, reference)]
    return [(line, runs[1][block]) for block, line in runs[0].items() if block in runs[1]]


def _cells(setting: str) -> list[Line]:
    """The cells with today's defaults, of 16 rows per class or of training rows."""
    return [line for line in studies.finished(SUITES[setting]) if setting == ROWS or line["shots"] == 16]


def _shapes() -> list[Line]:
    """The cells of the topology studies, a block for each task and seed: its two lengths share rows and seeds, so their mean is one run."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for length in studies.LENGTHS:
        for line in studies.cells(f"topology-{length}"):
            found.setdefault((line["method"], line["task"], line["seed"]), []).append(line["test"])
    return [
        {
            "method": method,
            "task": task,
            "shots": None,
            "rows": 128,
            "seed": seed,
            "status": "done",
            "test": fmean(values),
        }
        for (method, task, seed), values in found.items()
    ]


def _accuracy(paper: str, sentence: str, method: str, reference: str, settings: Sequence[str]) -> list[Claim]:
    return [
        Claim(paper, sentence, setting, partial(difference, partial(_cells, setting), method, reference))
        for setting in settings
    ]


def _then(paper: str, sentence: str, study: str, method: str, reference: str) -> Claim:
    lines = partial(studies.cells, study)
    return Claim(paper, sentence, BEFORE, partial(difference, lines, method, reference))


def _speed(paper: str, method: str) -> list[Claim]:
    return [
        Claim(paper, FASTER, setting, partial(pace, partial(_cells, setting), method, "prompt_tuning"), higher=False)
        for setting in (LABEL_WORDS, PROBE)
    ]


BEFORE = "probe head, 2026-11"  # studies that have not been made with today's defaults
FRESH = "head that knows nothing, 2026-11"
BETTER, SEARCHED = "more accurate than prompt tuning", "searched layers beat drawn ones"
FASTER = "fewer steps than prompt tuning to a dev score that both reach"
CLAIMS = [
    *_accuracy("EPT", BETTER, "ept", "prompt_tuning", (LABEL_WORDS, PROBE)),
    *_accuracy("EPT", "more accurate than DePT", "ept", "dept", (LABEL_WORDS,)),
    *_accuracy("EPT", "the fusion helps", "ept", "ept, no fusion", (LABEL_WORDS, ROWS)),
    *_accuracy("EPT", "the spaces help", "ept", "ept, no spaces", (LABEL_WORDS, ROWS)),
    *_accuracy("EPT", "the gate helps", "ept", "ept, no gate", (LABEL_WORDS,)),
    *_accuracy("SPT", SEARCHED, "spt", "spt, random layers", (LABEL_WORDS, ROWS)),
    _then("SPT", SEARCHED, "spt", "spt, 3 searched layers", "spt, 3 random layers"),
    *_accuracy("SPT", BETTER, "spt", "prompt_tuning", (LABEL_WORDS, PROBE)),
    _then("SPT", BETTER, "spt", "spt, 3 searched layers", "prompt_tuning, input only"),
    *_accuracy("InfoPrompt", BETTER, "infoprompt", "prompt_tuning", (LABEL_WORDS, PROBE)),
    _then("InfoPrompt", BETTER, "infoprompt", "infoprompt", "prompt_tuning"),
    *_accuracy("InfoPrompt", "the head term helps", "infoprompt", "infoprompt, state term alone", (LABEL_WORDS,)),
    *_accuracy("InfoPrompt", "the state term helps", "infoprompt", "infoprompt, head term alone", (LABEL_WORDS,)),
    *_speed("InfoPrompt", "infoprompt"),
    Claim(
        "InfoPrompt",
        FASTER,
        BEFORE,
        partial(pace, partial(studies.cells, "infoprompt"), "infoprompt", "prompt_tuning"),
        higher=False,
    ),
    Claim(
        "InfoPrompt",
        "depends less on the start (one task; its head term was inert)",
        BEFORE,
        partial(spread, partial(studies.cells, "starts"), "infoprompt", "prompt_tuning"),
        higher=False,
    ),
    Claim(
        "InfoPrompt",
        "depends less on the start (one draw of rows)",
        LABEL_WORDS,
        partial(spread, partial(studies.finished, "masked-lm-starts"), "infoprompt", "prompt_tuning"),
        higher=False,
    ),
    *_accuracy("TSLoss", "more accurate than cross-entropy alone", "tsloss", "prompt_tuning", (LABEL_WORDS, PROBE)),
    Claim(
        "TSLoss",
        "more accurate than cross-entropy alone",
        FRESH,
        partial(difference, _shapes, "with ts_loss", studies.PLAIN),
    ),
    *_speed("TSLoss", "tsloss"),
    Claim(
        "TSLoss",
        FASTER,
        FRESH,
        partial(pace, partial(studies.cells, "topology-20"), "with ts_loss", studies.PLAIN),
        higher=False,
    ),
]


def both_ends() -> str:
    """Minus prompt tuning, at the checkpoint that dev rows chose and at the last step, each with Student's interval."""
    lines = ["| head | method | blocks | chosen checkpoint | last step |", "|---|---|---:|---:|---:|"]
    for setting in (LABEL_WORDS, PROBE):
        for method in ("ept", "spt", "infoprompt", "tsloss", "deep_prompts", "contrast", "peft:lora, r = 1"):
            ends = [difference(partial(cells, setting), method, "prompt_tuning") for cells in (_cells, _last_cells)]
            if None not in ends:
                texts = (end.text.replace(" points", "") for end in ends if end is not None)
                lines.append(f"| {setting} | {method} | {ends[0].blocks} | {' | '.join(texts)} |")  # type: ignore[union-attr]
    return "\n".join(lines)


def _last_cells(setting: str) -> list[Line]:
    """The cells as their last step left them."""
    last = [(line, line["extra"].get("last")) for line in _cells(setting)]
    return [{**line, "test": scores["test"]} for line, scores in last if scores]


def table() -> str:
    """Every claim, a line each."""
    head = "| paper | claim | asked of | seen (95 % interval) | blocks | verdict |\n|---|---|---|---:|---:|---|"
    return "\n".join([head, *(claim.line for claim in CLAIMS)])
