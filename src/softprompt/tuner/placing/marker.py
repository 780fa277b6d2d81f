"""A prompt at a marker: it stands in front of the first token with a given id, inside the text.

A chat server renders a template around what it is given, so a prompt that it serves stands in a turn, and not in front of the
conversation. It must be trained there, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..._types import SoftPromptError

AHEAD = "tokens_ahead_of_prompt"  # on a cache


def tokens_ahead(marker: int | None, ids: Tensor | None, mask: Tensor) -> Tensor:
    """How many tokens [B, 1], from the first real one on, stand in front of the first ``marker`` among ``ids`` [B, S].

    Args:
        marker: a token's id; None counts 0.
        mask: [B, S], which is not 0 at real tokens.

    Raises:
        SoftPromptError: no ids, an input without marker, or masked tokens in front of one.
    """
    if marker is None:
        return mask.new_zeros(len(mask), 1, dtype=torch.long)
    if ids is None:
        raise SoftPromptError(
            f"the prompt stands at a marker, token {marker}, and the call gives embeddings: expected input_ids, among which it can be found."
        )
    real = mask != 0
    found = (ids == marker) & real
    if bool((missing := ~found.any(1)).any()):
        rows = missing.nonzero().flatten().tolist()
        raise SoftPromptError(
            f"the prompt stands at a marker, token {marker}, and {len(rows)} of {len(ids)} inputs have none (the first is input {rows[0]} of the batch): write it into each text where the prompt belongs, and see that max_length does not cut it off."
        )
    first, place = real.int().argmax(1, keepdim=True), found.int().argmax(1, keepdim=True)
    ahead = place - first
    counted = real.cumsum(1).gather(1, place) - 1
    if bool((counted != ahead).any()):
        raise SoftPromptError(
            "attention_mask is 0 between the first token and the marker of an input: expected padding at its ends alone."
        )
    return ahead


def note_start(output: Any, start: Tensor) -> None:
    """Write on the cache in a stack's output, tuple or not, where the prompts stand; steps of decoding do not see the marker."""
    for part in output if isinstance(output, tuple) else output.values():
        if isinstance(part, Cache):
            setattr(part, AHEAD, start)


def start_in(cache: Any, rows: int) -> Tensor:
    """How many tokens [B, 1] stand in front of the prompts that a cache of ``rows`` inputs holds.

    Raises:
        SoftPromptError: the cache was filled without a prompt at a marker, or with another number of inputs.
    """
    if (start := getattr(cache, AHEAD, None)) is None:
        raise SoftPromptError(
            "the prompt stands at a marker, and the KV cache was filled without it: expected the cache of a call with this adapter; start with a fresh one."
        )
    if len(start) != rows:
        raise SoftPromptError(
            f"the prompt stands at a marker, and the KV cache was filled by {len(start)} inputs and goes on with {rows}: expected as many; start with a fresh one."
        )
    return start
