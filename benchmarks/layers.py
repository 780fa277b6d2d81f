"""What the search of layers costs, and what a sparse prompt saves.

    python benchmarks/layers.py                     # tables, then one line of JSON
    python benchmarks/layers.py --write             # also results/speed/layers.json
    python benchmarks/layers.py --rounds 2 --small  # a smoke run

One process, the same tensors; every contender runs once a round, in random order, and a ratio is of one round. Memory is
the bytes that autograd keeps for the backward pass.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
import transformers as tf

import softprompt
from measure import TrainingStep, command_line, encoder, finish, kept_bytes, ratio, rounds_of

P, KEPT = 10, 3


class SearchStep(TrainingStep):
    """A training step and the step of the gates after it."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.search = softprompt.LayerSearch(self.model)

    def __call__(self) -> None:
        super().__call__()
        self.search.search_step(self.batch)


class CachedStep(TrainingStep):
    """A training step that is given the states below the prompt."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.batch = {**self.batch, "below": softprompt.prompts_of(self.model).states_below(self.batch)}


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    tf.logging.set_verbosity_error()
    small, tokens = arguments.small, 16 if arguments.small else 64
    ids = torch.randint(5, 500, (16, tokens), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(16) % 4}
    shape = {"task_type": "SEQ_CLS", "bottleneck": 8 if small else 64}

    lowest = {str(i): TrainingStep(encoder(small), softprompt.spt(P, layers=[i], **shape), batch) for i in range(6)}
    cached = {
        f"cached {i}": CachedStep(encoder(small), softprompt.spt(P, layers=[i], **shape), batch) for i in range(1, 6)
    }
    times = rounds_of(lowest | cached, arguments.rounds)
    times["cached 0"] = times["0"]  # nothing below it
    memory = {name: kept_bytes(step) for name, step in lowest.items()}
    saving = [
        {
            "lowest layer": int(name),
            "time": ratio(times, name, "0"),
            "time with cached states": ratio(times, f"cached {name}", "0"),
            "memory": round(memory[name] / memory["0"], 3),
        }
        for name in lowest
    ]

    steps = {
        "deep": TrainingStep(encoder(small), softprompt.deep_prompts(P, task_type="SEQ_CLS"), batch),
        "search": SearchStep(encoder(small), softprompt.spt(P, **shape), batch),
        "sparse": TrainingStep(encoder(small), softprompt.spt(P, layers=list(range(KEPT)), **shape), batch),
    }
    times = rounds_of(steps, arguments.rounds)
    # over the same epochs: the search on half of the rows, then the sparse prompt on all
    multiple = statistics.median(
        (search / 2 + sparse) / deep
        for search, sparse, deep in zip(times["search"], times["sparse"], times["deep"], strict=True)
    )
    print("| lowest layer | time | time with cached states | kept for backward |\n|---|---|---|---|")
    for line in saving:
        print(
            f"| {line['lowest layer']} | {line['time']:.2f} | {line['time with cached states']:.2f} | {line['memory']:.2f} |"
        )
    document = {
        "benchmark": "layers",
        "unit": "t / t(layer 0), bytes / bytes(layer 0); search and retraining / one training of deep prompts",
        "saving": saving,
        "search and retraining": round(multiple, 3),
        "search step": ratio(times, "search", "deep"),
        "P": P,
        "B": 16,
        "S": tokens,
        "rounds": arguments.rounds,
    }
    finish(document, arguments.write)


if __name__ == "__main__":
    main()
