"""How well a trained model knows held-out text, beside n-grams of the whole corpus, at the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from softprompt._types import IGNORED

from .corpus import Blocks, Tokens
from .ngrams import NGrams

ORDERS = (1, 5)
ROWS = 32


def judge(config: dict[str, Any], output: Path, tokens: Tokens, collate: Any, frame: tuple[int, int]) -> dict[str, Any]:
    """Perplexities ``exp(mean nats)`` at the tokens of held-out blocks that the model is asked for, and how many these are.

    A masked model is asked for the tokens that were chosen to be hidden, of which a tenth stays visible, and sees both sides; n-grams are
    asked for the same tokens and see what stands before them, beyond the edge of a block, too. n-grams count all training text in its own
    proportions, the model has seen a part of it, by its mixture.
    """
    blocks = Blocks(tokens.validation, config["length"], *frame, collate.tokenizer.all_special_ids, config["seed"])
    rows = [blocks[i] for i in range(len(blocks))]
    loader: Any = AutoModelForMaskedLM if config["kind"] == "masked" else AutoModelForCausalLM
    model = loader.from_pretrained(output / "model", dtype=torch.float32).eval()
    asked = np.zeros(len(tokens.validation), bool)
    nats = 0.0
    for at in range(0, len(rows), ROWS):
        batch = collate(rows[at : at + ROWS])
        if config["kind"] == "causal":
            batch["labels"] = batch["labels"].clone()
            batch["labels"][:, -1] = IGNORED  # the separator that ends every block is none of the text
        nats += _nats(model, batch)
        for row, label in zip(rows[at : at + ROWS], batch["labels"], strict=True):
            inside = np.flatnonzero((label != IGNORED).numpy()) - 1
            asked[row["number"] * blocks.inner + inside[inside >= 0]] = True
    count = int(asked.sum())
    found = {config["kind"]: float(np.exp(nats / count))}
    for order in ORDERS:
        grams = NGrams(tokens.train, model.config.vocab_size, order)
        found[f"{order}-gram"] = float(np.exp(-grams.log_probabilities(np.asarray(tokens.validation))[asked].mean()))
    return {"tokens": count, "perplexity": found}


@torch.no_grad()
def _nats(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    """The sum over the labels of a batch: the tokens at their own places, or in a causal model the next ones."""
    logits, labels = model(input_ids=batch["input_ids"]).logits, batch["labels"]
    if model.config.is_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    ).item()
