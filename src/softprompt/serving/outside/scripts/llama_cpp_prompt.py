"""Write text behind the soft prompt in this folder, with llama.cpp. Needs gguf, numpy and llama-cpp-python, not softprompt.

    python llama_cpp_prompt.py MODEL.gguf "text" [--tokens 64]

The prompt is decoded as a batch of embeddings; then the text follows as tokens. A server keeps what it made with
llama_state_seq_save_file, or copies it to other sequences with llama_memory_seq_cp. Outputs equal those of training where MODEL.gguf holds weights in F32 or F16; a quantised model is
another model.
"""

import argparse
import ctypes
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent


def rows(folder=FOLDER):
    """The virtual tokens [P, H], float32."""
    from gguf import GGUFReader

    tensor = next(t for t in GGUFReader(Path(folder) / "prompt.gguf").tensors if t.name == "prompt_embeddings")
    hidden, count = map(int, tensor.shape)  # GGUF writes the fastest dimension first
    return np.asarray(tensor.data, dtype=np.float32).reshape(count, hidden)


def read(cpp, context, start, rows=None, tokens=()):
    """Decode virtual tokens [n, H], or else tokens, from position ``start`` of sequence 0 on; logits are made at the last one."""
    count, hidden = (len(tokens), 0) if rows is None else rows.shape
    batch = cpp.llama_batch_init(count, hidden, 1)
    try:
        batch.n_tokens = count
        if rows is not None:
            ctypes.memmove(batch.embd, np.ascontiguousarray(rows).ctypes.data, rows.nbytes)
        for i in range(count):
            if rows is None:
                batch.token[i] = tokens[i]
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = start + i, 1, i == count - 1
            batch.seq_id[i][0] = 0
        if cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode did not take the batch; is it longer than the context?")
    finally:
        cpp.llama_batch_free(batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()

    import llama_cpp as cpp
    from llama_cpp import Llama

    virtual = rows()
    llama = Llama(given.model, n_ctx=0, verbose=False)
    if llama.n_embd() != virtual.shape[1]:
        parser.error(f"the prompt has rows of {virtual.shape[1]}, the model of {llama.n_embd()}: another backbone.")
    context, step = llama.ctx, llama.n_batch
    for i in range(0, len(virtual), step):
        read(cpp, context, i, rows=virtual[i : i + step])
    tokens = llama.tokenize(given.text.encode())
    at, vocabulary = len(virtual), llama.n_vocab()
    for _ in range(given.tokens):
        for i in range(0, len(tokens), step):
            read(cpp, context, at + i, tokens=tokens[i : i + step])
        at += len(tokens)
        logits = np.ctypeslib.as_array(cpp.llama_get_logits(context), shape=(vocabulary,))
        tokens = [int(logits.argmax())]
        if tokens[0] == llama.token_eos():
            break
        print(llama.detokenize(tokens).decode(errors="replace"), end="", flush=True)
    print()


if __name__ == "__main__":
    main()
