"""Write text behind the soft prompt in this folder, with llama.cpp. Needs gguf, numpy and llama-cpp-python, not softprompt.

    python llama_cpp_prompt.py MODEL.gguf "text" [--tokens 64] [--state FILE]

The prompt is decoded once as a batch of embeddings; then the text follows as tokens. With --state its keys and values are kept in FILE,
and read from there the next time. Outputs equal those of training where MODEL.gguf holds weights in F32 or F16; a quantised model is
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


def read_prompt(cpp, context, virtual):
    """Decode the virtual tokens at positions 0 to P - 1 of sequence 0."""
    count, hidden = virtual.shape
    batch = cpp.llama_batch_init(count, hidden, 1)
    try:
        batch.n_tokens = count
        ctypes.memmove(batch.embd, np.ascontiguousarray(virtual).ctypes.data, virtual.nbytes)
        for i in range(count):
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = i, 1, 0
            batch.seq_id[i][0] = 0
        if cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode did not take the prompt; is its hidden size that of the model?")
    finally:
        cpp.llama_batch_free(batch)


def read_tokens(cpp, context, tokens, start):
    """Decode tokens from position ``start`` on; logits are made at the last one."""
    batch = cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i == len(tokens) - 1
        if cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode did not take the text; is it longer than the context?")
    finally:
        cpp.llama_batch_free(batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--state", type=Path)
    given = parser.parse_args()

    import llama_cpp as cpp
    from llama_cpp import Llama

    virtual = rows()
    llama = Llama(given.model, n_ctx=0, verbose=False)
    if llama.n_embd() != virtual.shape[1]:
        parser.error(f"the prompt has rows of {virtual.shape[1]}, the model of {llama.n_embd()}: another backbone.")
    context = llama.ctx
    if given.state and given.state.is_file():
        count = ctypes.c_size_t()
        none = (cpp.llama_token * 1)()
        if not cpp.llama_state_seq_load_file(context, str(given.state).encode(), 0, none, 1, ctypes.byref(count)):
            parser.error(f"{given.state} is no state of this model; delete it.")
    else:
        read_prompt(cpp, context, virtual)
        if given.state:
            cpp.llama_state_seq_save_file(context, str(given.state).encode(), 0, None, 0)
    tokens = llama.tokenize(given.text.encode())
    at, vocabulary = len(virtual), llama.n_vocab()
    for _ in range(given.tokens):
        read_tokens(cpp, context, tokens, at)
        at += len(tokens)
        logits = np.ctypeslib.as_array(cpp.llama_get_logits(context), shape=(vocabulary,))
        tokens = [int(logits.argmax())]
        if tokens[0] == llama.token_eos():
            break
        print(llama.detokenize(tokens).decode(errors="replace"), end="", flush=True)
    print()


if __name__ == "__main__":
    main()
