"""What the search of layers costs, and what a sparse prompt saves.

    python benchmarks/layers.py                     # tables, then one line of JSON
    python benchmarks/layers.py --write             # also results/benchmarks/layers.json
    python benchmarks/layers.py --rounds 2 --small  # a smoke run

One process, the same tensors; every contender runs once a round, in random order, and a ratio is of one round. Memory is
the bytes that autograd keeps for the backward pass.
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
from peft import get_peft_model

import softprompt
from softprompt.results import environment, write_json

RESULT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "layers.json"
P, KEPT = 10, 3


def encoder(small: bool) -> tf.PreTrainedModel:
    """BERT-like classifier: 6 layers, H = 384; without dropout, as ``softprompt train`` has it by default."""
    size = dict(hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=128, vocab_size=500)
    full = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=30522)
    no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    return tf.BertForSequenceClassification(tf.BertConfig(**(size if small else full), **no_dropout, num_labels=4))


def make(
    config: Any, small: bool, batch: dict[str, torch.Tensor], search: bool = False, cached: bool = False
) -> Callable[[], None]:
    """One training step; with ``search`` also the step of the gates, with ``cached`` the states below the prompt are given."""
    model = get_peft_model(encoder(small), config).train()
    if cached:
        batch = {**batch, "below": model.base_model.state.states_below(batch)}
    layer_search = softprompt.LayerSearch(model) if search else None
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if layer_search is not None:
            layer_search.search_step(batch)

    return step


def kept_bytes(step: Callable[[], None]) -> int:
    """Bytes that one step keeps for its backward pass; parameters, which are there anyway, are not counted."""
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return total


def rounds_of(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    for step in steps.values():
        step()  # warm-up
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            started = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="toy sizes, for a smoke run")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    tf.logging.set_verbosity_error()
    small, tokens = arguments.small, 16 if arguments.small else 64
    ids = torch.randint(5, 500, (16, tokens), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(16) % 4}
    shape = {"task_type": "SEQ_CLS", "bottleneck": 8 if small else 64}

    lowest = {str(i): make(softprompt.spt(P, layers=[i], **shape), small, batch) for i in range(6)}
    cached = {
        f"cached {i}": make(softprompt.spt(P, layers=[i], **shape), small, batch, cached=True) for i in range(1, 6)
    }
    times = rounds_of(lowest | cached, arguments.rounds)
    times["cached 0"] = times["0"]  # nothing below it
    memory = {name: kept_bytes(step) for name, step in lowest.items()}
    saving = [
        {
            "lowest layer": int(name),
            "time": round(statistics.median(a / b for a, b in zip(times[name], times["0"], strict=True)), 3),
            "time with cached states": round(
                statistics.median(a / b for a, b in zip(times[f"cached {name}"], times["0"], strict=True)), 3
            ),
            "memory": round(memory[name] / memory["0"], 3),
        }
        for name in lowest
    ]

    steps = {
        "deep": make(softprompt.deep_prompts(P, task_type="SEQ_CLS"), small, batch),
        "search": make(softprompt.spt(P, **shape), small, batch, search=True),
        "sparse": make(softprompt.spt(P, layers=list(range(KEPT)), **shape), small, batch),
    }
    times = rounds_of(steps, arguments.rounds)
    # over the same epochs: the search on half of the rows, then the sparse prompt on all
    multiple = statistics.median(
        (search / 2 + sparse) / deep
        for search, sparse, deep in zip(times["search"], times["sparse"], times["deep"], strict=True)
    )
    print("| lowest layer | time | time with cached states | kept for backward |\n|---|---|---|---|")
    for row in saving:
        print(
            f"| {row['lowest layer']} | {row['time']:.2f} | {row['time with cached states']:.2f} | {row['memory']:.2f} |"
        )
    document = {
        "benchmark": "layers",
        "unit": "t / t(layer 0), bytes / bytes(layer 0); search and retraining / one training of deep prompts",
        "saving": saving,
        "search and retraining": round(multiple, 3),
        "search step": round(statistics.median(a / b for a, b in zip(times["search"], times["deep"], strict=True)), 3),
        "P": P,
        "B": 16,
        "S": tokens,
        "rounds": arguments.rounds,
        **environment(),
    }
    if arguments.write:
        write_json(RESULT, document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
