"""Prompts with a text that goes on from each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from ...data import Verbalizer, check_messages, encode_completion, encode_seq2seq, render
from ...tuner import evaluating
from ..completing import BATCH_SIZE, Writing, complete, encode_prompts
from ..written import check_text_scores, text_scores
from ._base import Adapted, Card, Checked, Kind
from ._texts import read_texts

RENDERED = "rendered"  # marks a text that a chat template has made, special tokens and all


class Completion(Kind):
    name = "completion"
    columns: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    reads: ClassVar[tuple[str, ...]] = ("prompt", "messages")
    plain = "prompt"
    heads = ("lm",)
    loaders: ClassVar[dict[str, Any]] = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM}
    pipeline = "text-generation"
    batch_size = BATCH_SIZE
    has_classes = False

    def choose_head(self, asked: str) -> str:
        return "lm"

    def task_type(self, head: str, encoder_decoder: bool) -> str:
        return "SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM"

    def encoder(
        self, card: Card, tokenizer: PreTrainedTokenizerBase, verbalizer: Verbalizer | None, encoder_decoder: bool
    ) -> Callable[[Dataset], Dataset]:
        return partial(encode_seq2seq if encoder_decoder else encode_completion, tokenizer, max_length=card.max_length)

    def scores(self, names: Sequence[str]) -> list[str]:
        return ["loss"]

    def test_scores(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, max_length: int
    ) -> dict[str, float]:
        with evaluating(model):
            return self._scored(model, tokenizer, rows, max_length, self.batch_size, ["accuracy"])

    def read(self, adapted: Adapted, row: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> dict[str, Any]:
        column = columns.get("messages", "messages")
        if self.name != "chat" and row.get(column) is None:
            return read_texts(adapted, row, where, ["prompt"], columns)
        given = row.get(column)
        given = [{"role": "user", "content": given}] if isinstance(given, str) else given  # a line of plain text
        messages = check_messages(given, f"{where}, column {column!r}", answered=False)
        return {"prompt": render(adapted.tokenizer, messages, where, answer=True), RENDERED: True}

    def predict(self, adapted: Adapted, rows: Sequence[Checked], writing: Writing) -> list[dict[str, Any]]:
        ids = [row["input_ids"] for row in self.encoded(adapted, rows)]
        places = [where for where, _ in rows]
        found = complete(adapted.model, adapted.tokenizer, ids, writing, adapted.batch_size, places)
        if writing.completions == 1:
            return [{"completion": texts[0]} for texts in found]
        return [{"completions": texts} for texts in found]

    def encoded(self, adapted: Adapted, rows: Sequence[Checked]) -> list[dict[str, Any]]:
        decoder = not adapted.model.config.is_encoder_decoder
        made: list[dict[str, Any]] = []
        for rendered, group in groupby((row for _, row in rows), key=lambda row: RENDERED in row):
            prompts = [row["prompt"] for row in group]
            found = encode_prompts(adapted.tokenizer, prompts, adapted.card.max_length, decoder, special=not rendered)
            made += [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in found]
        return made

    def evaluate(self, adapted: Adapted, rows: Dataset, scores: Sequence[str] = ()) -> dict[str, Any]:
        check_text_scores(scores)
        names = list(dict.fromkeys(["accuracy", *scores]))
        found = self._scored(adapted.model, adapted.tokenizer, rows, adapted.card.max_length, adapted.batch_size, names)
        return {**found, "rows": len(rows)}

    def predicted(self, names: Sequence[str]) -> list[str]:
        return ["completion"]

    def example(self, card: Card) -> str:
        return '{"prompt": "..."}'

    def asked(self, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> tuple[list[str], list[str], bool]:
        """The prompts of labelled rows, the texts that are wanted, and whether a chat template made the prompts."""
        return list(rows["prompt"]), list(rows["completion"]), False

    def _scored(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        rows: Dataset,
        max_length: int,
        batch_size: int,
        names: Iterable[str],
    ) -> dict[str, float]:
        """Scores of the most probable completions, which may be one token longer than the longest reference."""
        prompts, wanted, rendered = self.asked(tokenizer, rows)
        answers = tokenizer(wanted, add_special_tokens=False, verbose=False)["input_ids"]
        longest = max(len(ids) for ids in answers)
        if rendered:  # as what is written is read: without the special tokens that a template ends a turn with
            wanted = tokenizer.batch_decode(answers, skip_special_tokens=True)
        decoder = not model.config.is_encoder_decoder
        ids = encode_prompts(tokenizer, prompts, max_length, decoder, special=not rendered)
        written = complete(model, tokenizer, ids, Writing(longest + 1), batch_size)
        return text_scores([texts[0] for texts in written], wanted, list(names))
