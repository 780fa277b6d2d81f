"""Serving: prefill with compiled prompts, and many prompts in one batch, against PEFT.

    python benchmarks/serve.py                        # a table, then one line of JSON
    python benchmarks/serve.py --write                # also results/speed/serve.json
    python benchmarks/serve.py --rounds 1 --small     # a smoke run

One process, the same tensors, float32, no gradient; in each round every contender runs once, in random order, and the median of
t(contender) / t(ours) of the same round is reported. Above 1 means that ours is faster. ``positions`` is what the ratio would be if a
position cost the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as tf
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model

import softprompt
from measure import command_line, encoder, finish, llama, ratio, rounds_of

Call = Callable[..., Any]


def batch(rows: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 500, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def stirred(model: PeftModel) -> PeftModel:
    """Off its start, so that no part of an adapter is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def cell(name: str, ours: str, calls: dict[str, Call], positions: dict[str, float], rounds: int) -> dict[str, Any]:
    """Ratios to ``ours``, after all that should agree has been seen to."""
    times = rounds_of(calls, rounds)
    return {
        "cell": name,
        "ours": ours,
        "time": {other: ratio(times, other, ours) for other in calls if other != ours},
        "positions": {k: round(v / positions[ours], 2) for k, v in positions.items() if k != ours},
    }


def agree(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def prefill(rounds: int, small: bool) -> dict[str, Any]:
    """The first pass of ``generate``: B rows of S tokens, the last token's logits, a cache that goes on."""
    length, tokens, rows = (10, 8, 4) if small else (100, 32, 8)
    made = stirred(get_peft_model(llama(small), softprompt.prompt_tuning(length, task_type="CAUSAL_LM")))
    compiled = stirred(get_peft_model(llama(small), softprompt.prompt_tuning(length, task_type="CAUSAL_LM")))
    theirs = stirred(get_peft_model(llama(small), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)))
    softprompt.compile(compiled)
    inputs, wanted = batch(rows, tokens), {"use_cache": True, "logits_to_keep": 1}
    calls: dict[str, Call] = {
        "compiled": lambda: compiled(**inputs, **wanted).logits,
        "prompt_tuning": lambda: made(**inputs, **wanted).logits,
        "PEFT PromptTuning": lambda: theirs(**inputs, **wanted).logits,
        "no prompt": lambda: theirs.get_base_model()(**inputs, **wanted).logits,
    }
    agree(calls["compiled"](), calls["prompt_tuning"]())
    every = rows * (length + tokens)
    positions = {"compiled": rows * tokens, "prompt_tuning": length + rows * tokens, "PEFT PromptTuning": every}
    return cell(f"prefill, P = {length}, {rows} rows of {tokens}", "compiled", calls, positions, rounds)


def mixed(rounds: int, small: bool) -> list[dict[str, Any]]:
    """Rows of many adapters, read once and written on: in one batch, batch after batch, and PEFT's LoRA."""
    length, tokens, count, each, new = (6, 8, 4, 2, 2) if small else (20, 32, 16, 2, 16)
    names = [f"a{i}" for i in range(count)]
    asked, inputs = [name for name in names for _ in range(each)], batch(count * each, tokens)
    model = get_peft_model(llama(small), softprompt.deep_prompts(length, task_type="CAUSAL_LM", init_seed=0), names[0])
    lora = get_peft_model(llama(small), LoraConfig(r=8, task_type="CAUSAL_LM"), names[0])
    for number, name in enumerate(names[1:], 1):
        model.add_adapter(name, softprompt.deep_prompts(length, task_type="CAUSAL_LM", init_seed=number))
        lora.add_adapter(name, LoraConfig(r=8, task_type="CAUSAL_LM"))
    model.eval()
    stirred(lora)
    for name in names:
        model.set_adapter(name)
        softprompt.compile(model, f"{name} compiled")
    fast = [f"{name} compiled" for name in asked]
    written = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def read(which: PeftModel, **more: Any) -> torch.Tensor:
        return which(**inputs, logits_to_keep=1, **more).logits

    def write(which: PeftModel, **more: Any) -> torch.Tensor:
        return which.generate(**inputs, **written, **more)

    def one_by_one(which: PeftModel, act: Call) -> torch.Tensor:
        made = []
        for number, name in enumerate(names):
            which.set_adapter(name)
            part = slice(number * each, (number + 1) * each)
            made.append(act(which, **{key: value[part] for key, value in inputs.items()}))
        return torch.cat(made)

    def read_some(which: PeftModel, **part: torch.Tensor) -> torch.Tensor:
        return which(**part, logits_to_keep=1).logits

    def write_some(which: PeftModel, **part: torch.Tensor) -> torch.Tensor:
        return which.generate(**part, **written)

    text, prompts = count * each * tokens, count * length
    positions = {"one batch, compiled": text, "one batch": text + prompts}
    positions["set_adapter, batch after batch"] = text + prompts
    cells = []
    for what, act, some in (("read", read, read_some), (f"read, {new} tokens written", write, write_some)):
        calls: dict[str, Call] = {
            "one batch, compiled": partial(act, model, adapter_names=fast),
            "one batch": partial(act, model, adapter_names=asked),
            "set_adapter, batch after batch": partial(one_by_one, model, some),
            "PEFT LoRA r=8, one batch": partial(act, lora, adapter_names=asked),
            "PEFT LoRA r=8, batch after batch": partial(one_by_one, lora, some),
        }
        agree(calls["one batch, compiled"](), calls["set_adapter, batch after batch"]())
        title = f"{count * each} rows of {tokens} over {count} adapters, P = {length}: {what}"
        cells.append(
            cell(title, "one batch, compiled", calls, positions if act is read else {"one batch, compiled": 1}, rounds)
        )
    return cells


def classify(rounds: int, small: bool) -> dict[str, Any]:
    """A deep prompt on an encoder, whose keys and values no text changes."""
    length, tokens, rows = (10, 8, 4) if small else (100, 64, 8)
    deep: dict[str, Any] = {"num_virtual_tokens": length, "task_type": "SEQ_CLS", "init_seed": 0}
    every = get_peft_model(encoder(small), softprompt.deep_prompts(**deep, shared_prefix=False)).eval()
    made = get_peft_model(encoder(small), softprompt.deep_prompts(**deep)).eval()
    compiled = softprompt.compile(get_peft_model(encoder(small), softprompt.deep_prompts(**deep)).eval())
    prefix = get_peft_model(encoder(small), PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=length)).eval()
    inputs = batch(rows, tokens)
    calls: dict[str, Call] = {
        "compiled": lambda: compiled(**inputs).logits,
        "deep_prompts": lambda: made(**inputs).logits,
        "deep_prompts, every row with its prompt": lambda: every(**inputs).logits,
        "PEFT PrefixTuning": lambda: prefix(**inputs).logits,
    }
    agree(calls["deep_prompts"](), calls["deep_prompts, every row with its prompt"]())
    text = rows * tokens
    positions = {
        "compiled": text,
        "deep_prompts": length + text,
        "deep_prompts, every row with its prompt": rows * length + text,
    }
    return cell(f"encoder, P = {length}, {rows} rows of {tokens}", "compiled", calls, positions, rounds)


def memory(small: bool) -> dict[str, int]:
    """Bytes that one more adapter costs on the Llama-like backbone."""

    def trained(config: Any) -> int:
        model = get_peft_model(llama(small), config)
        return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)

    length = 6 if small else 20
    deep = get_peft_model(llama(small), softprompt.deep_prompts(length, task_type="CAUSAL_LM"))
    prompt = softprompt.active_prompt(softprompt.compile(deep))[0]
    return {
        f"prompt_tuning, P = {length}": trained(softprompt.prompt_tuning(length, task_type="CAUSAL_LM")),
        f"deep_prompts, P = {length}": trained(softprompt.deep_prompts(length, task_type="CAUSAL_LM")),
        f"compiled, P = {length}": sum(p.numel() * p.element_size() for p in prompt.parameters()),
        "PEFT LoRA r=8": trained(LoraConfig(r=8, task_type="CAUSAL_LM")),
    }


def table(document: dict[str, Any]) -> str:
    """One line per contender: the time, and what positions alone would make of it."""
    lines = ["| | time / ours | positions / ours |", "|---|---:|---:|"]
    for one in document["cells"]:
        lines.append(f"| **{one['cell']}**; ours: {one['ours']} | 1 | 1 |")
        for name, value in one["time"].items():
            bound = one["positions"].get(name)
            lines.append(f"| {name} | {value:.2f} | {'-' if bound is None else f'{bound:.2f}'} |")
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    arguments = command_line(__doc__).parse_args()
    tf.logging.set_verbosity_error()
    document = {
        "benchmark": "serve",
        "unit": "seconds of a contender / seconds of ours, median over rounds",
        "dtype": "float32",
        "rounds": arguments.rounds,
        "cells": [
            prefill(arguments.rounds, arguments.small),
            *mixed(arguments.rounds, arguments.small),
            classify(arguments.rounds, arguments.small),
        ],
        "bytes of one more adapter": memory(arguments.small),
    }
    print(table(document))
    finish(document, arguments.write)


if __name__ == "__main__":
    main()
