"""Encode conversations: of their tokens the assistant's are learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .._types import IGNORED, SoftPromptError
from .chat import Messages, render
from .encode import announce_cut, check_columns, encode_in_batches, end_of_text


def encode_chat(tokenizer: PreTrainedTokenizerBase, dataset: Dataset, max_length: int) -> Dataset:
    """Encode the column messages for a causal model; labels are -100 but on what the assistant says, up to the end of its turn.

    What the assistant says is what the template adds to the text when its message is added to those before, behind the beginning of
    its turn. A conversation that is longer than ``max_length`` loses tokens on its left; the number of these rows is announced.

    Raises:
        SoftPromptError: the column, a chat template or the tokenizer's eos token is missing; the tokenizer is slow; the template
            renders the beginning of a conversation otherwise when more follows; the tokenizer joins the beginning of an answer with what
            stands before it; the last answer leaves no room for a token before it.
    """
    eos = end_of_text(tokenizer)
    check_columns(dataset, ("messages",), max_length, 1)
    if not tokenizer.is_fast:
        raise SoftPromptError(
            f"{type(tokenizer).__name__} is a slow tokenizer; what the assistant says is found by offsets, which only fast ones give."
        )
    cut = seen = 0

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        nonlocal cut, seen
        columns: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for messages in batch["messages"]:
            ids, labels = _encoded(tokenizer, messages, f"row {seen}", eos)
            answer = labels[::-1].index(IGNORED)  # tokens of the last one
            if answer >= max_length:
                raise SoftPromptError(
                    f"row {seen}: the assistant's last message takes {answer} tokens, max_length={max_length} has no room for it and one token before; raise max_length or remove the row."
                )
            cut += len(ids) > max_length
            columns["input_ids"].append(ids[-max_length:])
            columns["attention_mask"].append([1] * len(columns["input_ids"][-1]))
            columns["labels"].append(labels[-max_length:])
            seen += 1
        return columns

    encoded = encode_in_batches(dataset, encode)
    announce_cut(cut, len(dataset), "conversations (on their left)", max_length)
    return encoded


def _encoded(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str, eos: int
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and their labels."""
    text, spans = _said(tokenizer, messages, where)
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(whole["input_ids"]), whole["offset_mapping"]
    labels = [IGNORED] * len(ids)
    for begin, stop in spans:
        read = tokenizer(text[:begin], add_special_tokens=False, verbose=False)["input_ids"]
        if ids[: len(read)] != read:
            raise SoftPromptError(
                f"{where}: the tokenizer joins the end of what stands before an answer ({text[max(0, begin - 12) : begin]!r}) with the answer's beginning, so a prediction would read other tokens than training; end the chat template's generation prompt without a blank, and begin no answer with one."
            )
        for i in range(len(read), len(ids)):
            if offsets[i][1] <= stop:
                labels[i] = ids[i]
    ending = [ids[i] for i, (start, end) in enumerate(offsets) if labels[i] != IGNORED and text[start:end].strip()]
    if ending[-1:] != [eos]:  # the template does not end a turn so, and a completion could not end
        ids, labels = [*ids, eos], [*labels, eos]
    return ids, labels


def wanted_answer(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> tuple[str, str]:
    """What a model reads of a conversation that ends with the assistant's message, and the text that it should write behind that.

    The text is all that the template writes there: some put more into a turn than its content.
    """
    text, spans = _said(tokenizer, messages, where)
    begin, stop = spans[-1]
    return text[:begin], text[begin:stop]


def _said(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and where in it the assistant speaks."""
    text = render(tokenizer, messages, where, answer=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:i], where, answer=True)
        after = render(tokenizer, messages[: i + 1], where, answer=False)
        if not (text.startswith(after) and after.startswith(before)):
            raise SoftPromptError(
                f"{where}: the chat template renders the beginning of a conversation otherwise when more follows, so what the assistant says cannot be found; split the conversation into rows that end with one message of the assistant."
            )
        spans.append((len(before), len(after)))
    return text, spans
