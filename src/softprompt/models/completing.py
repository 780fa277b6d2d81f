"""Completions from a tuned model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .._types import SoftPromptError, announce_counts
from ..data import beginning_of_text
from .finite import not_finite

BATCH_SIZE = 16
COLDEST = 1e-5  # what is drawn at a lower temperature is the largest, and its shares are no numbers any more
CUT = "cut {} of {} prompts (on their left)"
LONGER = "they are longer than max_length={} tokens"


@dataclass(frozen=True)
class Writing:
    """How a completion is written.

    Attributes:
        max_new_tokens: of a completion; None, of a request to a server alone, stands for as many as it allows and there is room for.
        temperature: the logits' divisor before they are drawn from; below 1e-5 the largest is taken.
        top_p: of the most probable tokens, as many as reach this probability are drawn from.
        stop: texts before which a completion ends.
        seed: of what is drawn; None draws from a fresh one.
        completions: of each prompt; several only where they are drawn.

    Raises:
        SoftPromptError: a value that it cannot have.
    """

    max_new_tokens: int | None = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    completions: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for name, least in (("max_new_tokens", 1), ("completions", 1), ("seed", 0)):
            number = getattr(self, name)
            if number is None and name != "completions":
                continue
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise SoftPromptError(f"{name}: expected a whole number from {least}, got {number!r}.")
        for name, good, what in (
            ("temperature", lambda value: value >= 0, "a number from 0"),
            ("top_p", lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
        ):
            number = getattr(self, name)
            real = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
            if not real or not good(number):
                raise SoftPromptError(f"{name}: expected {what}, got {number!r}.")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise SoftPromptError(f"stop: expected texts that are not empty, got {list(self.stop)!r}.")
        if self.completions > 1 and not self.draws:
            raise SoftPromptError(
                f"completions={self.completions}: without a temperature all of them are the same; set temperature, such as 0.8."
            )

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn, in place of the most probable one."""
        return self.temperature >= COLDEST

    def cut(self, text: str) -> str:
        """The text up to the first that stops it."""
        return text[: min((at for stop in self.stop if (at := text.find(stop)) >= 0), default=len(text))]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_length: int,
    decoder: bool = True,
    special: bool = True,
) -> list[list[int]]:
    """Token ids of prompts; one of more than ``max_length`` tokens is cut as in training, and their number is announced.

    A decoder's prompt begins as in training and loses tokens on its left; an encoder-decoder's is as the tokenizer encodes and cuts it.

    Args:
        special: put the tokenizer's special tokens around them; a chat template has written its own.
    """
    whole = tokenizer(list(prompts), add_special_tokens=special and not decoder, verbose=False)["input_ids"]
    begin = beginning_of_text(tokenizer) if special and decoder else []
    lengths = [len(begin) + len(ids) for ids in whole]
    if decoder:
        found = [[*begin, *(ids[max(0, len(begin) + len(ids) - max_length) :])] for ids in whole]
    else:
        found = tokenizer(list(prompts), truncation=True, max_length=max_length)["input_ids"]
    announce_counts(
        CUT if decoder else "cut {} of {} prompts",
        (sum(length > max_length for length in lengths), len(prompts)),
        LONGER.format(max_length),
    )
    return [list(ids) for ids in found]


@torch.no_grad()
def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    writing: Writing,
    batch_size: int = BATCH_SIZE,
    places: Sequence[str] | None = None,
) -> list[list[str]]:
    """The completions of each prompt, in order.

    Args:
        prompts: token ids, as `encode_prompts` makes them.
        places: what an error calls each prompt.

    Raises:
        SoftPromptError: ``writing`` does not say how long completions may be.
        NonFiniteError: the scores of a prompt's next token are no numbers.
    """
    if writing.max_new_tokens is None:
        raise SoftPromptError(
            "max_new_tokens: expected the length of a completion, got none; only a server chooses one."
        )
    names = places or [f"row {number}" for number in range(1, len(prompts) + 1)]
    decoder = not model.config.is_encoder_decoder
    completions: list[list[str]] = [[]] * len(prompts)
    drawn = {"do_sample": True, "temperature": writing.temperature, "top_p": writing.top_p, "top_k": 0}
    with _padding(tokenizer, "left" if decoder else "right"), _seeded(writing):
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = tokenizer.pad({"input_ids": [list(prompts[i]) for i in batch]}, return_tensors="pt")
            inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
            behind = inputs["input_ids"].shape[1] if decoder else 0
            output = model.generate(
                **inputs,
                **(drawn if writing.draws else {"do_sample": False}),
                max_new_tokens=writing.max_new_tokens,
                num_return_sequences=writing.completions,
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList(
                    [_Finite([names[i] for i in batch for _ in range(writing.completions)])]
                ),
                stopping_criteria=StoppingCriteriaList([_Stop(tokenizer, writing, behind)] if writing.stop else []),
            )
            texts = tokenizer.batch_decode(output[:, behind:], skip_special_tokens=True)
            for number, i in enumerate(batch):
                own = texts[number * writing.completions : (number + 1) * writing.completions]
                completions[i] = [writing.cut(text) for text in own]
    return completions


@contextmanager
def _padding(tokenizer: PreTrainedTokenizerBase, side: str) -> Iterator[None]:
    """Inside, batches are padded on this side."""
    before, tokenizer.padding_side = tokenizer.padding_side, side
    try:
        yield
    finally:
        tokenizer.padding_side = before


@contextmanager
def _seeded(writing: Writing) -> Iterator[None]:
    """Inside, what is drawn comes from the seed, if there is one; outside nothing of it is left."""
    if writing.seed is None or not writing.draws:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(writing.seed)
        yield


class _Finite(LogitsProcessor):
    """Leaves scores as they are, and refuses those that are no numbers; -inf is how a token is forbidden."""

    def __init__(self, places: Sequence[str]):
        self.places = places

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = (scores.isnan() | scores.isposinf()).any(-1)
        if bad.any():
            raise not_finite(self.places[int(bad.int().argmax())])
        return scores


class _Stop(StoppingCriteria):
    """Ends a completion whose text holds one of those that stop it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, writing: Writing, behind: int):
        self.tokenizer, self.writing, self.behind = tokenizer, writing, behind

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.behind :], skip_special_tokens=True)
        return torch.tensor(
            [any(stop in text for stop in self.writing.stop) for text in texts], device=input_ids.device
        )
