"""Encode rows as token ids, and collate token ids into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from .._types import IGNORED, SoftPromptError, Tally, announce, announce_counts, check_choice
from .columns import OF_TEXTS

KINDS = (*OF_TEXTS, "chat", "completion", "seq2seq", "tokens")
CUTS = ("end", "middle")  # what a longer text loses
LONGER = "longer than max_length="
HEAD_SHARE = 4  # of what is kept around a middle, one part in so many is from the head
PAD_TO = 8  # lengths that matrix kernels like
SECOND = "second_"  # prefix of the columns of a row's second text, where two are read apart


def encode_classification(
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    max_length: int,
    pairs: str | None = None,
    label: Callable[[Any], Any] = lambda value: value,
    cut: str = CUTS[0],
) -> Dataset:
    """Encode the columns text (and text_pair) and label as ``input_ids [N][<= max_length]``, attention_mask and labels [N].

    The tokenizer cuts longer inputs (of a pair, the longer text first), and their number is announced; with ``cut="middle"`` they keep
    a quarter of their tokens from the head and the rest from the tail. With ``pairs="apart"`` each text is an input of its own, and the second one's columns are called second_input_ids and so
    on. ``label`` makes of a row's label what the loss reads.

    Raises:
        SoftPromptError: a column is missing, max_length leaves no room for a token, or the middle is to be cut out of joined pairs.
    """
    check_choice("cut", cut, CUTS)
    apart, joined = pairs == "apart", "text_pair" in dataset.column_names and pairs != "apart"
    inputs = [["text"], ["text_pair"]] if apart else [["text", "text_pair"] if joined else ["text"]]
    needed = ("text", "text_pair", "label") if apart else ("text", "label")
    check_columns(dataset, needed, max_length, tokenizer.num_special_tokens_to_add(pair=joined))
    if joined and cut == "middle":
        raise SoftPromptError(
            "cut='middle' keeps head and tail of one text, and pairs='joined' puts two into one input; use pairs='apart' or cut='end'."
        )
    shortened = 0

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        nonlocal shortened
        columns: dict[str, list[Any]] = {}
        for prefix, names in zip(("", SECOND), inputs, strict=False):
            texts = tuple(batch[name] for name in names)
            if cut == "middle":
                encoded, count = _without_middle(tokenizer, texts[0], max_length)
            else:
                encoded = tokenizer(*texts, truncation=True, max_length=max_length)
                count = _count_truncated(tokenizer, texts, encoded["input_ids"], max_length)
            shortened += count
            columns |= {f"{prefix}{name}": values for name, values in encoded.items()}
        return {**columns, "labels": [label(value) for value in batch["label"]]}

    encoded = encode_in_batches(dataset, encode)
    what = "inputs" if cut == "end" else "inputs (in their middle)"
    announce_cut(shortened, len(dataset) * len(inputs), what, max_length)
    return encoded


def _without_middle(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int
) -> tuple[dict[str, list[list[int]]], int]:
    """Encoded texts of at most ``max_length`` tokens, special ones included, and how many lost their middle."""
    whole = tokenizer(texts, return_special_tokens_mask=True, verbose=False)
    special = whole.pop("special_tokens_mask")
    long = [i for i, ids in enumerate(whole["input_ids"]) if len(ids) > max_length]
    for i in long:
        own = [at for at, mark in enumerate(special[i]) if not mark]
        room = max_length - (len(special[i]) - len(own))
        head = (room + 3) // HEAD_SHARE
        gone = {*own[head : len(own) - (room - head)]}
        for columns in whole.values():
            columns[i] = [value for at, value in enumerate(columns[i]) if at not in gone]
    return dict(whole), len(long)


def encode_completion(tokenizer: PreTrainedTokenizerBase, dataset: Dataset, max_length: int) -> Dataset:
    """Encode the columns prompt and completion for a causal model.

    Labels are -100 on the prompt, then the completion and eos. The two texts are joined as they stand; no white space
    is added. Where they do not fit in max_length, the prompt loses tokens on its left (a beginning-of-text token
    stays), and the number of these rows is announced.

    Raises:
        SoftPromptError: a column or the tokenizer's eos token is missing, or a completion leaves no room for the
            prompt.
    """
    eos = end_of_text(tokenizer)
    check_columns(dataset, ("prompt", "completion"), max_length, 1)
    bos = beginning_of_text(tokenizer)
    cut = seen = 0
    glued = sum(
        not (prompt[-1:].isspace() or completion[:1].isspace())
        for prompt, completion in zip(dataset["prompt"], dataset["completion"], strict=True)
    )

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        nonlocal cut, seen
        columns: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
        prompts = tokenizer(batch["prompt"], add_special_tokens=False, verbose=False)["input_ids"]
        completions = tokenizer(batch["completion"], add_special_tokens=False, verbose=False)["input_ids"]
        for prompt, completion in zip(prompts, completions, strict=True):
            room = max_length - len(bos) - len(completion) - 1
            if room < 1:
                raise _completion_too_long(seen, len(completion) + 1, max_length, "and one token of the prompt")
            cut += len(prompt) > room
            prompt = bos + prompt[-room:]
            ids = [*prompt, *completion, eos]
            columns["input_ids"].append(ids)
            columns["attention_mask"].append([1] * len(ids))
            columns["labels"].append([IGNORED] * len(prompt) + ids[len(prompt) :])
            seen += 1
        return columns

    encoded = encode_in_batches(dataset, encode)
    announce_cut(cut, len(dataset), "prompts (on their left)", max_length)
    if glued:
        announce(
            f"{glued} of {len(dataset)} completions follow their prompt without white space",
            "prompt and completion are joined as they stand; "
            "end the prompt or begin the completion with one if it is meant",
        )
    return encoded


def encode_seq2seq(tokenizer: PreTrainedTokenizerBase, dataset: Dataset, max_length: int) -> Dataset:
    """Encode the columns prompt and completion for an encoder-decoder.

    The prompt becomes input_ids, the completion labels that end with eos. The tokenizer cuts longer prompts, and their
    number is announced.

    Raises:
        SoftPromptError: a column or the tokenizer's eos token is missing, or a completion is longer than max_length.
    """
    eos = end_of_text(tokenizer)
    check_columns(dataset, ("prompt", "completion"), max_length, tokenizer.num_special_tokens_to_add())
    cut = seen = 0

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        nonlocal cut, seen
        encoded = tokenizer(batch["prompt"], truncation=True, max_length=max_length)
        cut += _count_truncated(tokenizer, (batch["prompt"],), encoded["input_ids"], max_length)
        labels = tokenizer(text_target=batch["completion"], verbose=False)["input_ids"]
        labels = [ids if ids[-1:] == [eos] else [*ids, eos] for ids in labels]
        for ids in labels:
            if len(ids) > max_length:
                raise _completion_too_long(seen, len(ids), max_length, "tokens")
            seen += 1
        return {**encoded, "labels": labels}

    encoded = encode_in_batches(dataset, encode)
    announce_cut(cut, len(dataset), "prompts", max_length)
    return encoded


def encode_tokens(tokenizer: PreTrainedTokenizerBase, dataset: Dataset, max_length: int) -> Dataset:
    """Encode the columns tokens (words) and tags (indices).

    A word's tag is the label of its first token; all other labels are -100. Spaces join the words, and the tokenizer's
    offsets tell them apart again, so the backbone reads ordinary text, whether its tokenizer takes a space as part of a
    word or not. The tokenizer cuts longer rows. Their number is announced, and so is the number of words without a
    token.

    Raises:
        SoftPromptError: a column is missing, the tokenizer is slow, or max_length leaves no room for a token.
    """
    check_columns(dataset, ("tokens", "tags"), max_length, tokenizer.num_special_tokens_to_add())
    if not tokenizer.is_fast:
        raise SoftPromptError(
            f"{type(tokenizer).__name__} is a slow tokenizer; "
            "words are found by its offsets, which only fast ones give."
        )
    cut = words = labelled = 0

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        nonlocal cut, words, labelled
        texts = [" ".join(each) for each in batch["tokens"]]
        encoded = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")
        labels = [_first_tokens(*each) for each in zip(batch["tokens"], batch["tags"], offsets, strict=True)]
        cut += _count_truncated(tokenizer, (texts,), encoded["input_ids"], max_length)
        words += sum(map(len, batch["tokens"]))
        labelled += sum(label != IGNORED for each in labels for label in each)
        return {**encoded, "labels": labels}

    encoded = encode_in_batches(dataset, encode)
    announce_cut(cut, len(dataset), "rows", max_length)
    announce_counts(
        "{} of {} words have no token, so they are neither learned nor scored",
        (words - labelled, words),
        "they are cut off, or nothing that the tokenizer knows is in them",
    )
    return encoded


def collator(
    tokenizer: PreTrainedTokenizerBase, kind: str
) -> DataCollatorWithPadding | DataCollatorForSeq2Seq | DataCollatorForTokenClassification:
    """Return the transformers collator of ``kind``; it pads to a multiple of 8, and sequences of labels with -100.

    A tokenizer without a pad token takes its eos token as one (announced); padding is masked either way.

    Raises:
        SoftPromptError: the kind is unknown, or the tokenizer has neither a pad nor an eos token.
    """
    check_choice("kind", kind, KINDS)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SoftPromptError("the tokenizer has neither a pad nor an eos token; set tokenizer.pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
        announce(
            f"pad_token = {tokenizer.eos_token}", "the tokenizer has none; padding is masked, so any token will do"
        )
    if kind in OF_TEXTS:
        return TextCollator(tokenizer, pad_to_multiple_of=PAD_TO)
    if kind == "tokens":
        return DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=PAD_TO, label_pad_token_id=IGNORED)
    return DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=PAD_TO, label_pad_token_id=IGNORED)


def in_turn(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
    """Encoded rows as inputs, first and second in turn where a row's texts are read apart; and the row of each input."""
    inputs: list[dict[str, Any]] = []
    owners: list[int] = []
    for number, row in enumerate(rows):
        second = {name.removeprefix(SECOND): value for name, value in row.items() if name.startswith(SECOND)}
        texts = [{name: row[name] for name in second}, second] if second else [dict(row)]
        inputs += texts
        owners += [number] * len(texts)
    return inputs, owners


class TextCollator(DataCollatorWithPadding):
    """A collator of texts that also takes pairs read apart: B pairs become 2B inputs, first and second in turn."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        if f"{SECOND}input_ids" not in features[0]:
            return super().__call__(features)
        batch = super().__call__(in_turn(features)[0])
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([pair["labels"] for pair in features])
        return batch


class WithStates:
    """A collator that puts the states of each example's tokens beside its ids and pads them alike.

    Args:
        collate: makes a batch of examples, with an attention_mask.
        states: [S_i, H] of each row of the data set.
        column: holds the number of an example's row in ``states``, and in the batch the states [B, S, H], 0 at padding.
            Examples without the column become a batch without it.
    """

    def __init__(
        self, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]], states: Sequence[Tensor], column: str
    ):
        self.collate, self.states, self.column = collate, states, column

    def __call__(self, examples: list[dict[str, Any]]) -> Mapping[str, Any]:
        batch = self.collate([{name: value for name, value in one.items() if name != self.column} for one in examples])
        if self.column not in examples[0]:
            return batch
        picked = [self.states[one[self.column]] for one in examples]
        real = batch["attention_mask"] != 0
        padded = picked[0].new_zeros(*real.shape, picked[0].shape[1])
        padded[real] = torch.cat(picked)
        return {**batch, self.column: padded}


class WithAdapterNames:
    """A collator that hands the column ``adapter_names`` over: the adapter of each example, as a model takes them for a mixed batch.

    A Trainer keeps the column with ``remove_unused_columns=False``.

    Args:
        collate: makes a batch of examples; of two texts apart it makes two inputs of each example, which have the same adapter.
    """

    column = "adapter_names"

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]):
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> Mapping[str, Any]:
        if missing := [i for i, one in enumerate(examples) if not isinstance(one.get(self.column), str)]:
            raise SoftPromptError(
                f"expected the name of an adapter in column {self.column!r} of each row, got {examples[missing[0]].get(self.column)!r}."
            )
        batch = self.collate([{name: value for name, value in one.items() if name != self.column} for one in examples])
        times = len(batch["input_ids"]) // len(examples)
        return {**batch, self.column: [one[self.column] for one in examples for _ in range(times)]}


class FewRows:
    """Rows that are encoded as those of a `Dataset` are, without Arrow: for one row it would cost a hundred times its tokens."""

    def __init__(self, columns: dict[str, list[Any]]):
        self.columns = columns
        self.column_names = list(columns)

    @classmethod
    def from_dict(cls, columns: dict[str, list[Any]]) -> FewRows:
        return cls(columns)

    @classmethod
    def from_list(cls, rows: Sequence[Mapping[str, Any]]) -> FewRows:
        return cls({name: [row[name] for row in rows] for name in rows[0]})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def __getitem__(self, column: str) -> list[Any]:
        return self.columns[column]

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        yield self.columns

    def to_list(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]


def encode_in_batches(
    dataset: Dataset, encode: Callable[[Mapping[str, list[Any]]], Mapping[str, list[Any]]]
) -> Dataset:
    """Return the columns that ``encode`` makes of 1000 rows at a time, in memory; of `FewRows` these.

    It does not use `Dataset.map`, which at every call hashes the tokenizer for a cache on disk and draws a progress
    bar.
    """
    columns: dict[str, list[Any]] = {}
    for batch in dataset.iter(batch_size=1000):
        for name, values in encode(batch).items():
            columns.setdefault(name, []).extend(values)
    return type(dataset).from_dict(columns)


def check_columns(dataset: Dataset, columns: tuple[str, ...], max_length: int, specials: int) -> None:
    """Raise `SoftPromptError` where a column is missing, or ``max_length`` has no room beside so many special tokens."""
    missing = [name for name in columns if name not in dataset.column_names]
    if missing:
        raise SoftPromptError(
            f"expected a dataset with columns {', '.join(columns)}, got {', '.join(dataset.column_names)}."
        )
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length <= specials:
        raise SoftPromptError(
            f"max_length: expected a whole number above {specials} (the tokenizer's special tokens), "
            f"got {max_length!r}."
        )


def _first_tokens(words: Sequence[str], tags: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Labels of a row's tokens, whose ``offsets`` are those in the words joined by spaces."""
    owners = [owner for i, word in enumerate(words) for owner in (*[i] * len(word), -1)]  # -1: the space
    labels, last = [], -1
    for start, end in offsets:
        word = max(owners[start:end], default=-1)
        labels.append(tags[word] if word > last else IGNORED)
        last = max(last, word)
    return labels


def beginning_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts in front of every text; what some put behind it would end a prompt before its completion."""
    return [tokenizer.bos_token_id] if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else []


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a completion.

    Raises:
        SoftPromptError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise SoftPromptError("the tokenizer has no eos token, so a completion could not end; set tokenizer.eos_token.")
    return int(tokenizer.eos_token_id)


def _completion_too_long(row: int, length: int, max_length: int, of: str) -> SoftPromptError:
    return SoftPromptError(
        f"row {row}: the completion with eos takes {length} tokens, max_length={max_length} has no room for it {of}; "
        "raise max_length or remove the row."
    )


def _count_truncated(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[list[str], ...], ids: list[list[int]], max_length: int
) -> int:
    """How many of the encoded inputs were longer; only those that fill max_length need a second look."""
    full = [i for i, own in enumerate(ids) if len(own) == max_length]
    if not full:
        return 0
    again = tokenizer(*([column[i] for i in full] for column in texts), verbose=False)["input_ids"]
    return sum(len(own) > max_length for own in again)


def announce_cut(cut: int, total: int, what: str, max_length: int, they: str = "they") -> None:
    announce_counts(f"cut {{}} of {{}} {what}", (cut, total), f"{they} are {LONGER}{max_length} tokens")


def has_cut(tally: Tally) -> bool:
    """Whether a text was cut in the context of ``tally``."""
    return any(LONGER in reason for _, reason in tally.counted)
