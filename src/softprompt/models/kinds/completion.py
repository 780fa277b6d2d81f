"""Prompts with a text that goes on from each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from ..._types import announce_counts
from ...data import Verbalizer, encode_completion, encode_seq2seq
from ..completing import BATCH_SIZE, CUT, LONGER, complete, exact_match, on_the_left
from ._base import Adapted, Card, Checked, Kind
from ._texts import read_texts


class Completion(Kind):
    name = "completion"
    columns = ("prompt", "completion")
    reads = ("prompt",)
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
        return {"accuracy": exact_match(model, tokenizer, rows, max_length)}

    def read(self, adapted: Adapted, row: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> dict[str, Any]:
        return read_texts(adapted, row, where, ["prompt"], columns)

    def predict(self, adapted: Adapted, rows: Sequence[Checked], max_new_tokens: int) -> list[dict[str, Any]]:
        places, prompts = [where for where, _ in rows], [row["prompt"] for _, row in rows]
        length, size = adapted.card.max_length, adapted.batch_size
        texts = complete(adapted.model, adapted.tokenizer, prompts, length, max_new_tokens, size, places)
        return [{"completion": text} for text in texts]

    def encoded(self, adapted: Adapted, rows: Sequence[Checked]) -> list[dict[str, Any]]:
        length, tokenizer, made = adapted.card.max_length, adapted.tokenizer, []
        for _, row in rows:
            with on_the_left(tokenizer):
                whole = tokenizer(row["prompt"], verbose=False)["input_ids"]
                ids = tokenizer(row["prompt"], truncation=True, max_length=length)["input_ids"]
            announce_counts(CUT, (int(len(whole) > length), 1), LONGER.format(length))
            made.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
        return made

    def evaluate(self, adapted: Adapted, rows: Dataset) -> dict[str, Any]:
        length, size = adapted.card.max_length, adapted.batch_size
        return {"accuracy": exact_match(adapted.model, adapted.tokenizer, rows, length, size), "rows": len(rows)}

    def predicted(self, names: Sequence[str]) -> list[str]:
        return ["completion"]

    def example(self, card: Card) -> str:
        return '{"prompt": "..."}'
