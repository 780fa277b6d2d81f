"""Heads: what is put on a loaded backbone, and what its config must say before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .._types import SoftPromptError
from ..data import Verbalizer
from .classifier import PooledClassifier, classifier_for
from .kinds import KINDS, Card
from .losses import PROBLEMS
from .verbalized import VerbalizedClassifier, word_place


@dataclass(frozen=True)
class Head:
    """One head.

    Attributes:
        put: (loaded model, card, tokenizer, pooling that the user asks for) to the model with its head.
        names_classes: whether the backbone's config must name the classes before it is loaded.
        compares: whether it can read two texts apart.
    """

    put: Callable[[PreTrainedModel, Card, PreTrainedTokenizerBase, str], PreTrainedModel]
    names_classes: bool = False
    compares: bool = False


def pooled_head(model: PreTrainedModel, card: Card, pooling: str) -> PooledClassifier:
    """A new pooled head as the card describes it; ``pooling`` where the card names none."""
    problem = KINDS[card.kind].problem_type or PROBLEMS[0]
    return classifier_for(
        model, card.label_names, card.pooling or pooling, card.pairs or "joined", card.features, problem
    )


def _pooled(model: PreTrainedModel, card: Card, tokenizer: PreTrainedTokenizerBase, pooling: str) -> PreTrainedModel:
    return pooled_head(model, card, pooling)


def _verbalizer(
    model: PreTrainedModel, card: Card, tokenizer: PreTrainedTokenizerBase, pooling: str
) -> PreTrainedModel:
    verbalizer = Verbalizer.from_dict(tokenizer, card.verbalizer or {})
    if verbalizer.place != (place := word_place(model.config)):
        raise SoftPromptError(
            f"backbone {model.config.name_or_path!r} says words at place={place!r}, and the card's label words are read at place={verbalizer.place!r}; use the backbone that the adapter was trained on."
        )
    return VerbalizedClassifier(model, verbalizer)


def _stock(model: PreTrainedModel, card: Card, tokenizer: PreTrainedTokenizerBase, pooling: str) -> PreTrainedModel:
    model.accepts_loss_kwargs = False  # its loss is a mean over the batch: a trainer that accumulates must divide
    return model


def _lm(model: PreTrainedModel, card: Card, tokenizer: PreTrainedTokenizerBase, pooling: str) -> PreTrainedModel:
    return model


HEADS = {
    "pooled": Head(_pooled, compares=True),
    "stock": Head(_stock, names_classes=True),
    "verbalizer": Head(_verbalizer),
    "lm": Head(_lm),
}
