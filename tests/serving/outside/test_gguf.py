"""The rows of a prompt come out of the GGUF file as they went in, for its reader and for the script beside it."""

from __future__ import annotations

import builtins
import runpy
from pathlib import Path

import gguf
import numpy as np
import pytest

import softprompt
from house import families as f
from softprompt import SoftPromptError
from softprompt.serving.outside import export_gguf


def test_the_rows_come_back(tmp_path: Path):
    model = f.prompted(f.LLAMA, "causal_lm", "prompt_tuning")
    export_gguf(model, tmp_path / "out", None)
    want = softprompt.prompts_of(model).active_prompt()().prefix[0].detach().numpy()
    reader = gguf.GGUFReader(tmp_path / "out" / "prompt.gguf")
    (tensor,) = reader.tensors
    assert tensor.name == "prompt_embeddings" and tensor.tensor_type == gguf.GGMLQuantizationType.F32
    assert list(tensor.shape) == [f.HIDDEN, f.P] and np.array_equal(tensor.data, want)
    assert reader.fields["softprompt.num_virtual_tokens"].contents() == f.P
    script = runpy.run_path(str(tmp_path / "out" / "llama_cpp_prompt.py"))
    assert np.array_equal(script["rows"](), want)


class Cpp:
    """llama.cpp's batch of embeddings, as its C interface lays it out."""

    def __init__(self, fails: bool = False):
        self.fails, self.seen, self.freed = fails, None, 0

    def llama_batch_init(self, count: int, hidden: int, sequences: int):
        import ctypes

        floats = (ctypes.c_float * (count * hidden))()  # none for tokens
        batch = type("Batch", (), {})()
        batch.embd, batch.shape = ctypes.cast(floats, ctypes.POINTER(ctypes.c_float)), (count, hidden)
        batch.pos, batch.n_seq_id, batch.logits = [None] * count, [None] * count, [None] * count
        batch.token = [None] * count
        batch.seq_id = [[None] * sequences for _ in range(count)]
        batch.keep = floats
        return batch

    def llama_decode(self, context, batch) -> int:
        self.seen = batch
        return int(self.fails)

    def llama_batch_free(self, batch) -> None:
        self.freed += 1


def test_the_script_gives_llama_cpp_the_rows_at_the_first_positions(tmp_path: Path):
    model = f.prompted(f.LLAMA, "causal_lm", "prompt_tuning")
    export_gguf(model, tmp_path / "out", None)
    script = runpy.run_path(str(tmp_path / "out" / "llama_cpp_prompt.py"))
    rows, cpp = script["rows"](), Cpp()
    script["read"](cpp, None, 0, rows=rows)
    batch = cpp.seen
    assert batch.n_tokens == f.P and batch.pos == list(range(f.P)) and batch.seq_id == [[0]] * f.P
    assert np.array_equal(np.ctypeslib.as_array(batch.keep).reshape(rows.shape), rows) and cpp.freed == 1
    script["read"](cpp, None, f.P, tokens=[7, 8])
    assert cpp.seen.token == [7, 8] and cpp.seen.pos == [f.P, f.P + 1] and cpp.seen.logits == [False, True]
    with pytest.raises(RuntimeError, match="did not take the batch"):
        script["read"](Cpp(fails=True), None, 0, rows=rows)


def test_what_it_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for options, message in (({"marker_token_id": 4}, "stands at a marker inside it"), ({}, "needs the package gguf")):
        if not options:
            real = builtins.__import__

            def without(name, *args, real=real, **kwargs):
                if name == "gguf":
                    raise ImportError(name)
                return real(name, *args, **kwargs)

            monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(SoftPromptError, match=message):
            export_gguf(f.prompted(f.LLAMA, "causal_lm", "prompt_tuning", **options), tmp_path / "out", None)
        assert not (tmp_path / "out").exists()
