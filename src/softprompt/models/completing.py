"""Completions from a tuned model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from .._types import announce_counts
from .finite import not_finite

BATCH_SIZE = 16
CUT = "cut {} of {} prompts (on their left)"
LONGER = "they are longer than max_length={} tokens"


@torch.no_grad()
def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_length: int,
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    places: Sequence[str] | None = None,
) -> list[str]:
    """Greedy completions of ``prompts``, in order; one of more than ``max_length`` tokens is cut as in training.

    A decoder's prompt loses its beginning, an encoder-decoder's what the tokenizer cuts; their number is announced.

    Raises:
        NonFiniteError: the scores of a prompt's next token are no numbers; ``places`` says what the error calls each prompt.
    """
    names = places or [f"row {number}" for number in range(1, len(prompts) + 1)]
    encoder_decoder = bool(model.config.is_encoder_decoder)
    completions = [""] * len(prompts)
    with on_the_left(tokenizer, not encoder_decoder):
        lengths = [len(ids) for ids in tokenizer(list(prompts), verbose=False)["input_ids"]]
        order = sorted(range(len(prompts)), key=lambda i: lengths[i], reverse=True)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = tokenizer(
                [prompts[i] for i in batch], return_tensors="pt", padding=True, truncation=True, max_length=max_length
            )
            inputs = {
                key: value.to(model.device) for key, value in inputs.items() if key in ("input_ids", "attention_mask")
            }
            output = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList([_Finite([names[i] for i in batch])]),
            )
            new = output if encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                completions[i] = text
    announce_counts(
        "cut {} of {} prompts" if encoder_decoder else CUT,
        (sum(length > max_length for length in lengths), len(prompts)),
        LONGER.format(max_length),
    )
    return completions


@contextmanager
def on_the_left(tokenizer: PreTrainedTokenizerBase, decoder: bool = True) -> Iterator[None]:
    """Inside, a decoder's prompts are padded and cut on their left; those of an encoder-decoder are padded on their right."""
    before = tokenizer.padding_side, tokenizer.truncation_side
    tokenizer.padding_side = "left" if decoder else "right"
    if decoder:
        tokenizer.truncation_side = "left"
    try:
        yield
    finally:
        tokenizer.padding_side, tokenizer.truncation_side = before


def exact_match(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, max_length: int, batch_size: int = BATCH_SIZE
) -> float:
    """Share of rows whose greedy completion equals the reference, up to white space at both ends."""
    wanted = [str(text).strip() for text in rows["completion"]]
    longest = max(len(ids) for ids in tokenizer(wanted, add_special_tokens=False)["input_ids"])
    training = model.training
    model.eval()
    got = complete(model, tokenizer, rows["prompt"], max_length, longest + 1, batch_size)
    model.train(training)
    return sum(a.strip() == b for a, b in zip(got, wanted, strict=True)) / len(wanted)


class _Finite(LogitsProcessor):
    """Leaves scores as they are, and refuses those that are no numbers; -inf is how a token is forbidden."""

    def __init__(self, places: Sequence[str]):
        self.places = places

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = (scores.isnan() | scores.isposinf()).any(-1)
        if bad.any():
            raise not_finite(self.places[int(bad.int().argmax())])
        return scores
