"""Scores of completions against references, each by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

from .._types import SoftPromptError, check_choice

# 7, -7, 1,200.5, .5, 1e-3; a hyphen behind a letter or digit is no sign ("3-4", "A-4"), and digits inside a word are no number
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


def _exact(written: Sequence[str], wanted: Sequence[str]) -> float:
    """The share that equals its reference, up to white space at both ends."""
    return sum(a.strip() == b.strip() for a, b in zip(written, wanted, strict=True)) / len(wanted)


def _number(written: Sequence[str], wanted: Sequence[str]) -> float:
    """The share whose last number is that of its reference, among references that have one."""
    pairs = [(_last_number(a), _last_number(b)) for a, b in zip(written, wanted, strict=True)]
    numbered = [(a, b) for a, b in pairs if b is not None]
    if not numbered:
        raise SoftPromptError("score 'number_match' compares numbers: expected references with a number, got none.")
    return sum(a == b for a, b in numbered) / len(numbered)


def _last_number(text: str) -> float | None:
    found = NUMBER.findall(text.replace("\u2212", "-"))
    return float(found[-1].replace(",", "")) if found else None


def _rouge(name: str, written: Sequence[str], wanted: Sequence[str]) -> float:
    """The mean F-measure of the words, pairs of words or longest common sequence that both texts have."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=False)
    return float(sum(scorer.score(b, a)[name].fmeasure for a, b in zip(written, wanted, strict=True)) / len(wanted))


# name -> the score of written texts and their references
TEXT_SCORES: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "accuracy": _exact,
    "number_match": _number,
    **{name: partial(_rouge, name) for name in ("rouge1", "rouge2", "rougeL")},
}


def check_text_scores(names: Sequence[str]) -> None:
    """Refuse, before anything is written, scores that do not exist, or whose package is missing."""
    for name in names:
        check_choice("score of completions", name, TEXT_SCORES)
        if name.startswith("rouge") and find_spec("rouge_score") is None:
            raise SoftPromptError(f'score {name!r} needs rouge-score; install it with: pip install "softprompt[rouge]"')


def text_scores(
    written: Sequence[str], wanted: Sequence[str], names: Sequence[str] = ("accuracy",)
) -> dict[str, float]:
    """The scores of ``names``, of `TEXT_SCORES`, of written texts and their references."""
    return {name: TEXT_SCORES[name](written, wanted) for name in names}
