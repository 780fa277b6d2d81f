"""Training step (forward, backward, AdamW) of soft prompts against PEFT's methods: time, memory, operations.

    python benchmarks/step.py                        # tables, then one line of JSON
    python benchmarks/step.py --write                # also results/speed/step.json
    python benchmarks/step.py --rounds 1 --small     # a smoke run
    python benchmarks/step.py --only llama           # a part of it; with --write the other cells of the file stay

One process, the same tensors, the same dtype. In each round every contender runs once, in random order; a ratio is
t(contender) / t(ours) of the same round, and the median over rounds is reported, so that other load on the machine hits
both sides. Above 1 means that ours is faster. Beside it stand the ratio of floating-point operations, which bounds what can
be gained, and the ratio of the bytes kept for the backward pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers as tf
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

import softprompt
from measure import BACKBONES, SPEED, TrainingStep, command_line, finish, kept_bytes, operations, ratio, rounds_of

OURS = "prompt_tuning"
ROWS_FULL = "prompt_tuning, every row with its prompt, all logits"
DEEP_ROWS = "deep_prompts, every row with its prompt"
TWO_PASSES = "infoprompt, two passes a step"  # as the paper's code does; ours reads the states from a data-set column
BY_HAND = "PEFT PromptTuning, labelled positions chosen by hand"
TASKS = {"encoder": "SEQ_CLS", "gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}
BATCH, TOKENS, LABELLED = 8, 64, 16


def settings() -> Iterator[tuple[str, int, int | None]]:
    """Backbone, P, and how many last positions carry a label (None: all, or a class per row)."""
    for backbone in BACKBONES:
        for labelled in (None,) if backbone == "encoder" else (None, LABELLED):
            for length in (20, 100):
                yield backbone, length, labelled


def contenders(backbone: str, length: int, labelled: int | None) -> dict[str, Callable[[], Any]]:
    """Config builders by name, all with P = ``length`` where they have one; ours first."""
    task = {"task_type": TASKS[backbone]}
    low_rank = softprompt.equal_budget(length, 384, TOKENS)
    lora = {"fan_in_fan_out": True} if backbone == "gpt2" else {}
    builders: dict[str, Callable[[], Any]] = {
        OURS: lambda: softprompt.prompt_tuning(length, **task),
        "deep_prompts": lambda: softprompt.deep_prompts(length, **task),
        "dept": lambda: softprompt.dept(*low_rank, TOKENS, **task),
        "ept": lambda: softprompt.ept(*low_rank, TOKENS, **task),
        "spt": lambda: softprompt.spt(length, layers=[0, 1], bottleneck=64, **task),
        "infoprompt": lambda: softprompt.infoprompt(length, **task),
        "tsloss": lambda: softprompt.tsloss(length, **task),
        "prompt_tuning with exact persistence": lambda: softprompt.prompt_tuning(
            length, objectives=[softprompt.objective("persistence")], **task
        ),
        TWO_PASSES: lambda: softprompt.infoprompt(length, **task),
        "PEFT PromptTuning": lambda: PromptTuningConfig(num_virtual_tokens=length, **task),
        "PEFT PrefixTuning": lambda: PrefixTuningConfig(num_virtual_tokens=length, **task),
        "PEFT P-tuning": lambda: PromptEncoderConfig(num_virtual_tokens=length, **task),
        "PEFT LoRA r=8": lambda: LoraConfig(r=8, **lora, **task),
    }
    slow = {"shared_prefix": False, "label_only_logits": False}
    builders[DEEP_ROWS] = lambda: softprompt.deep_prompts(length, **slow, **task)
    if task["task_type"] != "SEQ_CLS":
        builders[ROWS_FULL] = lambda: softprompt.prompt_tuning(length, **slow, **task)
    if labelled is not None:
        builders = {name: build for name, build in builders.items() if name not in (TWO_PASSES,)}
        if task["task_type"] == "CAUSAL_LM":
            builders[BY_HAND] = builders["PEFT PromptTuning"]
    return builders


def batch_for(name: str, backbone: str, length: int, labelled: int | None, small: bool) -> dict[str, torch.Tensor]:
    """The same rows for every contender, and what one of them needs beside these."""
    tokens = TOKENS // 4 if small else TOKENS
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 500, (BATCH, tokens), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if backbone == "encoder":
        labels = torch.arange(BATCH) % 4
    else:
        labels = ids.clone()
        labels[:, : 0 if labelled is None else tokens - tokens * labelled // TOKENS] = -100
    if name == "infoprompt":
        width = BACKBONES[backbone](small).config.hidden_size
        batch["unprompted"] = torch.randn(BATCH, width, generator=generator)
    if name == BY_HAND:  # the last labelled positions predict nothing, those before the first do
        count = int((labels[0] != -100).sum())
        batch["logits_to_keep"] = torch.arange(length + tokens - count - 1, length + tokens - 1)
        batch["shift_labels"] = labels[:, -count:].contiguous()
    return {**batch, "labels": labels}


def measure(backbone: str, length: int, labelled: int | None, rounds: int, small: bool) -> dict[str, Any]:
    steps = {
        name: TrainingStep(BACKBONES[backbone](small), config(), batch_for(name, backbone, length, labelled, small))
        for name, config in contenders(backbone, length, labelled).items()
    }
    times = rounds_of(steps, rounds)
    work = {name: operations(step) for name, step in steps.items()}
    memory = {name: kept_bytes(step) for name, step in steps.items()}
    return {
        "backbone": backbone,
        "P": length,
        "B": BATCH,
        "S": TOKENS // 4 if small else TOKENS,
        "labelled": labelled if labelled is None or not small else labelled // 4,
        "rounds": rounds,
        "time": {name: ratio(times, name, OURS) for name in steps},
        "operations": {name: round(work[name] / work[OURS], 3) for name in steps},
        "memory": {name: round(memory[name] / memory[OURS], 3) for name in steps},
    }


def title(cell: dict[str, Any]) -> str:
    labels = "" if cell["labelled"] is None else f", {cell['labelled']} of {cell['S']} labelled"
    return f"{cell['backbone']}, P = {cell['P']}{labels}"


def table(cells: list[dict[str, Any]]) -> str:
    """Write one line per contender: time ratio (operations ratio; memory ratio) for each cell."""
    names = list(dict.fromkeys(name for cell in cells for name in cell["time"]))
    lines = ["| |" + "".join(f" {title(cell)} |" for cell in cells), "|---|" + "---|" * len(cells)]
    for name in names:
        shown = [
            f" {cell['time'][name]:.2f} ({cell['operations'][name]:.2f}; {cell['memory'][name]:.2f}) |"
            if name in cell["time"]
            else " - |"
            for cell in cells
        ]
        lines.append(f"| {name} |" + "".join(shown))
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", help="substring of a cell's title, to run a part")
    arguments = parser.parse_args()
    tf.logging.set_verbosity_error()
    cells = []
    for backbone, length, labelled in settings():
        named = title({"backbone": backbone, "P": length, "labelled": labelled, "S": TOKENS})
        if arguments.only and arguments.only not in named:
            continue
        cells.append(measure(backbone, length, labelled, arguments.rounds, arguments.small))
        print(table(cells[-1:]), flush=True)
    document = {
        "benchmark": "step",
        "unit": "contender / prompt_tuning: seconds, floating-point operations, bytes kept for the backward pass",
        "dtype": "float32",
        "cells": cells,
    }
    if arguments.write:
        path = SPEED / "step.json"
        before = json.loads(path.read_text(encoding="utf-8")) if arguments.only and path.is_file() else {"cells": []}
        cells_by_title = {title(cell): cell for cell in [*before["cells"], *cells]}
        order = [title({"backbone": b, "P": p, "labelled": n, "S": TOKENS}) for b, p, n in settings()]
        document["cells"] = sorted(cells_by_title.values(), key=lambda cell: order.index(title(cell)))
    finish(document, arguments.write)


if __name__ == "__main__":
    main()
