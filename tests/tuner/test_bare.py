"""States of the unprompted pass: those of the bare backbone, in any batch, once."""

import logging

import pytest
import torch
import transformers as tf
from peft import get_peft_model
from torch import nn

import softprompt
from house.batches import training_batch
from house.families import (
    BERT,
    GPT2,
    HIDDEN,
    LLAMA,
    NO_DROPOUT,
    PAD,
    SIZES,
    T5,
    VOCAB,
    P,
    backbone,
    batch,
    close,
    config,
    prompted,
    stir,
    tokens,
)
from house.models import attached, gradients, infoprompt, passed, passes, state_of, verbalized
from house.runs import told_of_states
from softprompt import objective

SIDES = ("left", "right")


LANGUAGE = [(BERT, "seq_cls"), (LLAMA, "causal_lm"), (T5, "seq2seq_lm")]


@pytest.mark.parametrize("generator", ["free", "instance"])
@pytest.mark.parametrize("family, head", LANGUAGE, ids=str)
def test_given_states_equal_the_pass_they_stand_for(family, head, generator, caplog):
    caplog.set_level(logging.INFO, logger="softprompt")
    model = attached(backbone(family, head), infoprompt(head, generator=generator))
    inputs = training_batch(family, head)
    given = {**inputs, "unprompted": state_of(model).bare_states(inputs)}
    loss, found = gradients(model, given)
    assert told_of_states(caplog) == []
    expected_loss, expected = gradients(model, inputs)
    gradients(model, inputs)
    (said,) = told_of_states(caplog)  # once, not at every step
    assert "the data has no column 'unprompted'" in said
    close(loss, expected_loss, 1e-6)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        close(gradient, expected[key], 1e-6)
    other = passed(model, {**inputs, "unprompted": torch.randn(2, HIDDEN)})  # and they are what is read
    assert (other.loss - loss).abs() > 1e-3
    assert torch.equal(other.logits, passed(model, given).logits) == (generator == "free")


def test_given_states_cost_no_pass_and_their_lack_one():
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls"))
    inputs, count = training_batch(BERT, "seq_cls"), passes(model)
    model(**inputs, unprompted=torch.zeros(2, HIDDEN))
    assert len(count) == 1
    model(**inputs)
    assert len(count) == 3


def test_an_instance_prompt_shares_its_states_with_the_objectives():
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls", generator="instance"))
    inputs, count = training_batch(BERT, "seq_cls"), passes(model)
    model(**inputs)
    assert len(count) == 2


def test_a_step_without_an_objective_runs_no_second_pass():
    added = [objective("latent_divergence", every=4)]
    model = attached(backbone(BERT, "seq_cls"), softprompt.prompt_tuning(P, task_type="SEQ_CLS", objectives=added))
    inputs, count = training_batch(BERT, "seq_cls"), passes(model)
    state_of(model).objectives["default"].step = 1
    assert "objectives" not in model(**inputs)
    assert len(count) == 1


def test_the_unprompted_pass_keeps_no_graph():
    """Gradient checkpointing lets embeddings require gradients; the second pass is detached, so its graph is waste."""
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls"))
    model.enable_input_require_grads()
    found = []
    state_of(model).backbone.layers[0].register_forward_hook(
        lambda _, __, out: found.append(first_of(out).requires_grad)
    )
    model(**training_batch(BERT, "seq_cls"))
    assert found == [True, False]


def first_of(out):
    return out[0] if isinstance(out, tuple) else out


def bare_by_hand(family, head, ids, how):
    """The bare stack on one row alone, pooled without a mask."""
    model = backbone(family, head)
    stack = model.get_encoder() if family.kind == "encoder_decoder" else model.base_model
    hidden = stack(input_ids=ids[None]).last_hidden_state[0]
    return {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[how]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("how", ["mean", "cls", "last"])
@pytest.mark.parametrize(
    "family, head", [(BERT, "seq_cls"), (GPT2, "seq_cls"), (LLAMA, "seq_cls"), (T5, "token_cls")], ids=str
)
@torch.no_grad()
def test_states_are_the_bare_backbones_in_any_batch(family, head, how, side):
    rows = tokens(9, 5, 2)
    model = attached(backbone(family, head), infoprompt(head, representation=how))
    found = state_of(model).bare_states(batch(rows, side))
    close(found, torch.stack([bare_by_hand(family, head, row, how) for row in rows]))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", [GPT2, LLAMA], ids=str)
@torch.no_grad()
def test_a_causal_language_models_state_is_that_of_its_last_source_token(family, side):
    rows = tokens(9, 5)
    inputs = training_batch(family, "causal_lm", side=side)
    model = attached(backbone(family, "causal_lm"), infoprompt("causal_lm"))
    expected = torch.stack([bare_by_hand(family, "causal_lm", row[:3], "last") for row in rows])
    close(state_of(model).bare_states(inputs), expected)
    unlabelled = {k: v for k, v in inputs.items() if k != "labels"}
    whole = torch.stack([bare_by_hand(family, "causal_lm", row, "last") for row in rows])
    close(state_of(model).bare_states(unlabelled), whole)


@torch.no_grad()
def test_the_state_at_the_mask():
    base, inputs = verbalized({"x": "good", "y": "bad"})
    model = attached(base, infoprompt("masked_lm"))
    ids, real = inputs["input_ids"], inputs["attention_mask"] != 0
    found = state_of(model).bare_states(inputs)
    with model.disable_adapter():
        for row, state in enumerate(found):
            hidden = base.base_model(input_ids=ids[row][real[row]][None]).last_hidden_state[0]
            close(state, hidden[(ids[row][real[row]] == base.mask_token_id).nonzero().item()])


@torch.no_grad()
def test_states_are_without_dropout_in_training():
    base = backbone(BERT, "seq_cls")
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model, rows = attached(base, infoprompt("seq_cls", representation="mean")), tokens(9, 9)
    inputs = {**batch(rows), "labels": torch.tensor([0, 1])}
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    expected = torch.stack([bare_by_hand(BERT, "seq_cls", row, "mean") for row in rows])
    close(state_of(model).bare_states(inputs), expected)
    assert all(module.training for module in model.modules())
    seen = {}
    state_of(model).objectives["default"].register_forward_pre_hook(
        lambda _, args: seen.update(bare=args[0].unprompted)
    )
    model(**inputs)
    close(seen["bare"], expected)


@torch.no_grad()
def test_inside_generate_positions_start_where_the_table_does():
    """RoBERTa's table starts behind its padding row, and generate counts from 0; the state is that of training."""
    torch.manual_seed(0)
    options = {**SIZES, **NO_DROPOUT, "vocab_size": VOCAB, "pad_token_id": PAD, "is_decoder": True}
    base = tf.AutoModelForCausalLM.from_config(tf.RobertaConfig(**options))
    model = stir(get_peft_model(base, config("instance", "causal_lm"))).eval()
    inputs, given = batch(tokens(9, 5), "left"), []
    prompt = state_of(model).active_prompt()
    read = prompt.read
    prompt.read = lambda prefix, site, state, real: given.append(state[:, 0]) or read(prefix, site, state, real)
    model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=PAD)
    close(given[0], state_of(model).bare_states(inputs), 1e-6)


@torch.no_grad()
def test_a_model_that_is_its_own_stack_can_be_observed():
    model, inputs = prompted(BERT, "base", "instance"), batch(tokens(9, 5))
    seen = state_of(model).observe(model.get_base_model(), frozenset({"unprompted"}), **inputs)
    close(seen.unprompted, state_of(model).bare_states(inputs), 1e-6)
    hidden = model(**inputs).last_hidden_state
    close(
        seen.representation,
        (hidden * inputs["attention_mask"][..., None]).sum(1) / inputs["attention_mask"].sum(1, True),
    )
