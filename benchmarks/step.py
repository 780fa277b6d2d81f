"""Training step (forward, backward, AdamW) of soft prompts against PEFT's methods.

    python benchmarks/step.py                # table, then one line of JSON
    python benchmarks/step.py --write        # also results/benchmarks/step.json
    python benchmarks/step.py --rounds 3 --small    # a smoke run

One process, the same tensors, the same dtype. In each round every contender runs once, in random order; a ratio is
t(contender) / t(ours) of the same round, and the median over rounds is reported, so that other load on the machine hits
both sides. Above 1 means that ours is faster.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

import softprompt
from softprompt.results import environment, write_json

RESULT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "step.json"
OURS = "softprompt prompt_tuning"
TWO_PASSES = "infoprompt, two passes a step"  # as the paper's code does; ours reads the states from a data-set column


def decoder(small: bool) -> tf.PreTrainedModel:
    """GPT-2-like: 6 layers, H = 384, V = 50,257."""
    size = (
        dict(n_embd=64, n_layer=2, n_head=4, vocab_size=500)
        if small
        else dict(n_embd=384, n_layer=6, n_head=6, vocab_size=50257)
    )
    torch.manual_seed(0)
    return tf.GPT2LMHeadModel(tf.GPT2Config(**size, n_positions=512, bos_token_id=0, eos_token_id=0, pad_token_id=0))


def encoder(small: bool) -> tf.PreTrainedModel:
    """BERT-like classifier: 6 layers, H = 384."""
    size = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=500)
    full = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=30522)
    torch.manual_seed(0)
    return tf.BertForSequenceClassification(tf.BertConfig(**(size if small else full), num_labels=4))


def contenders(task: str, length: int) -> dict[str, Callable[[], Any]]:
    """Config builders by name, all with P = ``length`` where they have one; ours first."""
    return {
        OURS: lambda: softprompt.prompt_tuning(length, task_type=task),
        "softprompt deep_prompts": lambda: softprompt.deep_prompts(length, task_type=task),
        "softprompt dept": lambda: softprompt.dept(*softprompt.equal_budget(length, 384, 64), 64, task_type=task),
        "softprompt ept": lambda: softprompt.ept(*softprompt.equal_budget(length, 384, 64), 64, task_type=task),
        "softprompt spt": lambda: softprompt.spt(length, layers=[0, 1], bottleneck=64, task_type=task),
        "softprompt infoprompt": lambda: softprompt.infoprompt(length, task_type=task),
        TWO_PASSES: lambda: softprompt.infoprompt(length, task_type=task),
        "softprompt tsloss": lambda: softprompt.tsloss(length, task_type=task),
        "prompt_tuning with exact persistence": lambda: softprompt.prompt_tuning(
            length, task_type=task, objectives=[softprompt.objective("persistence")]
        ),
        "PEFT PromptTuning": lambda: PromptTuningConfig(task_type=task, num_virtual_tokens=length),
        "PEFT PrefixTuning": lambda: PrefixTuningConfig(task_type=task, num_virtual_tokens=length),
        "PEFT LoRA r=8": lambda: LoraConfig(task_type=task, r=8, fan_in_fan_out=task == "CAUSAL_LM"),
    }


def make_step(model: tf.PreTrainedModel, config: Any, batch: dict[str, torch.Tensor]) -> Callable[[], float]:
    tuned = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], 1e-3)

    def step() -> float:
        started = time.perf_counter()
        loss = tuned(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return step


def measure(kind: str, length: int, rounds: int, small: bool) -> dict[str, Any]:
    batch_size, tokens = 8, 16 if small else 64
    build = decoder if kind == "decoder" else encoder
    vocabulary = 500
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocabulary, (batch_size, tokens), generator=generator)
    labels = ids if kind == "decoder" else torch.randint(4, (batch_size,), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    task = "CAUSAL_LM" if kind == "decoder" else "SEQ_CLS"
    width = build(small).config.hidden_size
    states = torch.randn(batch_size, width, generator=generator)
    steps = {
        name: make_step(
            build(small), config(), {**batch, "unprompted": states} if name == "softprompt infoprompt" else batch
        )
        for name, config in contenders(task, length).items()
    }
    for step in steps.values():
        step()  # warm-up
    times: dict[str, list[float]] = {name: [] for name in steps}
    shuffle = random.Random(0).shuffle
    order = list(steps)
    for _ in range(rounds):
        shuffle(order)  # a step pays for the memory that a smaller one before it gave back
        for name in order:
            times[name].append(steps[name]())
    ratios = {
        name: statistics.median(t / ours for t, ours in zip(times[name], times[OURS], strict=True)) for name in steps
    }
    return {
        "backbone": kind,
        "P": length,
        "B": batch_size,
        "S": tokens,
        "rounds": rounds,
        "ratios": {k: round(v, 3) for k, v in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="toy sizes, for a smoke run")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    tf.logging.set_verbosity_error()
    cells = [
        measure(kind, length, arguments.rounds, arguments.small)
        for kind in ("encoder", "decoder")
        for length in (20, 100)
    ]
    names = list(cells[0]["ratios"])
    print("| backbone | P |" + "".join(f" {name} |" for name in names))
    print("|---|---|" + "---|" * len(names))
    for cell in cells:
        print(f"| {cell['backbone']} | {cell['P']} |" + "".join(f" {cell['ratios'][name]:.2f} |" for name in names))
    document = {
        "benchmark": "step",
        "unit": "t(contender) / t(softprompt prompt_tuning)",
        "dtype": "float32",
        "cells": cells,
        **environment(),
    }
    if arguments.write:
        write_json(RESULT, document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
