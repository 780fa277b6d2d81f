"""What the speed benchmarks share: their command line and their document, backbones built from configs, rounds in random order, memory and operations of a step.

Backbones have no dropout, as in ``softprompt train`` by default.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import PeftConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from softprompt._environment import environment
from softprompt._files import write_json

SPEED = Path(__file__).resolve().parent.parent / "results" / "speed"
Step = Callable[[], object]


def command_line(about: str | None, rounds: int = 15) -> argparse.ArgumentParser:
    """What every benchmark can be asked for; ``rounds`` is the number of rounds where nobody says another."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--small", action="store_true", help="toy sizes, for a smoke run")
    parser.add_argument("--write", action="store_true", help="write the document to results/speed, too")
    return parser


def finish(document: dict[str, Any], write: bool) -> None:
    """Print a benchmark's document, with what it ran on, as the last line; write it under the benchmark's name if asked."""
    document = {**document, **environment()}
    if write:
        write_json(SPEED / f"{document['benchmark']}.json", document)
    print(json.dumps(document))


def encoder(small: bool) -> tf.PreTrainedModel:
    """BERT-like classifier: 6 layers, H = 384."""
    size = dict(hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=128, vocab_size=500)
    full = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=30522)
    no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    return tf.BertForSequenceClassification(tf.BertConfig(**(size if small else full), **no_dropout, num_labels=4))


def gpt2(small: bool) -> tf.PreTrainedModel:
    """GPT-2-like: 6 layers, H = 384, V = 50,257."""
    size = dict(n_embd=64, n_layer=2, n_head=4, vocab_size=500)
    full = dict(n_embd=384, n_layer=6, n_head=6, vocab_size=50257)
    torch.manual_seed(0)
    no_dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(
            **(size if small else full), **no_dropout, n_positions=512, bos_token_id=0, eos_token_id=0, pad_token_id=0
        )
    )


def llama(small: bool) -> tf.PreTrainedModel:
    """Llama-like: 6 layers, H = 384, V = 50,257, two queries to a key."""
    size = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=500)
    full = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1024, vocab_size=50257)
    chosen = size if small else full
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(**chosen, num_key_value_heads=chosen["num_attention_heads"] // 2, pad_token_id=0)
    )


def t5(small: bool) -> tf.PreTrainedModel:
    """T5-like: 6 and 6 layers, H = 384, V = 32,128."""
    size = dict(d_model=64, num_layers=2, num_heads=4, d_kv=16, d_ff=128, vocab_size=500)
    full = dict(d_model=384, num_layers=6, num_heads=6, d_kv=64, d_ff=1536, vocab_size=32128)
    torch.manual_seed(0)
    return tf.T5ForConditionalGeneration(
        tf.T5Config(**(size if small else full), dropout_rate=0.0, decoder_start_token_id=0)
    )


class TrainingStep:
    """Forward, backward and AdamW of a PEFT model on one batch.

    Soft prompts run as `softprompt.PromptTrainer` runs them: only the loss is wanted.
    """

    def __init__(self, model: tf.PreTrainedModel, config: PeftConfig, batch: dict[str, torch.Tensor]):
        self.model, self.batch = get_peft_model(model, config).train(), batch
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], 1e-3)

    def __call__(self) -> None:
        loss_only = getattr(self.model.base_model, "loss_only", nullcontext)
        with loss_only():
            self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


BACKBONES = {"encoder": encoder, "gpt2": gpt2, "llama": llama, "t5": t5}


def rounds_of(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, once a round after a warm-up; a new random order each round, because a step pays for the
    memory that a smaller one before it gave back."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    for step in steps.values():
        step()
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            started = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - started)
    return times


def ratio(times: dict[str, list[float]], name: str, reference: str) -> float:
    """Median over rounds of t(name) / t(reference), so that other load on the machine hits both sides."""
    return round(statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True)), 3)


def kept_bytes(step: TrainingStep) -> int:
    """Bytes that one step keeps for its backward pass; what several operations keep of one tensor counts once, and
    parameters, which are there anyway, do not count."""
    parameters = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves, so that none takes the address of another

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storage.nbytes() for storage in kept.values())


def operations(step: Step) -> int:
    """Floating-point operations of the matrix products and attentions of one step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())
