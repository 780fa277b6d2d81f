"""A token that marks in texts where a prompt stands."""

from __future__ import annotations

import re
from collections.abc import Mapping

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .._types import SoftPromptError
from ..data import SECOND

SPARE = re.compile(r"unused|reserved|extra_id", re.IGNORECASE)  # tokens that vocabularies keep free are called so


def know_marker(tokenizer: PreTrainedTokenizerBase, marker: str) -> int:
    """Let the tokenizer read ``marker`` in a text as one token, which its vocabulary has already; returns the token's id.

    Raises:
        SoftPromptError: there is no such token.
    """
    vocabulary = tokenizer.get_vocab()
    if marker not in vocabulary:
        spare = sorted((token for token in vocabulary if SPARE.search(token)), key=vocabulary.__getitem__)
        free = f"such as {', '.join(map(repr, spare[:3]))}" if spare else "one that no text needs"
        raise SoftPromptError(
            f"marker={marker!r}: expected a token that the tokenizer has, {free}; a new one would have no trained embedding."
        )
    tokenizer.add_special_tokens({"extra_special_tokens": [marker]}, replace_extra_special_tokens=False)
    return vocabulary[marker]


def check_marked(encoded: Mapping[str, Dataset], marker: int, name: str) -> None:
    """Refuse rows whose tokens, after they were cut to length, have no marker.

    Args:
        encoded: split -> its encoded rows.
        marker: the token's id.
        name: the token.

    Raises:
        SoftPromptError: there are some.
    """
    for split, rows in encoded.items():
        for column in ("input_ids", f"{SECOND}input_ids"):
            ids = rows[column] if column in rows.column_names else []
            if lacking := [number for number, row in enumerate(ids, 1) if marker not in row]:
                raise SoftPromptError(
                    f"marker={name!r}: {len(lacking)} of {len(rows)} rows of {split} do not have it (the first is row {lacking[0]}); write it into each text where the prompt belongs, and see that max_length does not cut it off."
                )
