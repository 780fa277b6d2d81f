"""A compiled prompt: keys and values on disk, read without their making, with equal outputs."""

import hashlib

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

import softprompt
from house import families as f
from house.models import widths
from softprompt import SoftPromptError
from softprompt.tuner.placing.mixture import BASE
from softprompt.tuner.saved.fingerprint import SAMPLE, add_weights

CASES = [(family, "causal_lm", method) for family in f.DECODERS for method in ("prompt_tuning", "deep_prompts", "ept")]
CASES += [(f.FAMILIES[name], head, "deep_prompts") for name in ("bert", "roberta") for head in ("seq_cls", "masked_lm")]
WINDOWED = ("gemma3", "gpt-oss", "modernbert-decoder")
QUIET = {"max_new_tokens": 5, "pad_token_id": f.PAD, "eos_token_id": None, "do_sample": False}


@pytest.mark.parametrize("family, head, method", CASES, ids=str)
@torch.no_grad()
def test_outputs_are_equal_and_nothing_is_made(family, head, method, tmp_path):
    if family.name == "gemma4":
        pytest.skip("its layers keep keys of two shapes; refused below")
    model, inputs = f.prompted(family, head, method), f.batch(f.tokens(9, 4, 6))
    wanted = [model(**inputs).logits, model(**f.batch(f.tokens(7))).logits]
    left, text = f.batch(f.tokens(9, 4, 6), "left"), None
    if family.kind == "decoder" and family.name not in WINDOWED:
        text = model.generate(**left, num_beams=2, **QUIET)
    softprompt.compile(model)
    model.save_pretrained(tmp_path, selected_adapters=["compiled"])
    loaded = PeftModel.from_pretrained(f.backbone(family, head), tmp_path / "compiled").eval()
    assert {key.rsplit(".", 1)[1] for key in f.prompt_parameters(loaded)} - {"delta"} == {"keys", "values"}
    real = inputs["attention_mask"] != 0 if wanted[0].dim() == 3 else ...
    for one in (model, loaded):
        seen = widths(one)
        f.close(one(**inputs).logits[real], wanted[0][real])
        assert seen == [(3, 9)], "no position of the prompt runs"
        f.close(one(**f.batch(f.tokens(7))).logits, wanted[1])
        if text is not None:
            assert torch.equal(one.generate(**left, num_beams=2, **QUIET), text)


@torch.no_grad()
def test_compiled_prompts_of_any_length_and_others_in_one_batch():
    for family in (f.LLAMA, f.GPT2, f.FAMILIES["gemma3"], f.BERT):
        head = "causal_lm" if family.kind == "decoder" else "seq_cls"
        model = None
        for name, count in (("a", 3), ("b", 6), ("c", 4)):
            config = f.config("deep_prompts", head, num_virtual_tokens=count)
            model = get_peft_model(f.backbone(family, head), config, name) if model is None else model
            if name != "a":
                model.add_adapter(name, config)
        f.stir(model).eval()
        for name in ("a", "b"):
            model.set_adapter(name)
            softprompt.compile(model, f"{name} compiled")
        rows, names = f.batch(f.tokens(5, 9, 7, 4, 6, 8)), ["a", "b", "c", BASE, "b", "a"]
        fast = [f"{name} compiled" if name in "ab" else name for name in names]
        seen = widths(model)
        got = model(**rows, adapter_names=fast).logits
        assert seen == [(1, 4), (6, 9)], "only c is made"
        f.close(got, model(**rows, adapter_names=names).logits, 2e-5)


@torch.no_grad()
def test_a_compiled_prompt_on_other_weights_or_in_another_dtype_is_refused(tmp_path):
    model = softprompt.compile(f.prompted(f.LLAMA, "causal_lm", "deep_prompts"))
    model.save_pretrained(tmp_path, selected_adapters=["compiled"])
    other = f.backbone(f.LLAMA, "causal_lm")
    other.model.layers[1].mlp.down_proj.weight += 0.01
    for base in (other, f.backbone(f.LLAMA, "causal_lm").to(torch.bfloat16)):
        with pytest.raises(
            SoftPromptError, match="this prompt was compiled for other weights, or for another dtype: expected"
        ):
            PeftModel.from_pretrained(base, tmp_path / "compiled")


@torch.no_grad()
def test_the_same_weights_used_otherwise_are_other_weights(tmp_path):
    """The rotation of positions and the norms stand in the config alone."""
    model = softprompt.compile(f.prompted(f.LLAMA, "causal_lm", "deep_prompts"))
    model.save_pretrained(tmp_path, selected_adapters=["compiled"])
    for change in ({"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}, {"rms_norm_eps": 0.1}):
        other = AutoModelForCausalLM.from_config(f.LLAMA.config(**change))
        other.load_state_dict(f.backbone(f.LLAMA, "causal_lm").state_dict())
        with pytest.raises(SoftPromptError, match="this prompt was compiled for other weights"):
            PeftModel.from_pretrained(other, tmp_path / "compiled")


def test_parts_of_the_backbone_in_the_adapter_are_not_compiled():
    model = f.prompted(f.LLAMA, "causal_lm", "deep_prompts", modules_to_save=["input_layernorm"])
    with pytest.raises(SoftPromptError, match="the adapter has parts of the backbone of its own"):
        softprompt.compile(model)


def test_under_autocast_keys_and_values_are_those_of_the_backbone():
    model = f.prompted(f.LLAMA, "causal_lm", "deep_prompts")
    with torch.autocast("cpu", torch.bfloat16):
        reduced = softprompt.compile(model)
    whole = softprompt.compile(f.prompted(f.LLAMA, "causal_lm", "deep_prompts"))
    assert torch.equal(softprompt.active_prompt(reduced)[0].keys, softprompt.active_prompt(whole)[0].keys)


def test_in_bfloat16_it_is_that_of_the_backbone():
    base = f.backbone(f.LLAMA, "causal_lm").to(torch.bfloat16)
    model, inputs = f.stir(get_peft_model(base, f.config("deep_prompts", "causal_lm"))).eval(), f.batch(f.tokens(9, 9))
    with torch.no_grad():
        want = model(**inputs).logits
        assert torch.equal(softprompt.compile(model)(**inputs).logits, want)


def test_what_has_no_compiled_form():
    for family, head, method, options, message in (
        (
            f.LLAMA,
            "causal_lm",
            "instance",
            {},
            "this prompt has no keys and values that hold for every text: the prompt reads the input",
        ),
        (f.LLAMA, "causal_lm", "deep_late", {}, "layers below the prompt's first one must not see it"),
        (f.BERT, "seq_cls", "prompt_tuning", {}, r"in an encoder deep_prompts"),
        (f.T5, "seq2seq_lm", "deep_prompts", {}, "in t5 the prompt's states depend on the text behind it"),
        (
            f.FAMILIES["gemma4"],
            "causal_lm",
            "deep_prompts",
            {},
            "layers of gemma4_text keep keys and values of different shapes",
        ),
        (
            f.FAMILIES["gemma3"],
            "causal_lm",
            "deep_prompts",
            {"num_virtual_tokens": 9},
            "gemma3_text has windows shorter than the prompt's 9",
        ),
    ):
        model = f.prompted(family, head, method, **options)
        with pytest.raises(SoftPromptError, match=message):
            softprompt.compile(model)
        assert list(model.peft_config) == ["default"]
    model = f.prompted(f.LLAMA, "causal_lm", "prompt_tuning")
    with pytest.raises(SoftPromptError, match="adapter 'default' exists already; pass another adapter_name"):
        softprompt.compile(model, "default")
    softprompt.compile(model)
    with pytest.raises(SoftPromptError, match="the active prompt is compiled already"):
        softprompt.compile(model, "again")


def test_a_call_that_cannot_read_keys_and_values_says_so():
    inputs = f.batch(f.tokens(6, 4), "left")
    for name, call, message in (
        (
            "llama",
            {"output_attentions": True},
            "a compiled prompt is read as keys and values, and here they cannot be: the call wants attention weights",
        ),
        ("llama", {"past_key_values": "static"}, "soft prompts need the dynamic KV cache"),
        ("llama", {"past_key_values": "full"}, "the KV cache holds|the call brings a cache of its own"),
        (
            "llama",
            {"position_ids": torch.arange(3, 9).expand(2, -1)},
            "its positions do not start where the family's own do",
        ),
        ("gemma3", {}, "padding on the left would stand between prompt and text, in the windows of gemma3_text"),
    ):
        model = softprompt.compile(f.prompted(f.FAMILIES[name], "causal_lm", "deep_prompts"))
        call = dict(call)
        if call.get("past_key_values") == "static":
            call["past_key_values"] = StaticCache(config=model.config, max_cache_len=32)
        elif call.get("past_key_values") == "full":
            cache = DynamicCache(config=model.config)
            for layer in range(f.LAYERS):
                cache.update(torch.zeros(2, 2, 2, 8), torch.zeros(2, 2, 2, 8), layer)
            call["past_key_values"] = cache
        with pytest.raises(SoftPromptError, match=message):
            model(**inputs, **call)
    with torch.no_grad():  # nothing is kept, so padding moves behind the text
        assert model(**inputs, use_cache=False).logits.shape[:2] == (2, 6)


def test_a_compiled_prompt_has_no_virtual_tokens_to_look_at():
    model = softprompt.compile(f.prompted(f.LLAMA, "causal_lm", "deep_prompts"))
    prompt = softprompt.active_prompt(model)[0]
    message = "a compiled prompt holds keys and values, no virtual tokens; take the adapter that it was compiled from"
    with pytest.raises(SoftPromptError, match=message):
        prompt()
    with pytest.raises(SoftPromptError, match=message):
        softprompt.collapse(model)
    with pytest.raises(SoftPromptError, match=message):
        softprompt.prompts_of(model).observe(model, frozenset(), **f.batch(f.tokens(6, 4)))
    with pytest.raises(SoftPromptError, match="a compiled prompt starts from nothing but a prompt"):
        prompt.start_from(torch.zeros(1, 4, f.HIDDEN))
    with pytest.raises(SoftPromptError, match="prompt='compiled' needs kv_heads and head_dim above 0, got 0 and 0"):
        softprompt.SoftPromptConfig(prompt="compiled", placement="deep")


def test_a_compiled_prompt_trains_as_keys_and_values():
    model = softprompt.compile(f.prompted(f.LLAMA, "causal_lm", "deep_prompts")).train()
    model.set_requires_grad("compiled", True)
    inputs = f.batch(f.tokens(6, 4))
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    grads = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert len(grads) == 2 and all(grad is not None and grad.any() for grad in grads.values())


def test_a_fingerprint_reads_to_the_end_of_the_weights() -> None:
    found = []
    for last in (0.0, 1.0):
        weights, digest = torch.zeros(4, SAMPLE), hashlib.sha256()
        weights[-1] = last
        add_weights(digest, [("w", weights)])
        found.append(digest.hexdigest())
    assert found[0] != found[1]
