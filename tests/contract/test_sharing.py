"""A shared prefix changes nothing but the time: loss, outputs and gradients equal the pass where every row holds the prompt."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import TrainingArguments
from transformers.cache_utils import DynamicLayer

import softprompt
from house import families as f
from house.batches import with_labels
from house.models import widths
from softprompt.training import PromptTrainer
from softprompt.tuner.passes.prefix import CACHED_ENCODERS, LEAST_SHARE, why_not

SHARING = ("prompt_tuning", "deep_prompts", "dept", "ept", "infoprompt", "tsloss")


LENGTHS = (9, 3, 6)


def step(model: PeftModel, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    out = model(**inputs)
    out.loss.backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return out.loss.detach(), out.logits.detach(), grads


def both(
    family: f.Family, head: str, method: str, inputs: dict[str, Any], dtype: torch.dtype = torch.float32, **options
):
    """One training step with and without the shared prefix; asserts that it was really shared, and only when it should be."""
    found, attention = [], options.pop("attention", None)
    for shared in (True, False):
        model = f.prompted(family, head, method, shared_prefix=shared, **options).train()
        if attention is not None:
            model.base_model.model.set_attn_implementation(attention)
        for name, part in model.base_model.model.named_children():
            if name != "softprompt" and head == "causal_lm":  # a head over classes stays as it is
                part.to(dtype)
        model.base_model.state.backbone.stack.to(dtype)
        seen = widths(model)
        rows, tokens = inputs["attention_mask"].shape
        torch.manual_seed(0)  # negatives are drawn
        states = {"unprompted": torch.ones(rows, f.HIDDEN)} if method == "infoprompt" else {}
        found.append(step(model, {**inputs, **states}))
        prompt = model.base_model.state.active_prompt().num_virtual_tokens
        assert seen == ([(1, prompt), (rows, tokens)] if shared else [(rows, prompt + tokens)])
    return found


def compare(found: Any, inputs: dict[str, Tensor], tolerance: float) -> None:
    (loss, logits, grads), (slow_loss, slow_logits, slow_grads) = found
    f.close(loss, slow_loss, tolerance)
    real = inputs["attention_mask"] != 0
    if logits.shape[:2] == real.shape:
        logits, slow_logits = logits[real], slow_logits[real]
    f.close(logits.float(), slow_logits.float(), tolerance)
    assert grads.keys() == slow_grads.keys() and grads
    for key, grad in grads.items():
        scale = slow_grads[key].abs().max().clamp(min=1e-3)
        f.close(grad / scale, slow_grads[key] / scale, tolerance)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", SHARING)
@pytest.mark.parametrize("family", f.DECODERS, ids=str)
def test_loss_logits_and_gradients_equal_the_slow_path(family, method, side):
    inputs = with_labels(f.batch(f.tokens(*LENGTHS), side))
    compare(both(family, "causal_lm", method, inputs), inputs, 2e-5)


@pytest.mark.parametrize("method", ["prompt_tuning", "deep_prompts", "ept"])
@pytest.mark.parametrize("family", f.DECODERS, ids=str)
def test_in_bfloat16_they_are_equal_to_its_rounding(family, method):
    inputs = with_labels(f.batch(f.tokens(*LENGTHS)))
    found = both(family, "causal_lm", method, inputs, torch.bfloat16)
    (loss, logits, grads), (slow_loss, slow_logits, slow_grads) = found
    f.close(loss, slow_loss, 2e-2)
    real = inputs["attention_mask"] != 0
    assert (logits - slow_logits)[real].float().abs().mean() < 0.02 * slow_logits[real].float().abs().mean()
    for key, grad in grads.items():
        assert torch.cosine_similarity(grad.flatten(), slow_grads[key].flatten(), 0) > 0.995, key


@pytest.mark.parametrize("family", [x for x in f.DECODERS if "seq_cls" in x.heads], ids=str)
def test_a_classifier_on_a_causal_stack(family):
    for side in ("right", "left"):
        inputs = with_labels(f.batch(f.tokens(*LENGTHS), side), "seq_cls")
        compare(both(family, "seq_cls", "deep_prompts", inputs), inputs, 2e-5)


CACHED = [family for kind, family in {**f.FAMILIES, **f.RELATIVES}.items() if kind in CACHED_ENCODERS]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", CACHED, ids=str)
def test_an_encoder_reads_a_prompt_of_every_layer_as_keys_and_values(family, side, attention):
    assert {family.name for family in CACHED} == CACHED_ENCODERS
    for head in ("seq_cls", "token_cls", "masked_lm"):
        inputs = with_labels(f.batch(f.tokens(*LENGTHS), side), head)
        if head == "token_cls":
            inputs["labels"] = torch.where(inputs["labels"] < 0, -100, inputs["labels"] % 3)
        compare(both(family, head, "deep_prompts", inputs, attention=attention), inputs, 2e-5)


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(f.DECODERS),
    method=st.sampled_from(SHARING),
    lengths=st.lists(st.integers(2, 13), min_size=2, max_size=5),
    prompt=st.integers(2, 12),
    side=st.sampled_from(["left", "right"]),
    seed=st.integers(0, 99),
)
def test_any_lengths_any_padding_any_prompt(family, method, lengths, prompt, side, seed):
    inputs = with_labels(f.batch(f.tokens(*lengths, seed=seed), side))
    rows = len(lengths)
    if (rows - 1) * prompt < LEAST_SHARE * rows * (prompt + max(lengths)):
        return
    compare(both(family, "causal_lm", method, inputs, num_virtual_tokens=prompt), inputs, 5e-5)


def test_a_prompt_in_some_layers_that_mixes():
    """A hard tau mixes with what stood at the prompt positions; objectives read rows and tokens of every layer."""
    terms = [softprompt.objective("ts_loss", layers=[0, 2]), softprompt.objective("head_information")]
    for family in f.DECODERS:
        inputs = with_labels(f.batch(f.tokens(*LENGTHS), "left"))
        found = both(family, "causal_lm", "deep_prompts", inputs, layers=[0, 2], tau=0.5, objectives=terms)
        compare(found, inputs, 2e-5)


def test_what_an_objective_sees_is_the_same():
    inputs = with_labels(f.batch(f.tokens(*LENGTHS), "left"))
    shown = []
    for shared in (True, False):
        model = f.prompted(f.FAMILIES["llama"], "causal_lm", "deep_prompts", shared_prefix=shared).train()
        shown.append(model.base_model.state.observe(model, frozenset({"unprompted"}), **inputs))
    fast, slow = shown
    assert fast.virtual.keys() == slow.virtual.keys() == {0, 1, 2}
    for layer, tokens in fast.virtual.items():
        f.close(tokens, slow.virtual[layer])
    real = inputs["attention_mask"] != 0
    f.close(fast.tokens[real], slow.tokens[real])
    f.close(fast.representation, slow.representation)
    f.close(fast.unprompted, slow.unprompted)
    assert torch.equal(fast.real, slow.real)


def test_given_positions_and_token_types():
    """Positions that start at 0 are kept; token types go with their tokens."""
    for side in ("right", "left"):
        inputs = with_labels(f.batch(f.tokens(*LENGTHS), side))
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        for name in ("gpt2", "llama"):
            given_types = {"token_type_ids": (inputs["input_ids"] % 2)} if name == "gpt2" else {}
            compare(both(f.FAMILIES[name], "causal_lm", "prompt_tuning", {**inputs, **given_types}), inputs, 2e-5)


def test_positions_that_start_elsewhere_take_the_slow_path():
    inputs = with_labels(f.batch(f.tokens(6, 6)))
    positions = torch.arange(6).expand(2, -1) + torch.tensor([[0], [3]])
    model = f.prompted(f.FAMILIES["llama"], "causal_lm", "prompt_tuning")
    seen = widths(model)
    model(**inputs, position_ids=positions)
    assert seen == [(2, 6 + f.P)]


def test_hidden_states_and_tuples_are_those_of_the_tokens():
    for family in f.DECODERS:
        inputs = f.batch(f.tokens(*LENGTHS))
        outs = []
        for shared in (True, False):
            model = f.prompted(family, "causal_lm", "prompt_tuning", shared_prefix=shared)
            outs.append(model(**inputs, output_hidden_states=True, return_dict=False, use_cache=False))
        assert len(outs[0]) == len(outs[1]) == 2
        for fast, slow in zip(outs[0][1], outs[1][1], strict=True):
            real = inputs["attention_mask"] != 0
            f.close(fast[real], slow[real], 2e-5)


def test_a_returned_cache_goes_on_as_the_slow_one():
    """Reading on by hand from what a pass returned; padding on the left stays between prompt and text, where no window counts it."""
    for family in f.DECODERS:
        for side in ("right", "left"):
            nexts = []
            for shared in (True, False):
                model = f.prompted(family, "causal_lm", "prompt_tuning", shared_prefix=shared)
                inputs = f.batch(f.tokens(5, 5) if side == "right" else f.tokens(5, 3), side)
                seen = widths(model)
                out = model(**inputs, use_cache=True)
                windows = family.name in ("gemma3", "gemma4", "gpt-oss", "modernbert-decoder")
                assert len(seen) == (1 if not shared or (side == "left" and windows) else 2)
                longer = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                nexts.append(model(input_ids=token, attention_mask=longer, past_key_values=out.past_key_values).logits)
            f.close(nexts[0], nexts[1], 2e-5)


def test_without_use_cache_none_is_returned():
    inputs = f.batch(f.tokens(5, 5))
    for family in f.DECODERS:
        model = f.prompted(family, "causal_lm", "prompt_tuning")
        assert model(**inputs, use_cache=False).get("past_key_values") is None
        left = f.batch(f.tokens(5, 3), "left")
        assert model.train()(**left).get("past_key_values") is None  # its padding stands behind the tokens


def test_attention_weights_keep_their_columns():
    model = f.prompted(f.FAMILIES["llama"], "causal_lm", "prompt_tuning")
    model.base_model.model.set_attn_implementation("eager")
    out = model(**f.batch(f.tokens(5, 5)), output_attentions=True)
    assert out.attentions[0].shape[-2:] == (f.P + 5, f.P + 5)


def test_generate_shares_too():
    """Also where padding on the left stands between prompt and text."""
    model = f.prompted(f.FAMILIES["llama"], "causal_lm", "prompt_tuning")
    seen = widths(model)
    model.generate(**f.batch(f.tokens(5, 3), "left"), max_new_tokens=2, do_sample=False)
    assert seen == [(1, f.P), (2, 5), (2, 1)]


def test_one_row_shares_with_nobody():
    model = f.prompted(f.FAMILIES["llama"], "causal_lm", "prompt_tuning")
    seen = widths(model)
    model(**f.batch(f.tokens(5)))
    assert seen == [(1, f.P + 5)]


@pytest.mark.parametrize(
    ("family", "head", "method", "options", "reason"),
    [
        ("llama", "causal_lm", "prompt_tuning", {"shared_prefix": False}, "switched off"),
        ("llama", "causal_lm", "spt_all", {}, "the prompt reads the input"),
        ("llama", "causal_lm", "deep_late", {}, "layers below the prompt's first one must not see it"),
        ("llama", "causal_lm", "prompt_tuning", {}, "shared prefix: the rows of a batch share"),
    ],
)
def test_the_choice_is_announced_once_with_its_reason(family, head, method, options, reason, caplog):
    model = f.prompted(f.FAMILIES[family], head, method, **options).train()
    inputs = with_labels(f.batch(f.tokens(5, 4)))
    with caplog.at_level(logging.INFO, "softprompt"):
        model(**inputs)
        model(**inputs)
    assert sum(reason in record.message for record in caplog.records) == 1


def test_gates_that_are_being_learned_are_not_shared(caplog):
    config = softprompt.SoftPromptConfig(placement="gated", num_virtual_tokens=f.P, task_type="CAUSAL_LM")
    model = get_peft_model(f.backbone(f.FAMILIES["llama"], "causal_lm"), config).train()
    with caplog.at_level(logging.INFO, "softprompt"):
        model(**with_labels(f.batch(f.tokens(5, 4))))
    assert "no shared prefix: a gate that is being learned mixes the prompt with the input" in caplog.text


def test_a_causal_stack_without_a_cache_or_with_other_states_is_left_alone(monkeypatch):
    """Recurrent or compressed states cannot be shown to other rows as keys and values can."""
    state = f.prompted(f.FAMILIES["llama"], "causal_lm", "prompt_tuning").base_model.state
    prompt = state.active_prompt()
    assert why_not(state.backbone, prompt) is None
    without = replace(state.backbone, argument_names=("input_ids", "attention_mask"))
    assert why_not(without, prompt) == "llama keeps no keys and values"
    other = SimpleNamespace(layers=[DynamicLayer(), type("LinearAttentionLayer", (DynamicLayer,), {})()])
    monkeypatch.setattr("softprompt.tuner.passes.prefix.new_cache", lambda backbone: other)
    assert "llama has layers whose state is more than keys" in why_not(state.backbone, prompt)


def test_an_encoder_says_nothing_about_it(caplog):
    model = f.prompted(f.FAMILIES["bert"], "seq_cls", "prompt_tuning").train()
    with caplog.at_level(logging.INFO, "softprompt"):
        model(**f.batch(f.tokens(5, 4)), labels=torch.tensor([0, 1]))
    assert "shared prefix" not in caplog.text


def test_gradient_checkpointing_switches_it_off(caplog):
    inputs = with_labels(f.batch(f.tokens(*LENGTHS)))
    found = []
    for checkpointing in (True, False):
        model = f.prompted(f.FAMILIES["llama"], "causal_lm", "deep_prompts").train()
        if checkpointing:
            model.base_model.model.gradient_checkpointing_enable()
        with caplog.at_level(logging.INFO, "softprompt"):
            found.append(step(model, inputs))
    assert "gradient checkpointing keeps no keys and values" in caplog.text
    compare(found, inputs, 2e-5)


def test_two_passes_before_one_backward():
    """As preference losses run them: the graphs of two passes of the same prompt do not disturb each other."""
    first, second = with_labels(f.batch(f.tokens(7, 5))), with_labels(f.batch(f.tokens(4, 6, seed=1), "left"))
    grads = []
    for shared in (True, False):
        model = f.prompted(f.FAMILIES["gpt2"], "causal_lm", "ept", shared_prefix=shared).train()
        (model(**first).loss - 2 * model(**second).loss).backward()
        grads.append({k: p.grad for k, p in f.prompt_parameters(model).items()})
    for key, grad in grads[0].items():
        f.close(grad, grads[1][key], 2e-5)


def test_accumulated_steps_of_the_trainer_end_at_the_same_prompt(tmp_path):
    from datasets import Dataset

    rows = [
        {key: value[0].tolist() for key, value in with_labels(f.batch([row])).items()} for row in f.tokens(*[6] * 8)
    ]
    ends = []
    for shared in (True, False):
        model = f.prompted(f.FAMILIES["llama"], "causal_lm", "prompt_tuning", shared_prefix=shared)
        arguments = TrainingArguments(
            str(tmp_path / str(shared)),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=3,
            learning_rate=1e-2,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        trainer = PromptTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows))
        trainer.train()
        ends.append({k: p.detach().clone() for k, p in f.prompt_parameters(model).items()})
    for key, value in ends[0].items():
        f.close(value, ends[1][key], 1e-4)


@torch.no_grad()
def test_a_prompt_in_an_encoder_that_mixes_is_not_shared() -> None:
    """With tau below 1 its states are those of each row."""
    inputs = f.batch(f.tokens(9, 3, 6))
    found = [
        f.prompted(f.BERT, "seq_cls", "deep_prompts", tau=0.5, shared_prefix=shared)(**inputs).logits
        for shared in (True, False)
    ]
    f.close(*found, 2e-5)
