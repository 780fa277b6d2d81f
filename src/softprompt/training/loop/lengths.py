"""Batches of rows of about one length: what they save, and an order that a resumed run finds again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

from ...data import PAD_TO

WORTH = 0.1  # of all positions that random batches compute; below it grouping is not worth a less random order


def padding_shares(lengths: Sequence[int], batch_size: int, seed: int) -> tuple[float, float]:
    """The share of padding among the positions of an epoch's batches, in random order and grouped by length."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randperm(len(lengths), generator=generator).tolist()
    grouped = get_length_grouped_indices(lengths, batch_size, generator=generator)
    real = sum(lengths)

    def share(order: Sequence[int]) -> float:
        batches = [[lengths[i] for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
        return 1 - real / sum(-(-max(batch) // PAD_TO) * PAD_TO * len(batch) for batch in batches)

    return share(random), share(grouped)


def positions_saved(shares: tuple[float, float]) -> float:
    """The share of the positions of random batches that grouped ones do not compute."""
    random, grouped = shares
    return 1 - (1 - random) / (1 - grouped)


class EpochLengthSampler(LengthGroupedSampler):
    """transformers' sampler, in an order that seed and epoch alone decide.

    The original draws from torch's global generator, so a run that goes on inside an epoch would draw another order, and see
    some rows twice and others never.

    Args:
        like: the sampler that this one replaces.
        seed: of the order.
        epoch: tells the number of the current epoch.
    """

    def __init__(self, like: LengthGroupedSampler, seed: int, epoch: Callable[[], int]):
        super().__init__(like.batch_size, lengths=like.lengths)
        self.seed, self.epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        yield from get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
