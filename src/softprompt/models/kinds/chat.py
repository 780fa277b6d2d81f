"""Conversations, in which the assistant's messages are learned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..._types import SoftPromptError
from ...data import Verbalizer, encode_chat, wanted_answer
from ._base import Card
from .completion import Completion


class Chat(Completion):
    """A completion whose prompt is the text of the messages so far, as the tokenizer's chat template makes it."""

    name = "chat"
    columns = ("messages",)
    reads = ("messages",)
    plain = "messages"

    def task_type(self, head: str, encoder_decoder: bool) -> str:
        if encoder_decoder:
            raise SoftPromptError(
                "rows of messages are learned by causal language models: expected one, got an encoder-decoder."
            )
        return "CAUSAL_LM"

    def encoder(
        self, card: Card, tokenizer: PreTrainedTokenizerBase, verbalizer: Verbalizer | None, encoder_decoder: bool
    ) -> Callable[[Dataset], Dataset]:
        return partial(encode_chat, tokenizer, max_length=card.max_length)

    def asked(self, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> tuple[list[str], list[str], bool]:
        pairs = [wanted_answer(tokenizer, own, f"row {number}") for number, own in enumerate(rows["messages"], 1)]
        return [read for read, _ in pairs], [said for _, said in pairs], True

    def example(self, card: Card) -> str:
        return '{"messages": [{"role": "user", "content": "..."}]}'
