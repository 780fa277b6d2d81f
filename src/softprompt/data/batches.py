"""Batches of encoded rows: in their order, or rows of about one length together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from .encode import SECOND, collator

UNPROMPTED, BELOW = "unprompted", "below"  # states of a row, which the prompt's hooks take
Collate = Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]


def length_of(row: Mapping[str, Any]) -> int:
    """Tokens of a row; of the longer text, where two are apart."""
    return max(len(row["input_ids"]), len(row.get(f"{SECOND}input_ids", ())))


def lengths_of(rows: Dataset) -> list[int]:
    """`length_of` each row, by whole columns."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    if (second := f"{SECOND}input_ids") in rows.column_names:
        lengths = [max(length, len(ids)) for length, ids in zip(lengths, rows[second], strict=True)]
    return lengths


def by_length(rows: Dataset) -> Dataset:
    """The same rows, short ones first: a batch of rows of one length has little padding to compute."""
    return rows.select(np.argsort(lengths_of(rows), kind="stable"))


def batches(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, kind: str, size: int = 64
) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches in the order of the rows."""
    yield from DataLoader(rows, batch_size=size, collate_fn=collator(tokenizer, kind))


def batches_by_length(
    rows: Dataset,
    collate: Collate,
    device: torch.device,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """The numbers of rows of similar length, and their batch, until all rows were there once."""
    order = np.argsort(lengths_of(rows), kind="stable")
    numbers = rows.select_columns(number_columns(rows))
    for start in range(0, len(rows), batch_size):
        picked = order[start : start + batch_size]
        batch = collate(numbers.select(picked).to_list())
        yield picked, {key: value.to(device) for key, value in batch.items()}
        if progress is not None:
            progress(min(start + batch_size, len(rows)), len(rows))


def number_columns(rows: Dataset) -> list[str]:
    """The columns of numbers, which a model may take; not texts."""
    first = rows[0] if len(rows) else {}
    return sorted(
        name
        for name, value in first.items()
        if name not in (UNPROMPTED, BELOW)
        and all(isinstance(v, int | float) for v in (value if isinstance(value, list) else [value]))
    )
