"""Tiny random backbones of fifteen families, and what every contract test does with them.

Weights are drawn wider than a config would draw them, and biases and padding rows are not zero: a wrong mask, position
or order must show in the outputs, not vanish in 1e-3 of a logit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import softprompt

VOCAB, HIDDEN, LAYERS, P = 99, 32, 3, 4


PAD, EOS, FIRST = 1, 2, 5  # ids below FIRST are special


AUTO = {
    "base": tf.AutoModel,
    "masked_lm": tf.AutoModelForMaskedLM,
    "causal_lm": tf.AutoModelForCausalLM,
    "seq2seq_lm": tf.AutoModelForSeq2SeqLM,
    "seq_cls": tf.AutoModelForSequenceClassification,
    "token_cls": tf.AutoModelForTokenClassification,
}


TASK = {
    "base": "FEATURE_EXTRACTION",
    "masked_lm": None,  # PEFT has no task type for it
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "seq_cls": "SEQ_CLS",
    "token_cls": "TOKEN_CLS",
}


@dataclass(frozen=True)
class Family:
    """One model family: its tiny config, its kind, and the heads that transformers has for it."""

    name: str
    kind: str  # "encoder", "decoder" or "encoder_decoder"
    heads: tuple[str, ...]
    config_class: type[tf.PreTrainedConfig]
    options: dict[str, Any]

    @property
    def lm(self) -> str:
        return {"encoder": "masked_lm", "decoder": "causal_lm", "encoder_decoder": "seq2seq_lm"}[self.kind]

    def config(self, **options: Any) -> tf.PreTrainedConfig:
        common = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": EOS, "num_labels": 3}
        return self.config_class(**{**common, **self.options, **options})

    def __str__(self) -> str:
        return self.name


ENCODER, DECODER = ("base", "masked_lm", "seq_cls", "token_cls"), ("base", "causal_lm", "seq_cls", "token_cls")


SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


GROUPED = dict(**SIZES, num_key_value_heads=2, head_dim=8)


FAMILIES = {
    family.name: family
    for family in (
        Family("bert", "encoder", ENCODER, tf.BertConfig, {**SIZES, **NO_DROPOUT}),
        Family("roberta", "encoder", ENCODER, tf.RobertaConfig, {**SIZES, **NO_DROPOUT}),
        Family(
            "deberta-v2",
            "encoder",
            ENCODER,
            tf.DebertaV2Config,
            {
                **SIZES,
                **NO_DROPOUT,
                "relative_attention": True,
                "pos_att_type": ["p2c", "c2p"],
                "position_biased_input": False,
            },
        ),
        # global, local, global: the window shows and is no wider than a padded row
        Family(
            "modernbert",
            "encoder",
            ENCODER,
            tf.ModernBertConfig,
            {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8, "classifier_pooling": "cls"},
        ),
        Family(
            "gpt2",
            "decoder",
            DECODER,
            tf.GPT2Config,
            {
                "n_embd": HIDDEN,
                "n_layer": LAYERS,
                "n_head": 4,
                "n_positions": 64,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
            },
        ),
        Family("llama", "decoder", DECODER, tf.LlamaConfig, GROUPED),
        Family("qwen2", "decoder", DECODER, tf.Qwen2Config, GROUPED),
        Family("qwen3", "decoder", DECODER, tf.Qwen3Config, GROUPED),
        Family(
            "gemma3",
            "decoder",
            ("base", "causal_lm", "seq_cls"),
            tf.Gemma3TextConfig,
            {
                **GROUPED,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        ),
        Family(
            "opt",  # its language model calls a stack inside its base model
            "decoder",
            ("base", "causal_lm", "seq_cls"),
            tf.OPTConfig,
            {
                "hidden_size": HIDDEN,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": 4,
                "ffn_dim": 48,
                "max_position_embeddings": 64,
                "word_embed_proj_dim": HIDDEN,
                "dropout": 0.0,
            },
        ),
        # inputs of each layer looked up by id; the last layers read keys and values of those below
        Family(
            "gemma4",
            "decoder",
            ("base", "causal_lm"),
            tf.Gemma4TextConfig,
            {
                **GROUPED,
                "global_head_dim": 8,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention", "full_attention"],
                "hidden_size_per_layer_input": 6,
                "vocab_size_per_layer_input": VOCAB,
                "num_kv_shared_layers": 1,
            },
        ),
        Family(
            "gpt-oss",
            "decoder",
            DECODER,
            tf.GptOssConfig,
            {
                **GROUPED,
                "num_local_experts": 2,
                "num_experts_per_tok": 1,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        Family(
            "modernbert-decoder",
            "decoder",
            ("base", "causal_lm", "seq_cls"),
            tf.ModernBertDecoderConfig,
            {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 16, "cls_token_id": 3, "sep_token_id": 4},
        ),
        Family(
            "t5",
            "encoder_decoder",
            ("base", "seq2seq_lm", "seq_cls", "token_cls"),
            tf.T5Config,
            {
                "d_model": HIDDEN,
                "num_layers": LAYERS,
                "num_heads": 4,
                "d_kv": 8,
                "d_ff": 48,
                "dropout_rate": 0.0,
                "decoder_start_token_id": 0,
            },
        ),
        Family(
            "bart",
            "encoder_decoder",
            ("base", "seq2seq_lm", "seq_cls"),
            tf.BartConfig,
            {
                "d_model": HIDDEN,
                "encoder_layers": LAYERS,
                "decoder_layers": 2,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 48,
                "decoder_ffn_dim": 48,
                "max_position_embeddings": 64,
                "dropout": 0.0,
                "scale_embedding": True,
                "decoder_start_token_id": 0,
                "forced_eos_token_id": None,
            },
        ),
    )
}


# not in the grids: relatives of BERT and RoBERTa whose encoder reads a cache
RELATIVES = {
    kind: Family(kind, "encoder", ENCODER, tf.CONFIG_MAPPING[kind], {**SIZES, **NO_DROPOUT, **options})
    for kind, options in {
        "camembert": {},
        "data2vec-text": {},
        "electra": {"embedding_size": HIDDEN},
        "ernie": {},
        "xlm-roberta": {},
        "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    }.items()
}
DECODERS = [f for f in FAMILIES.values() if f.kind == "decoder"]


ENCODERS = [f for f in FAMILIES.values() if f.kind == "encoder"]


ENCODER_DECODERS = [f for f in FAMILIES.values() if f.kind == "encoder_decoder"]


METHODS: dict[str, Callable[..., softprompt.SoftPromptConfig]] = {
    "prompt_tuning": softprompt.prompt_tuning,
    "deep_prompts": softprompt.deep_prompts,
    "dept": lambda **o: softprompt.dept(**{"rank": 3, "max_positions": 12, **o}),
    "ept": lambda **o: softprompt.ept(**{"rank": 3, "max_positions": 12, "num_spaces": 2, "space_bottleneck": 5, **o}),
    "spt": lambda **o: softprompt.spt(**{"layers": [1, 2], "bottleneck": 6, **o}),
    "infoprompt": lambda **o: softprompt.infoprompt(**{"latent": 5, **o}),
    "tsloss": softprompt.tsloss,
    "ulpt": softprompt.ulpt,
}


# forms of a method that the contracts of padding and generation hold for too: entered everywhere, in the last layer only,
# through gates in the middle of a search, and without a generator
FORMS: dict[str, Callable[..., softprompt.SoftPromptConfig]] = {
    "spt_all": lambda **o: softprompt.spt(**{"layers": [0, 1, 2], "bottleneck": 6, "generator_pooling": "max", **o}),
    "spt_last": lambda **o: softprompt.spt(
        **{"layers": [2], "bottleneck": 6, "generator_pooling": "attention", "tau": 0.5, **o}
    ),
    "spt_gated": lambda **o: softprompt.spt(
        **{"bottleneck": 6, "decoupled_gates": False, "shared_generator": True, **o}
    ),
    "instance": lambda **o: softprompt.infoprompt(
        **{"generator": "instance", "placement": "deep", "bottleneck": 6, "latent": 5, **o}
    ),
    "deep_late": lambda **o: softprompt.deep_prompts(**{"layers": [1, 2], **o}),
}


def covering(grid: Sequence[Mapping[str, object]]) -> list[bool]:
    """Which cases of a grid stay, so that each two values of different parameters still meet; the others are slow.

    A grid of one or two parameters stays whole. Each step takes the case with the most pairs that have not met, of equal ones the first.
    """
    pairs = [
        set(combinations(sorted((name, str(value)) for name, value in case.items()), min(2, len(case))))
        for case in grid
    ]
    missing, kept = set[Any]().union(*pairs), [False] * len(grid)
    while missing:
        best = max(range(len(grid)), key=lambda at: len(pairs[at] & missing))
        kept[best] = True
        missing -= pairs[best]
    return kept


@cache
def _model(name: str, head: str) -> nn.Module:
    model = AUTO[head].from_config({**FAMILIES, **RELATIVES}[name].config())
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            wide = parameter.dim() > 1
            parameter.copy_(
                (0.5 if "embed" in key or "wte" in key else 0.2) * noise if wide else parameter + 0.1 * noise
            )
    model.tie_weights()
    return model.eval()


def backbone(family: Family, head: str) -> Any:
    """A fresh copy of the family's tiny model; every call gives the same weights."""
    return copy.deepcopy(_model(family.name, head))


def config(method: str, head: str | None = None, **options: Any) -> softprompt.SoftPromptConfig:
    """The method's config at test size; P = 4 and a fixed seed unless told otherwise."""
    return {**METHODS, **FORMS}[method](
        **{"num_virtual_tokens": P, "task_type": TASK[head] if head else None, "init_seed": 0, **options}
    )


def stir(model: nn.Module, seed: int = 0, only: str = "") -> nn.Module:
    """Move every prompt parameter (of the adapter ``only``) off its start, so that B, U_k and the gates act."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "softprompt_" in key and f".{only}" in key:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def prompted(family: Family, head: str, method: str, **options: Any) -> PeftModel:
    """The family's tiny model with a stirred prompt of the method, in eval mode."""
    return stir(get_peft_model(backbone(family, head), config(method, head, **options))).eval()


def prompt_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {key: value for key, value in model.named_parameters() if "softprompt_" in key}


def tokens(*lengths: int, seed: int = 0) -> list[Tensor]:
    """Rows of random ordinary ids, each ending in EOS (BART and T5 classify at it), one row per length."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.cat([torch.randint(FIRST, VOCAB, (n - 1,), generator=generator), torch.tensor([EOS])]) for n in lengths
    ]


def batch(rows: list[Tensor], side: str = "right") -> dict[str, Tensor]:
    """Pad rows to one batch with its mask."""
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[i, where], mask[i, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def with_decoder(family: Family, head: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the decoder's ids where a model needs them."""
    if family.kind == "encoder_decoder" and head in ("base", "seq2seq_lm"):
        ids = next(iter(inputs.values()))
        inputs = {**inputs, "decoder_input_ids": torch.arange(FIRST, FIRST + 5).repeat(len(ids), 1)}
    return inputs


def output(model: Any, **inputs: Any) -> Tensor:
    """Logits, or the last hidden state of a model without a head."""
    out = model(**inputs)
    return out.logits if "logits" in out else out.last_hidden_state


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def cases(*heads: str, methods: bool = True, forms: bool = False) -> list[tuple]:
    """(family, head[, method]) for every family that has one of the heads (all heads when none is named)."""
    pairs = [(f, h) for f in FAMILIES.values() for h in f.heads if not heads or h in heads]
    names = [*METHODS, *(FORMS if forms else ())]
    return [(f, h, m) for f, h in pairs for m in names] if methods else pairs


BERT, DEBERTA, GPT2, LLAMA, QWEN, T5 = (
    FAMILIES[name] for name in ("bert", "deberta-v2", "gpt2", "llama", "qwen2", "t5")
)
