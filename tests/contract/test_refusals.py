"""Every mistake that the tuner can see is refused with what was expected, what came, and what to do."""

import dataclasses
import json

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

import softprompt
from house.families import (
    EOS,
    FAMILIES,
    LAYERS,
    LLAMA,
    P,
    backbone,
    batch,
    close,
    config,
    output,
    prompted,
    tokens,
    with_decoder,
)
from softprompt import SoftPromptConfig, SoftPromptError
from softprompt.tuner import find_backbone


def refused(message, call, *args, **kwargs):
    with pytest.raises(SoftPromptError) as error:
        call(*args, **kwargs)
    assert message in str(error.value)


# ---------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"prompt": "decomposd"},
            "unknown prompt 'decomposd': expected one of plain, decomposed, generated, instance, projected, compiled. Did you mean 'decomposed'?",
        ),
        (
            {"placement": "inputs"},
            "unknown placement 'inputs': expected one of input, deep, gated. Did you mean 'input'?",
        ),
        ({"placement": 7}, "unknown placement 7: expected one of input, deep, gated."),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens: expected a whole number of at least 1, got 0"),
        ({"tau": 0}, "tau: expected a number above 0 and up to 1, got 0"),
        ({"tau": 1.5}, "tau: expected a number above 0 and up to 1, got 1.5"),
        *(
            (
                {"placement": "deep", "layers": wrong},
                f"layers: expected ascending layer numbers such as [0, 3, 7], got {wrong!r}",
            )
            for wrong in ([2, 1], [1, 1], [-1, 0], "all", [0.5])
        ),
        (
            {"layers": [0, 1]},
            "layers needs placement='deep' or 'gated'; placement='input' enters at layer 0 only",
        ),
        (
            {"prompt": "decomposed", "rank": 2},
            "a decomposed prompt needs rank >= 1 and max_positions >= 1, got rank=2, max_positions=0",
        ),
        (
            {"prompt": "decomposed", "max_positions": 9},
            "a decomposed prompt needs rank >= 1 and max_positions >= 1, got rank=0, max_positions=9",
        ),
    ],
)
def test_config_refusals(options, message):
    refused(message, SoftPromptConfig, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"fusion_memory": "products"},
            "unknown fusion_memory 'products': expected one of none, product, factor. Did you mean 'product'?",
        ),
        ({"gate": "tokens"}, "unknown gate 'tokens': expected one of prompt, token, none. Did you mean 'token'?"),
        ({"fusion_scores": "dots"}, "unknown fusion_scores 'dots': expected one of cosine, dot. Did you mean 'dot'?"),
        ({"fusion_temperature": 0.0}, "fusion_temperature: expected a number above 0, got 0.0."),
        (
            {"space_activation": "gello"},
            "unknown space_activation 'gello': expected one of gelu, relu, tanh, identity. Did you mean 'gelu'?",
        ),
    ],
)
def test_builder_refusals(options, message):
    refused(message, lambda: get_peft_model(backbone(LLAMA, "causal_lm"), softprompt.ept(**options)))


def test_a_config_without_a_backbone_builds_nothing():
    refused(
        "the config does not know its backbone yet (hidden_size, num_layers); attach it with get_peft_model",
        SoftPromptConfig().build,
    )


def test_unknown_parameter_group():
    model = get_peft_model(backbone(LLAMA, "causal_lm"), config("dept", "causal_lm", learning_rates={"lowrank": 0.1}))
    refused(
        "learning_rates names the group 'lowrank', but this prompt has prompt, low_rank. Did you mean 'low_rank'?",
        softprompt.parameter_groups,
        model,
        0.1,
    )


def test_layers_that_the_backbone_does_not_have():
    for name in ("deep_late", "spt"):
        refused(
            "layers=[1, 3]: llama has layers 0 to 2; name layers that exist",
            lambda name=name: get_peft_model(backbone(LLAMA, "causal_lm"), config(name, "causal_lm", layers=[1, 3])),
        )


# ---------------------------------------------------------------------- backbones


SMALL = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}


# ---------------------------------------------------------------------- configs


def test_backbones_from_which_a_late_prompt_cannot_be_hidden():
    """The families at hand can all hide it; what they lack in others is taken away here."""
    kinds = {
        "llama takes no position_ids, so its tokens cannot keep their positions beside a prompt that enters later": {
            "argument_names": ("input_ids", "attention_mask"),
            "max_positions": 64,
        },
        "layers of llama take no attention_mask, so those before the prompt cannot be kept from it": {
            "mask_index": None
        },
    }
    for message, change in kinds.items():
        model = prompted(LLAMA, "causal_lm", "deep_late")
        state = model.base_model.model.softprompt
        state.backbone = dataclasses.replace(state.backbone, **change)
        refused(message, model, **batch(tokens(5)))
    model = prompted(LLAMA, "causal_lm", "deep_late")
    parts = model.base_model.model.softprompt.backbone
    parts.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "attention_mask": "block"}), with_kwargs=True, prepend=True
    )
    refused(
        "layers before the prompt need a 4-D attention mask to hide it, got str from attn_implementation='sdpa'",
        model,
        **batch(tokens(5)),
    )
    hybrid = {
        "num_experts": 2,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "layer_types": ["linear_attention", "full_attention"],
    }
    qwen = tf.Qwen3NextForCausalLM(tf.Qwen3NextConfig(**SMALL, intermediate_size=48, head_dim=8, **hybrid))
    late = get_peft_model(qwen, config("deep_late", "causal_lm", layers=[1]))
    refused(
        "qwen3_next has layers of kind linear_attention, from which a prompt cannot be hidden; let it enter at layer 0 too",
        late,
        input_ids=torch.tensor([[5, 6, 7]]),
    )


def test_an_objective_that_never_acts():
    entry = {"name": "latent_divergence", "every": 0}
    refused(
        "objective 'latent_divergence': every: expected a whole number of at least 1, got 0",
        lambda: get_peft_model(backbone(LLAMA, "causal_lm"), config("prompt_tuning", "causal_lm", objectives=[entry])),
    )


def test_objectives_of_a_prompt_that_enters_nowhere():
    entry = softprompt.objective("latent_divergence")
    for method in ("deep_prompts", "spt", "spt_gated"):
        refused("layers=[] enters no layer, so nothing would be prompted", config, method, layers=[])
    gated = config("spt_gated", "causal_lm", consistency=0.0, objectives=[entry])
    model = get_peft_model(backbone(LLAMA, "causal_lm"), gated).train()
    inputs = batch(tokens(5))
    with model.base_model.state.active_prompt().subnetwork([]):  # a draw may close every gate
        refused(
            "objectives need a prompt that enters; this one has no layers", model, **inputs, labels=inputs["input_ids"]
        )


# ---------------------------------------------------------------------- backbones


def test_a_model_that_is_not_from_transformers():
    refused(
        "expected a transformers model, got Linear, which has no config or base_model", find_backbone, nn.Linear(2, 2)
    )
    refused("expected a transformers model, got Linear", get_peft_model, nn.Linear(2, 2), softprompt.prompt_tuning())


@pytest.mark.parametrize(
    "model_class, options",
    [
        (tf.AlbertModel, {**SMALL, "embedding_size": 16, "intermediate_size": 48}),
        (tf.XLNetModel, {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    ],
)
def test_families_without_the_shared_layer_class(model_class, options):
    model = model_class(model_class.config_class(**options))
    message = f"{model_class.__name__} ({model.config.model_type}) has no list of GradientCheckpointingLayer, so prompts cannot be placed at its layers. Use a model whose layers have that class: BERT"
    refused(message, get_peft_model, model, softprompt.prompt_tuning())
    assert not hasattr(model, "softprompt")


@pytest.mark.parametrize(
    "model_class, options",
    [
        (tf.MambaForCausalLM, {"state_size": 4}),
        (tf.xLSTMForCausalLM, {"num_heads": 4}),
        (tf.RwkvForCausalLM, {"attention_hidden_size": 32}),
        # a hybrid by its family, without a layer that has keys
        (tf.BambaForCausalLM, {**SMALL, "num_key_value_heads": 4, "mamba_n_heads": 4, "mamba_d_head": 16}),
    ],
)
def test_decoders_whose_state_is_no_kv_cache(model_class, options):
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}
    model = model_class(model_class.config_class(**{**sizes, **options}))
    message = f"{model_class.__name__} ({model.config.model_type}) generates from a recurrent state, not from keys and values, so a prompt would enter again at every step; use a model with a KV cache"
    refused(message, get_peft_model, model, softprompt.prompt_tuning())


def test_heads_that_hide_their_embedding():
    bart = tf.BartForCausalLM(FAMILIES["bart"].config())
    refused(
        "BartForCausalLM (bart) does not say which module embeds its input ids; use another head of this family",
        get_peft_model,
        bart,
        softprompt.prompt_tuning(),
    )


def test_embeddings_narrower_than_the_layers():
    def electra():
        return tf.ElectraModel(tf.ElectraConfig(**SMALL, embedding_size=16, intermediate_size=48)).eval()

    refused(
        "deep prompts need embeddings as wide as the layers, but electra embeds 16 and its layers are 32 wide; train with placement='input'",
        get_peft_model,
        electra(),
        config("deep_prompts"),
    )
    model = get_peft_model(electra(), config("prompt_tuning")).eval()
    rows = tokens(7, 4)
    with torch.no_grad():  # and what the message advises works
        alone = output(model, **batch(rows[1:]))[0]
        close(output(model, **batch(rows))[1, :4], alone)


@pytest.mark.parametrize(
    "other, options, expected, got",
    [
        ("llama", {"hidden_size": 64, "head_dim": 16}, "hidden_size=32", "hidden_size=64"),
        ("llama", {"num_hidden_layers": 2}, "num_layers=3", "num_layers=2"),
        ("qwen2", {}, "backbone_type=llama", "backbone_type=qwen2"),
        ("gpt2", {"n_layer": 1}, "backbone_type=llama, num_layers=3", "backbone_type=gpt2, num_layers=1"),
    ],
)
def test_an_adapter_of_another_backbone(other, options, expected, got, tmp_path):
    model = prompted(LLAMA, "causal_lm", "deep_prompts")
    model.peft_config["default"].base_model_name_or_path = "org/llama"
    model.save_pretrained(tmp_path)
    wrong = tf.AutoModelForCausalLM.from_config(FAMILIES[other].config(**options))
    message = f"this adapter was made for another backbone: expected {expected}, got {got}. It was trained on 'org/llama'. Load it on the backbone it was trained on"
    refused(message, PeftModel.from_pretrained, wrong, tmp_path)


# ---------------------------------------------------------------------- lengths


ABSOLUTE = {"bert": 64, "roberta": 62, "gpt2": 64, "bart": 64}


@pytest.mark.parametrize("name", ABSOLUTE)
def test_absolute_positions(name):
    family, limit = FAMILIES[name], ABSOLUTE[name]
    refused(
        f"num_virtual_tokens={limit} leaves no room for text: {name} has {limit} positions; use a shorter prompt",
        get_peft_model, backbone(family, family.lm), config("prompt_tuning", num_virtual_tokens=limit),
    )  # fmt: skip
    model, fits = prompted(family, family.lm, "ept"), limit - P
    with torch.no_grad():
        out = output(model, **with_decoder(family, family.lm, batch(tokens(fits, 5))))
        alone = output(model, **with_decoder(family, family.lm, batch(tokens(fits, 5)[:1])))
        close(out[:1], alone)
        message = f"{P} virtual tokens and {fits + 1} input tokens need {limit + 1} positions, but {name} has {limit}; cut the input to {fits} tokens (max_length) or shorten the prompt"
        refused(message, model, **with_decoder(family, family.lm, batch(tokens(fits + 1))))


def test_generation_beyond_the_last_position():
    """The prompt takes positions from generation too; GPT-2 would end in an index error of its table."""
    model = prompted(FAMILIES["gpt2"], "causal_lm", "dept")
    room = {"min_new_tokens": 6, "max_new_tokens": 6, "eos_token_id": EOS, "pad_token_id": 1}
    ids = torch.stack(tokens(64 - P - 5))
    assert model.generate(input_ids=ids, **room).shape[1] == 64 - P + 1  # the last token is never read
    longer = torch.stack(tokens(64 - P - 4))
    refused(
        f"{P} virtual tokens and {64 - P + 1} input tokens need 65 positions, but gpt2 has 64",
        model.generate,
        input_ids=longer,
        **room,
    )


# ---------------------------------------------------------------------- forward


def test_neither_ids_nor_embeddings():
    refused(
        "expected input_ids or inputs_embeds, got neither",
        prompted(LLAMA, "causal_lm", "ept"),
        attention_mask=torch.ones(1, 3),
    )


def test_masks_that_are_not_two_dimensional():
    model, ids = prompted(LLAMA, "causal_lm", "ept"), torch.stack(tokens(6))
    message = "soft prompts need a 2-D attention_mask [batch, tokens], got {}; use the dynamic KV cache and leave masking to the model"
    refused(message.format("4-D"), model, input_ids=ids, attention_mask=torch.ones(1, 1, 6, 6))
    refused(message.format("dict"), model, input_ids=ids, attention_mask={"full_attention": torch.ones(1, 1, 6, 6)})


def test_static_cache():
    model = prompted(LLAMA, "causal_lm", "ept")
    refused(
        "soft prompts need the dynamic KV cache, got StaticCache, which has no room for the prompt; drop cache_implementation",
        model.generate,
        **batch(tokens(6)),
        max_new_tokens=3,
        cache_implementation="static",
        pad_token_id=1,
    )


def test_a_kv_cache_of_an_earlier_turn():
    """The cache is P positions longer than the text it stands for, which generate() cannot know."""
    model, first = prompted(LLAMA, "causal_lm", "ept"), torch.stack(tokens(6))
    turn = model.generate(
        input_ids=first, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True, pad_token_id=1
    )
    second = torch.cat([turn.sequences, torch.stack(tokens(9, seed=1))], 1)
    message = "the KV cache holds 12 positions, 4 of them the prompt's, but the call expects {} cached tokens; start the next turn with a fresh cache"
    for mask, expected in ((None, 12), (torch.ones_like(second), 12)):
        refused(
            message.format(expected),
            model.generate,
            input_ids=second,
            attention_mask=mask,
            past_key_values=turn.past_key_values,
            max_new_tokens=3,
            pad_token_id=1,
        )
    refused(
        message.format(5),
        model, input_ids=first[:, :2], attention_mask=torch.ones(1, 7), past_key_values=turn.past_key_values,
    )  # fmt: skip


def test_packed_rows():
    model, ids = prompted(LLAMA, "causal_lm", "ept"), torch.stack(tokens(6, 6))
    message = (
        "position_ids restart inside a row: packed sequences cannot share one prompt; turn packing (padding_free) off"
    )
    refused(message, model, input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    refused(message, model, input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2]]))
    refused(
        message,
        model,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]),
    )
    refused(message, model, input_ids=ids[:, :2], position_ids=torch.tensor([[0, 0]]))  # texts of one token each
    model(input_ids=ids, position_ids=torch.tensor([[3, 4, 5, 6, 7, 8]]))  # an offset is no restart
    for mask, positions in (([0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 2, 3]), ([1, 1, 1, 1, 0, 0], [0, 1, 2, 3, 1, 1])):
        model(input_ids=ids, attention_mask=torch.tensor([mask] * 2), position_ids=torch.tensor([positions] * 2))
    model(input_ids=ids[:, :1], position_ids=torch.tensor([[0]]))


# ---------------------------------------------------------------------- files


def test_reading_what_is_no_prompt(tmp_path):
    refused(
        f"{tmp_path}: expected an adapter's folder with adapter_config.json; there is no such file",
        softprompt.read_prompt,
        tmp_path,
    )
    get_peft_model(backbone(LLAMA, "causal_lm"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    refused(f"{tmp_path}: expected a SOFTPROMPT adapter, got LORA", softprompt.read_prompt, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    refused(
        f"{tmp_path / 'adapter_config.json'}: not a PEFT config: not valid JSON (", softprompt.read_prompt, tmp_path
    )


def test_config_and_weights_of_two_adapters(tmp_path):
    prompted(LLAMA, "causal_lm", "deep_prompts").save_pretrained(tmp_path)
    weights, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "num_virtual_tokens": 9}))
    expected = f"{weights}: embedding: the adapter does not fit this config, backbone and head: expected shape [{LAYERS}, 9, 32], got [{LAYERS}, {P}, 32]"
    refused(expected, softprompt.read_prompt, tmp_path)
    save_file({f"something.else.{key}": torch.ones(1) for key in "ab"}, weights)
    refused(
        f"{weights}: missing tensors: embedding, unexpected tensors: none; expected those of a SOFTPROMPT adapter (prompt='plain', placement='deep'); copy or train it again.",
        softprompt.read_prompt,
        tmp_path,
    )
    weights.write_bytes(b"no tensors")
    refused(f"{weights}: cannot be read (", softprompt.read_prompt, tmp_path)


def test_active_prompt_of_other_models():
    refused(
        "expected a PEFT model with a soft prompt, got LlamaForCausalLM",
        softprompt.active_prompt,
        backbone(LLAMA, "causal_lm"),
    )
    lora = get_peft_model(backbone(LLAMA, "causal_lm"), LoraConfig(target_modules=["q_proj"]))
    refused("expected a PEFT model with a soft prompt, got PeftModel", softprompt.active_prompt, lora)


def test_collapse_and_export_refusals(tmp_path):
    # constant rows, but mixed with what the layers put out
    gated = get_peft_model(backbone(LLAMA, "causal_lm"), SoftPromptConfig(placement="gated", task_type="CAUSAL_LM"))
    refused("a gated prompt mixes its rows with what the layers put out; choose layers", softprompt.collapse, gated)
    model = prompted(LLAMA, "causal_lm", "ept")
    refused("adapter 'default' exists already; pass another adapter_name", softprompt.collapse, model, "default")
    softprompt.active_prompt(model)[0].depends_on_input = True  # as an instance-aware prompt would declare
    refused(
        "a prompt that depends on the input has no constant form; it cannot be collapsed", softprompt.collapse, model
    )
    refused(
        "a prompt that depends on the input cannot be exported as a constant prefix",
        softprompt.export_prompt_tuning,
        model,
        tmp_path,
    )


def test_every_refusal_of_these_floors_is_provoked_here_or_beside():
    """A new `raise SoftPromptError` in prompts, tuner or methods needs a test that matches its message."""
    import ast
    from pathlib import Path

    root, here = Path(softprompt.__file__).parent, Path(__file__).parents[1]
    tests = "".join(path.read_text() for path in here.rglob("test_*.py"))
    for path in [p for floor in ("prompts", "objectives", "tuner", "methods") for p in (root / floor).glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "SoftPromptError":
                message = node.args[0]
                texts = (
                    [part.value for part in message.values if isinstance(part, ast.Constant)]
                    if isinstance(message, ast.JoinedStr)
                    else [message.value]
                )
                words = [text.strip(" .:;,()'")[:30] for text in texts]
                assert any(word in tests for word in words if len(word) > 10), (
                    f"{path.name}:{node.lineno}: no test matches {texts}"
                )
