"""Completions from a tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase


@torch.no_grad()
def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_length: int,
    max_new_tokens: int,
    batch_size: int = 16,
) -> list[str]:
    """Greedy completions of ``prompts``, in order; a prompt longer than ``max_length`` tokens loses its beginning."""
    encoder_decoder = bool(model.config.is_encoder_decoder)
    side, cut = tokenizer.padding_side, tokenizer.truncation_side
    tokenizer.padding_side, tokenizer.truncation_side = ("right" if encoder_decoder else "left"), "left"
    found: list[str] = []
    try:
        for i in range(0, len(prompts), batch_size):
            inputs = tokenizer(
                list(prompts[i : i + batch_size]),
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=max_length,
            )
            inputs = {
                key: value.to(model.device) for key, value in inputs.items() if key in ("input_ids", "attention_mask")
            }
            output = model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
            new = output if encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
            found += tokenizer.batch_decode(new, skip_special_tokens=True)
    finally:
        tokenizer.padding_side, tokenizer.truncation_side = side, cut
    return found


def exact_match(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, max_length: int) -> float:
    """Share of rows whose greedy completion equals the reference, up to white space at both ends."""
    wanted = [str(text).strip() for text in rows["completion"]]
    longest = max(len(ids) for ids in tokenizer(wanted, add_special_tokens=False)["input_ids"])
    training = model.training
    model.eval()
    got = complete(model, tokenizer, rows["prompt"], max_length, longest + 1)
    model.train(training)
    return sum(a.strip() == b for a, b in zip(got, wanted, strict=True)) / len(wanted)
