"""Batches and data sets made of random ids."""

from __future__ import annotations

import datasets
import torch
from datasets import Dataset
from torch import Tensor

from house.families import batch, tokens, with_decoder


def table(**columns):
    return datasets.Dataset.from_dict(columns)


def training_batch(family, head, lengths=(9, 5), side="right", seed=0):
    """A training batch; a causal language model's labels start behind a source of three tokens."""
    inputs = batch(tokens(*lengths, seed=seed), side)
    ids, real = inputs["input_ids"], inputs["attention_mask"] != 0
    if head == "seq_cls":
        labels = torch.arange(len(ids)) % 3
    elif head == "seq2seq_lm":
        labels = torch.stack(tokens(*[6] * len(ids), seed=1))
    elif head == "token_cls":
        labels = (ids % 3).masked_fill(~real, -100)
    else:
        labels = ids.masked_fill(~real | (real.cumsum(1) <= 3 if head == "causal_lm" else ~real), -100)
    return {**inputs, "labels": labels}


def encoded_rows(head, *lengths):
    """Encoded rows, and what makes batches of them."""
    made = []
    for i, ids in enumerate(tokens(*lengths, seed=4)):
        ids = ids.tolist()
        labels = [-100] * 3 + ids[3:] if head == "causal_lm" else i % 3
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return Dataset.from_list(made)


def collate(rows):
    made = batch([torch.tensor(row["input_ids"]) for row in rows])
    longest = made["input_ids"].shape[1]
    labels = [row["labels"] for row in rows]
    if isinstance(labels[0], list):
        labels = [row + [-100] * (longest - len(row)) for row in labels]
    made["labels"] = torch.tensor(labels)
    if "unprompted" in rows[0]:
        made["unprompted"] = torch.tensor([row["unprompted"] for row in rows])
    return made


def inputs_for(family, head, *lengths, side=None):
    side = side or ("left" if family.kind == "decoder" else "right")
    return with_decoder(family, head, batch(tokens(*lengths), side))


def encoded(*labels):
    return Dataset.from_dict({"input_ids": [[i] for i in range(len(labels))], "labels": list(labels)})


def four_rows():
    return {**batch(tokens(9, 9, 9, 9)), "labels": torch.tensor([0, 2, 1, 1])}


def tagged(tokens: list[list[str]], tags: list[list[int]]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"tokens": tokens, "tags": tags})


SEQ2SEQ_LABELS = torch.stack(tokens(6, 6, seed=1))


def training_inputs(family, head):
    inputs = batch(tokens(9, 5))
    if head == "seq_cls":
        return {**inputs, "labels": torch.tensor([0, 2])}
    if head == "seq2seq_lm":
        return {**inputs, "labels": SEQ2SEQ_LABELS}
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    if head == "causal_lm":
        labels[:, :3] = -100  # a source, which is what a generated prompt may read
    return {**inputs, "labels": labels}


def with_labels(inputs: dict[str, Tensor], head: str = "causal_lm") -> dict[str, Tensor]:
    """Labels at every token but the first, which nothing predicts where padding stands in front of it."""
    if head == "seq_cls":
        return {**inputs, "labels": torch.arange(len(inputs["input_ids"])) % 3}
    mask = inputs["attention_mask"]
    scored = (mask != 0) & (mask.cumsum(1) > 1)
    return {**inputs, "labels": inputs["input_ids"].masked_fill(~scored, -100)}
