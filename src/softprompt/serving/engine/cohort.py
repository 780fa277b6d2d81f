"""Completions that are written together, a token of each at a time.

Shapes: B completions, V words of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...models import Writing
from ...models.finite import not_finite
from ...tuner import cache_of, prompts_of
from .backlog import Job

CLEANED = 3  # last words of a text that a tokenizer with clean-up may still join otherwise
# settings of a model's generation_config that change what is written and are not applied here
LEFT_OUT = (
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_new_tokens",
    "min_length",
    "sequence_bias",
    "exponential_decay_length_penalty",
)


class Text:
    """One completion in the making: its tokens, and how much of its text is certain.

    Attributes:
        ids: written so far.
        reason: why it ended; None while it goes on.
    """

    def __init__(self, tokenizer: Any, writing: Writing, most: int, ends: frozenset[int]):
        self.tokenizer, self.writing, self.most, self.ends = tokenizer, writing, most, ends
        self.ids: list[int] = []
        self.reason: str | None = None
        self._given = 0
        self.text = ""

    def add(self, token: int) -> str:
        """Take a further token; returns the piece of text that is now certain."""
        if token in self.ends:
            self.reason = "stop"
        self.ids.append(token)
        self.text = str(self.tokenizer.decode(self.ids, skip_special_tokens=True))
        before = self.writing.cut(self.text)
        if len(before) < len(self.text):
            self.text, self.reason = before, "stop"
        elif self.reason is None and len(self.ids) >= self.most:
            self.reason = "length"
        until = len(self.text) if self.reason else self._certain()
        piece, self._given = self.text[self._given : until], max(self._given, until)
        return piece

    def _certain(self) -> int:
        """How much of the text no further token can change."""
        text = self.text
        while text.endswith("\ufffd"):  # a character of which some bytes are still missing
            text = text[:-1]
        certain = len(text)
        if getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
            words = text.rsplit(" ", CLEANED)
            certain = len(words[0]) if len(words) > CLEANED else 0
        held = max((len(stop) - 1 for stop in self.writing.stop), default=0)
        return max(0, min(certain, len(text) - held))


class Cohort:
    """Jobs whose completions are written in one batch, each with its own prompt and its own way to choose a token.

    A completion that has ended stays in the batch until all have.

    Args:
        model: with the prompts.
        jobs: one or more.
        call: see `Lane.names`.
    """

    def __init__(self, model: Any, jobs: Sequence[Job], call: Callable[[Sequence[str]], dict[str, Any]]):
        self.model, self.jobs, self._call = model, list(jobs), call
        self.names = [job.served.key for job in jobs]
        tokenizer = jobs[0].served.tokenizer
        settings = model.generation_config
        ends = settings.eos_token_id
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or ())
        self.repetition = float(settings.repetition_penalty or 1.0)
        self.texts = [Text(tokenizer, job.request.writing, job.encoded.new, self.ends) for job in jobs]
        self.draws = [_generator(job.request.writing) for job in jobs]
        rows = [{k: job.encoded.inputs[k] for k in ("input_ids", "attention_mask")} for job in jobs]
        self._inputs = dict(tokenizer.pad(rows, padding_side="left", return_tensors="pt").to(model.device))
        self._seen = [set(row["input_ids"]) for row in rows]  # without padding, which hangs on the others
        self._backbone, self._cache = prompts_of(model).backbone, None
        takes = inspect.signature(model.get_base_model().forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @property
    def over(self) -> bool:
        return all(text.reason for text in self.texts)

    @torch.no_grad()
    def step(self) -> list[tuple[int, str | Exception]]:
        """Write a token of each completion that goes on; returns their places, each with its new piece of text or its error."""
        cache = self._backbone.caching(self._cache)
        output = self.model(**self._inputs, **cache, use_cache=True, **self._call(self.names), **self._options)
        self._cache = cache_of(output)
        logits = output.logits[:, -1].float()
        made: list[tuple[int, str | Exception]] = []
        chosen = torch.zeros(len(self.jobs), 1, dtype=torch.long)
        for at, text in enumerate(self.texts):
            if text.reason is not None:
                continue
            try:  # what is wrong with one is not wrong with the others
                token = self._choose(logits[at], at)
                piece: str | Exception = text.add(token)
            except Exception as error:
                text.reason, piece = "error", error
            else:
                chosen[at] = token
                self._seen[at].add(token)
            made.append((at, piece))
        mask = self._inputs["attention_mask"]
        new = chosen.to(mask.device)
        self._inputs = {"input_ids": new, "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], 1)}
        return made

    def end(self, at: int) -> None:
        """Write no more of one completion."""
        self.texts[at].reason = self.texts[at].reason or "stopped"

    def _choose(self, logits: Tensor, at: int) -> int:
        if (logits.isnan() | logits.isposinf()).any() or logits.isneginf().all():
            raise not_finite("the completion")
        writing = self.jobs[at].request.writing
        if self.repetition != 1.0:
            seen = torch.tensor(sorted(self._seen[at]), device=logits.device)
            part = logits[seen]
            logits = logits.index_copy(0, seen, torch.where(part < 0, part * self.repetition, part / self.repetition))
        if not writing.draws:
            return int(logits.argmax())
        shares, order = ((logits - logits.max()) / writing.temperature).softmax(-1).sort(descending=True)
        ahead = shares.cumsum(0) - shares
        beyond = ahead >= writing.top_p
        beyond[0] = False  # the most probable one always stays
        shares = shares.masked_fill(beyond, 0.0)
        return int(order[torch.multinomial(shares.cpu(), 1, generator=self.draws[at])])


def _generator(writing: Writing) -> torch.Generator:
    drawn = torch.Generator()
    if writing.seed is None:
        drawn.seed()
    else:
        drawn.manual_seed(writing.seed)
    return drawn
