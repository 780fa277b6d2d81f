"""What each of two processes does for the test of the layer search."""

from __future__ import annotations

import math

import torch

from house.batches import encoded, four_rows
from house.families import BERT
from house.models import gated, prompt_of
from softprompt import LayerSearch, NonFiniteError, SearchCallback


def two_steps(search, inputs):
    return [search.search_step(inputs) for _ in range(2)]


def in_one_of_two(rank, folder):
    """In a process of several: two steps on this process's half, one on a loss that is NaN in one of them."""
    model, inputs = gated(BERT, "seq_cls"), four_rows()
    search = LayerSearch(model)
    half = {key: value[2 * rank : 2 * rank + 2] for key, value in inputs.items()}
    losses = two_steps(search, half)
    callback = SearchCallback(search, encoded(*range(12)), lambda picked: picked, folder)
    taken = [[row["input_ids"][0] for row in callback.batch(step, 3)] for step in range(2)]
    found = {"losses": losses, "alpha": search.logits.tolist(), "taken": taken}
    if rank:
        torch.nn.init.constant_(prompt_of(model).embedding, math.nan)
    try:
        search.search_step(half)
    except NonFiniteError:
        found["stopped"] = search.logits.tolist()
    return found
