"""The backbones and inputs that the published adapters and runs belong to; what is published depends on every line here.

Weights are drawn by the name of each parameter, so that neither the order of modules nor an initializer of another release
of transformers moves them. Nothing of softprompt is used.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

VOCAB, HIDDEN, LAYERS = 40, 16, 3
PAD, EOS, FIRST = 1, 2, 5  # ids below FIRST are special
LENGTHS = (5, 8, 3)
COMMON = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": EOS, "num_labels": 3}
SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
CONFIGS: dict[str, tuple[type[tf.PreTrainedConfig], dict[str, Any]]] = {
    "bert": (tf.BertConfig, SIZES),
    "roberta": (tf.RobertaConfig, SIZES),
    "deberta-v2": (
        tf.DebertaV2Config,
        {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    ),
    "modernbert": (
        tf.ModernBertConfig,
        {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8, "classifier_pooling": "cls"},
    ),
    "gpt2": (tf.GPT2Config, {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 2, "n_positions": 64}),
    "llama": (tf.LlamaConfig, GROUPED),
    "qwen2": (tf.Qwen2Config, GROUPED),
    "qwen3": (tf.Qwen3Config, GROUPED),
    "gemma3": (tf.Gemma3TextConfig, {**GROUPED, **SLIDING}),
    "gpt-oss": (
        tf.GptOssConfig,
        {
            **GROUPED,
            **SLIDING,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "opt": (
        tf.OPTConfig,
        {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "ffn_dim": 24,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": HIDDEN,
        },
    ),
    "t5": (
        tf.T5Config,
        {"d_model": HIDDEN, "num_layers": LAYERS, "num_heads": 2, "d_kv": 8, "d_ff": 24, "decoder_start_token_id": 0},
    ),
    "bart": (
        tf.BartConfig,
        {
            "d_model": HIDDEN,
            "encoder_layers": LAYERS,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 64,
            "scale_embedding": True,
            "decoder_start_token_id": 0,
            "forced_eos_token_id": None,
        },
    ),
}
HEADS = {
    "base": tf.AutoModel,
    "masked_lm": tf.AutoModelForMaskedLM,
    "causal_lm": tf.AutoModelForCausalLM,
    "seq2seq_lm": tf.AutoModelForSeq2SeqLM,
    "seq_cls": tf.AutoModelForSequenceClassification,
    "token_cls": tf.AutoModelForTokenClassification,
}


def draw(model: nn.Module, wide: float = 0.3, narrow: float = 0.05) -> nn.Module:
    """Set every parameter from its own name; scales of norms lie about one, other vectors about zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            scale = name.endswith("weight") and any(word in name.lower() for word in ("norm", "ln_"))
            parameter.copy_(wide * noise if parameter.dim() > 1 else float(scale) + narrow * noise)
    model.tie_weights()  # type: ignore[operator]
    return model.eval()


def backbone(family: str, head: str) -> Any:
    """The backbone of a published adapter."""
    config_class, options = CONFIGS[family]
    return draw(HEADS[head].from_config(config_class(**{**COMMON, **options})))


def inputs(family: str, head: str) -> dict[str, Tensor]:
    """Three rows of different lengths, padded on the right; the decoder's ids where a model needs them."""
    ids = torch.full((len(LENGTHS), max(LENGTHS)), PAD)
    for i, length in enumerate(LENGTHS):
        ids[i, :length] = torch.tensor([FIRST + (7 * i + 5 * k) % (VOCAB - FIRST) for k in range(length)])
        ids[i, length - 1] = EOS  # BART and T5 classify at it
    found = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    if family in ("t5", "bart") and head in ("base", "seq2seq_lm"):
        found["decoder_input_ids"] = torch.tensor([[0, 9, 14, 30]]).repeat(len(LENGTHS), 1)
    return found


def output(model: Any, **given: Tensor) -> Tensor:
    """Logits, or the last hidden state of a model without a head."""
    with torch.no_grad():
        out = model(**given)
    return out.logits if "logits" in out else out.last_hidden_state


# Runs: backbones on disk, with a tokenizer ---------------------------------------------------------------------------

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "red green blue dog cat bird sun rain snow runs sits eats now then here there good bad warm cold . ? was It"
OF_RUNS = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def tokenizer(special: bool) -> tf.PreTrainedTokenizerFast:
    """One id per word; with [CLS] and [SEP] where ``special``."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS.split()])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return tf.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="[SEP]", **names)


def save_backbones(folder: Path) -> Path:
    """Write the backbones of the runs: ``encoder`` (BERT), ``decoder`` (Llama) and ``encoder_decoder`` (T5)."""
    t5 = {**CONFIGS["t5"][1], **OF_RUNS}
    made = {
        "encoder": tf.BertForMaskedLM(tf.BertConfig(**SIZES, **OF_RUNS)),
        "decoder": tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED, **OF_RUNS)),
        "encoder_decoder": tf.T5ForConditionalGeneration(tf.T5Config(**t5)),
    }
    for name, model in made.items():
        draw(model).save_pretrained(folder / name)
        tokenizer(special=name == "encoder").save_pretrained(folder / name)
    return folder
