"""Tags of words: the entities that they mark, and how many of them are found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction

from .._types import IGNORED

OUTSIDE = "O"


def mark_entities(names: Sequence[str]) -> bool:
    """Whether these are BIO tags: O, and B- or I- with a type; tags of parts of speech are not."""
    return all(name == OUTSIDE or name[:2] in ("B-", "I-") for name in names) and set(names) != {OUTSIDE}


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of a row of BIO tags as (type, first word, word behind the last).

    As in CoNLL's scorer, an I- that continues nothing (after O, or after another type) begins an entity.
    """
    marked, kind, start = [], None, 0
    for at, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, name = tag.partition("-")
        if kind is not None and (prefix != "I" or name != kind):
            marked.append((kind, start, at))
            kind = None
        if kind is None and tag != OUTSIDE:
            kind, start = name, at
    return marked


def tag_scores(
    names: Sequence[str], true: Iterable[Sequence[int]], predicted: Iterable[Sequence[int]]
) -> dict[str, float]:
    """Compare rows of tag indices: "accuracy", the share of words with the right tag, and of BIO tags "f1" of entities.

    An entity is right if its type and both of its ends are; F1 = 2 right / (true + predicted), over all rows and types.
    """
    words = hits = right = both = 0
    bio = mark_entities(names)
    for one, other in zip(true, predicted, strict=True):
        words += len(one)
        hits += sum(a == b for a, b in zip(one, other, strict=True))
        if bio:
            wanted, got = (set(entities([names[tag] for tag in tags])) for tags in (one, other))
            right += len(wanted & got)
            both += len(wanted) + len(got)
    scores = {"accuracy": hits / max(1, words)}
    return {**scores, "f1": 2 * right / max(1, both)} if bio else scores


def best_tags(logits: Any, labels: Any = None) -> Tensor:
    """The tag with the largest logit at each token; a trainer keeps it in place of all logits."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def kept_tags(prediction: EvalPrediction) -> tuple[list[list[int]], list[list[int]]]:
    """True and predicted tags by row, of a trainer that keeps `best_tags`; tokens without a label are left out."""
    labels, best = np.asarray(prediction.label_ids), np.asarray(prediction.predictions)
    kept = labels != IGNORED
    true, predicted = ([row[keep].tolist() for row, keep in zip(tags, kept, strict=True)] for tags in (labels, best))
    return true, predicted


def scorer(names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """`tag_scores` of `kept_tags`."""

    def score(prediction: EvalPrediction) -> dict[str, float]:
        return tag_scores(names, *kept_tags(prediction))

    return score
