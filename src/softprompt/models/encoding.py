"""What a kind of task makes of its rows: the function that encodes them, and the name of their collator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import Verbalizer, encode_classification, encode_completion, encode_seq2seq, encode_tokens
from .task_card import TaskCard


def encoder_for(
    card: TaskCard, tokenizer: PreTrainedTokenizerBase, verbalizer: Verbalizer | None, encoder_decoder: bool
) -> Callable[[Dataset], Dataset]:
    """The function that turns this task's rows into model inputs."""
    if verbalizer is not None:
        return partial(verbalizer.encode, max_length=card.max_length)
    if card.kind == "classification":
        return partial(encode_classification, tokenizer, max_length=card.max_length, pairs=card.pairs)
    if card.kind == "tokens":
        return partial(encode_tokens, tokenizer, max_length=card.max_length)
    return partial(encode_seq2seq if encoder_decoder else encode_completion, tokenizer, max_length=card.max_length)


def batch_kind(card: TaskCard, model: PreTrainedModel) -> str:
    """Which collator a task's batches need."""
    if card.kind != "completion":
        return card.kind
    return "seq2seq" if model.config.is_encoder_decoder else "completion"
