"""A classifier as an ONNX graph, against the same model in torch.

    python benchmarks/graph.py                        # a table, then one line of JSON
    python benchmarks/graph.py --write                # also results/speed/graph.json
    python benchmarks/graph.py --rounds 1 --small     # a smoke run

One process, the same tensors, float32, one thread each; in each round both run once, in random order, and the median of
t(torch) / t(graph) of the same round is reported. Above 1 means that the graph is faster.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import transformers as tf
from peft import get_peft_model

import softprompt
from measure import command_line, encoder, finish, ratio, rounds_of
from softprompt.serving.outside.onnx import INPUTS, write_graph


def measure(length: int, rows: int, tokens: int, rounds: int, small: bool) -> dict[str, Any]:
    model = get_peft_model(encoder(small), softprompt.deep_prompts(length, task_type="SEQ_CLS")).eval()
    ids = torch.randint(5, 500, (rows, tokens), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        write_graph(model, INPUTS[:2], Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", options, ["CPUExecutionProvider"])
    feed = {name: value.numpy() for name, value in inputs.items()}
    with torch.no_grad():
        calls = {"torch": lambda: model(**inputs).logits, "graph": lambda: torch.from_numpy(session.run(None, feed)[0])}
        torch.testing.assert_close(calls["graph"](), calls["torch"](), rtol=1e-4, atol=1e-4)
        times = rounds_of(calls, rounds)
    return {"virtual_tokens": length, "rows": rows, "tokens": tokens, "torch / graph": ratio(times, "torch", "graph")}


def main() -> None:
    given = command_line(__doc__).parse_args()
    tf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    shapes = [(4, 2, 8)] if given.small else [(20, 1, 32), (20, 8, 64), (100, 8, 64)]
    document: dict[str, Any] = {
        "benchmark": "graph",
        "unit": "seconds of torch / seconds of the graph, median over rounds",
        "dtype": "float32",
        "rounds": given.rounds,
        "cells": [measure(*shape, given.rounds, given.small) for shape in shapes],
    }
    for cell in document["cells"]:
        print("P = {virtual_tokens}, {rows} rows of {tokens}: {torch / graph}".format(**cell))
    finish(document, given.write)


if __name__ == "__main__":
    main()
