"""Contract: generate() works unmodified; a saved prompt generates what the trained one did; the file holds only the prompt."""

import json

import pytest
import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import set_seed

from house.families import (
    DECODERS,
    ENCODER_DECODERS,
    FORMS,
    GROUPED,
    HIDDEN,
    LAYERS,
    METHODS,
    PAD,
    P,
    backbone,
    batch,
    cases,
    close,
    config,
    output,
    prompted,
    stir,
    tokens,
    with_decoder,
)

STRATEGIES = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 20},
}


def generated(model, inputs, **options):
    set_seed(3)
    return model.generate(**inputs, min_new_tokens=6, max_new_tokens=6, pad_token_id=PAD, **options)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", [*METHODS, *FORMS])
@pytest.mark.parametrize("family", DECODERS + ENCODER_DECODERS, ids=str)
@torch.no_grad()
def test_with_cache_equals_without(family, method, strategy):
    model, inputs = prompted(family, family.lm, method), batch(tokens(13, 4), "left")
    options = STRATEGIES[strategy]
    assert torch.equal(generated(model, inputs, **options), generated(model, inputs, use_cache=False, **options))


@pytest.mark.parametrize("family", DECODERS + ENCODER_DECODERS, ids=str)
@torch.no_grad()
def test_generating_from_embeddings_equals_generating_from_ids(family):
    model, inputs = prompted(family, family.lm, "ept"), batch(tokens(13, 4), "left")
    rows = model.base_model.model.softprompt.backbone.embed(inputs["input_ids"])
    expected = generated(model, inputs, do_sample=False)[:, -6:]
    assert torch.equal(
        generated(model, {"inputs_embeds": rows, "attention_mask": inputs["attention_mask"]}, do_sample=False)[:, -6:],
        expected,
    )


@pytest.mark.parametrize("method", ["ept", "deep_late"])
@torch.no_grad()
def test_decoding_by_hand_without_a_mask(method):
    """A loop over past_key_values that never makes a mask gets the right positions and deltas too."""
    for family in DECODERS:
        model, ids = prompted(family, "causal_lm", method), torch.stack(tokens(9, 9))
        full = output(model, input_ids=ids)
        first = model(input_ids=ids[:, :5], use_cache=True)
        close(first.logits, full[:, :5])
        cache = first.past_key_values
        for t in range(5, 9):
            step = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            close(step.logits, full[:, t : t + 1])


TINY = {"vocab_size": 99, "pad_token_id": PAD}


OTHERS = {
    "bloom": (tf.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),  # ALiBi; its attention says no is_causal
    "codegen": (tf.CodeGenConfig, {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}),  # nor does this
    "mistral": (tf.MistralConfig, {**GROUPED, "sliding_window": 8}),
    # linear attention in the first layers
    "qwen3_next": (
        tf.Qwen3NextConfig,
        {**GROUPED, "num_hidden_layers": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "qwen3_5": (
        tf.Qwen3_5TextConfig,
        {**GROUPED, "num_hidden_layers": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
    # several states per position, which a deep prompt cannot replace
    "gemma3n": (
        tf.Gemma3nTextConfig,
        {**GROUPED, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "altup_num_inputs": 2, "laurel_rank": 4,
         "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 99, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 3},
    ),
}  # fmt: skip


NOT_LATE = ("qwen3_next", "qwen3_5", "gemma3n")


@pytest.mark.parametrize(
    "name, method", [(name, m) for name in OTHERS for m in ("ept", "late") if m != "late" or name not in NOT_LATE]
)
@torch.no_grad()
def test_decoders_that_are_built_differently(name, method):
    """Their parts are found by structure as well: alone, in a left-padded batch, with and without cache the same."""
    config_class, options = OTHERS[name]
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config_class(**{**TINY, **options}))
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    options = {"layers": [1]} if method == "late" else {}
    model = stir(get_peft_model(model, config("spt" if options else method, "causal_lm", **options))).eval()
    rows, more = tokens(13, 4), {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    together = torch.stack(generated(model, batch(rows, "left"), **more).logits, 1)
    close(torch.stack(generated(model, batch(rows, "left"), use_cache=False, **more).logits, 1), together)
    close(torch.cat([torch.stack(generated(model, batch([row]), **more).logits, 1) for row in rows]), together)


# ---------------------------------------------------------------------- save and load


DEPT_KEYS = {"short": (1, P, HIDDEN), "lowrank_a": (12, 3), "lowrank_b": (3, HIDDEN)}


EXPECTED = {
    "prompt_tuning": {"embedding": (1, P, HIDDEN)},
    "deep_prompts": {"embedding": (LAYERS, P, HIDDEN)},
    "dept": DEPT_KEYS,
    "spt": {"embedding": (2, P, HIDDEN), "down": (2, HIDDEN, 6), "up": (2, 6, HIDDEN), "down_bias": (2, 6)},
    "infoprompt": {"embedding": (1, P, HIDDEN)},
    "tsloss": {"embedding": (1, P, HIDDEN)},
    "ulpt": {"codes": (1, P, 2), "scale": (1, HIDDEN), "shift": (1, HIDDEN)},
    "ept": {**DEPT_KEYS, "space_down": (2, HIDDEN, 5), "space_up": (2, 5, HIDDEN), "gate_weight": (2, HIDDEN)},
}


@pytest.mark.parametrize("family, head, method", [c for c in cases() if c[1] in ("seq_cls", c[0].lm)], ids=str)
@torch.no_grad()
def test_saved_prompt_on_a_fresh_backbone_is_equal(family, head, method, tmp_path):
    own_head = (
        {"modules_to_save": ["classification_head"]} if head == "seq_cls" and family.kind == "encoder_decoder" else {}
    )
    model, inputs = prompted(family, head, method, **own_head), batch(tokens(9, 5))
    for key, parameter in model.named_parameters():
        if "modules_to_save" in key:
            parameter += 0.1  # a trained head
    model.save_pretrained(tmp_path)

    stored = load_file(tmp_path / "adapter_model.safetensors")
    ours = {key: tuple(value.shape) for key, value in stored.items() if "softprompt" in key}
    assert ours == {
        f"base_model.model.softprompt.softprompt_prompts.{key}": shape for key, shape in EXPECTED[method].items()
    }
    assert {value.dtype for value in stored.values()} == {torch.float32}
    others = {key.split(".")[2] for key in stored if key not in {k for k in stored if "softprompt" in k}}
    assert others == (set() if head != "seq_cls" else others & {"classifier", "score", "classification_head"}) and bool(
        others
    ) == (head == "seq_cls")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SOFTPROMPT"

    fresh = PeftModel.from_pretrained(backbone(family, head), tmp_path).eval()
    # not bit for bit: matrix kernels may add up differently for weights at another address
    close(
        output(fresh, **with_decoder(family, head, inputs)), output(model, **with_decoder(family, head, inputs)), 1e-6
    )
    if head in ("causal_lm", "seq2seq_lm"):
        assert torch.equal(generated(fresh, inputs), generated(model, inputs))
