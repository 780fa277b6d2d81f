"""Contract: label-only logits: few rows reach the vocabulary, and no loss and no gradient tells."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, inject_adapter_in_model

import softprompt
from house.families import (
    BERT,
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    FAMILIES,
    HIDDEN,
    LLAMA,
    METHODS,
    T5,
    backbone,
    batch,
    close,
    config,
    prompted,
    stir,
    tokens,
)
from house.models import of, rows_seen, training
from softprompt.objectives import Objective, ObjectiveSet
from softprompt.tuner import find_state
from softprompt.tuner.calls.labelled import scored_positions

LANGUAGE_MODELS = [*DECODERS, *ENCODERS, *ENCODER_DECODERS]


SCORED = 4


def some_labels(family, side="right"):
    """A batch with four scored positions: three in the first row, none in the second, one in the third."""
    inputs = batch(tokens(9, 5, 7), side)
    if family.kind == "encoder_decoder":
        labels = torch.stack(tokens(6, 6, 6, seed=1))
        labels[0, 3:], labels[1], labels[2, 1:] = -100, -100, -100
        return {**inputs, "labels": labels}
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, count in ((0, 3), (2, 1)):
        chosen = inputs["attention_mask"][row].nonzero().flatten()[-count:]
        labels[row, chosen] = inputs["input_ids"][row, chosen]
    if family.kind == "decoder":
        labels[1, 0] = 7  # nothing predicts the first token
    return {**inputs, "labels": labels}


def run(model, inputs, loss_only):
    model.zero_grad()
    torch.manual_seed(0)  # objectives draw noise
    with find_state(model).loss_only(loss_only):
        out = model(**inputs)
    out.loss.backward()
    return out, {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def check_equal(model, inputs, scored=SCORED, tolerance=1e-5):
    """All rows and few: equal losses and gradients. Where labels shift, the last of the few predicts nothing."""
    seen, before = rows_seen(model), inputs["labels"].clone()
    whole, expected = run(model, inputs, False)
    few, got = run(model, inputs, True)
    assert seen == [before.numel(), scored + (scored > 0 and find_state(model).backbone.generates)]
    assert whole.logits.shape[:2] == before.shape and few.logits is None and "logits" not in few
    assert torch.equal(inputs["labels"], before)
    close(few.loss, whole.loss, tolerance)
    assert got.keys() == expected.keys() and all(bool(gradient.any()) for gradient in expected.values())
    for key, gradient in expected.items():
        close(got[key], gradient, tolerance)


# ---------------------------------------------------------------------- exactness


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", LANGUAGE_MODELS, ids=str)
def test_loss_and_gradients_are_those_of_all_logits(family, side):
    check_equal(training(family), some_labels(family, side), tolerance=2e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", [LLAMA, FAMILIES["gemma3"], BERT, T5], ids=str)
def test_with_gradient_checkpointing(family, reentrant):
    model = training(family)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    check_equal(model, some_labels(family))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ept"])
@pytest.mark.parametrize("family", [LLAMA, BERT, T5], ids=str)
def test_with_every_method_and_its_objectives(family, method):
    inputs = some_labels(family)
    if family.kind == "decoder":
        inputs["labels"][1, 0] = -100  # a generated prompt reads the source
    check_equal(training(family, method), inputs)


@pytest.mark.parametrize("family", [LLAMA, BERT, FAMILIES["roberta"], T5], ids=str)
def test_a_trained_projection_gets_the_same_gradient(family):
    model = training(family)
    of(model).get_output_embeddings().requires_grad_(True)
    check_equal(model, some_labels(family))


@pytest.mark.parametrize("where", ["beside", "on the projection"])
def test_with_lora(where):
    base = backbone(LLAMA, "causal_lm")
    stir(inject_adapter_in_model(config("ept", "causal_lm"), base))
    targets = ["q_proj", "v_proj"] if where == "beside" else ["lm_head"]
    torch.manual_seed(0)
    model = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets, init_lora_weights=False)
    )
    check_equal(model.train(), some_labels(LLAMA))


def test_a_trained_head_that_peft_copies():
    model = training(LLAMA, modules_to_save=["lm_head"])
    seen = some_labels(LLAMA)
    whole, expected = run(model, seen, False)
    few, got = run(model, seen, True)
    close(few.loss, whole.loss, 2e-6)
    assert any("lm_head.modules_to_save" in key for key in expected)
    for key, gradient in expected.items():
        close(got[key], gradient, 1e-5)
    assert few.logits is None


@pytest.mark.parametrize("family", [LLAMA, BERT, T5], ids=str)
def test_in_bfloat16(family):
    """Rows are summed in another order, so the last of bfloat16's eight bits may differ."""
    model = training(family)
    model.get_base_model().to(torch.bfloat16)
    find_state(model).softprompt_prompts.float()
    check_equal(model, some_labels(family), tolerance=2e-2)


@pytest.mark.parametrize("family", [LLAMA, BERT, T5], ids=str)
def test_all_positions_labelled(family):
    inputs = some_labels(family)
    inputs["labels"] = torch.full_like(inputs["labels"], 7)
    rows, length = inputs["labels"].shape
    check_equal(training(family), inputs, rows * (length - family.lm.startswith("causal")))


@pytest.mark.parametrize("items", [None, 5])
@pytest.mark.parametrize("family", [LLAMA, FAMILIES["modernbert"]], ids=str)
def test_no_label_at_all_gives_what_the_model_gives(family, items):
    inputs = {**some_labels(family), **({} if items is None else {"num_items_in_batch": torch.tensor(items)})}
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    inputs["labels"][:, 0] = 7 if family is LLAMA else -100
    model = training(family)
    (whole, expected), (few, got) = (run(model, inputs, loss_only) for loss_only in (False, True))
    torch.testing.assert_close(few.loss, whole.loss, equal_nan=True)
    assert bool(few.loss.isnan()) == (items is None) and few.logits is None
    for key, gradient in expected.items():
        torch.testing.assert_close(got[key], gradient, equal_nan=True)


@pytest.mark.parametrize("family", [LLAMA, FAMILIES["modernbert"]], ids=str)
def test_the_number_of_labels_in_all_accumulated_batches_divides(family):
    inputs = {**some_labels(family), "num_items_in_batch": torch.tensor(11)}
    model = training(family)
    plain = run(model, {k: v for k, v in inputs.items() if k != "num_items_in_batch"}, True)[0].loss
    close(run(model, inputs, True)[0].loss, plain * SCORED / 11, 2e-6)
    check_equal(model, inputs)


def test_two_passes_before_one_backward():
    model, inputs = training(LLAMA), some_labels(LLAMA)
    other = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
    found = []
    for loss_only in (False, True):
        model.zero_grad()
        with find_state(model).loss_only(loss_only):
            (model(**inputs).loss + model(**other).loss).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for one, two in zip(*found, strict=True):
        close(one, two)


def test_labels_by_position():
    model, inputs = training(BERT).get_base_model(), some_labels(BERT)
    given = [inputs.get(name) for name in inspect.signature(model.forward).parameters if name != "kwargs"]
    with torch.no_grad(), find_state(model).loss_only():
        out = model(*given)
    close(out.loss, model(**inputs).loss, 2e-6)
    assert out.logits is None


def naive(labels, shifted):
    """(position that predicts, label), by counting."""
    found = []
    for row, marks in enumerate(labels.tolist()):
        for t, label in enumerate(marks):
            if label != -100 and (not shifted or t > 0):
                found.append((row * len(marks) + t - shifted, label))
    return found


@given(st.data(), st.booleans())
def test_scored_positions_are_those_that_the_loss_reads(data, shifted):
    rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    flat = data.draw(st.lists(st.sampled_from([-100, 0, 3, 9]), min_size=rows * length, max_size=rows * length))
    labels = torch.tensor(flat).view(rows, length)
    before = labels.clone()
    index, targets = scored_positions(labels, shifted)
    expected = naive(labels, shifted)
    if shifted and expected:  # the loss moves labels by one: the last row predicts nothing
        assert targets[0, 0] == -100
        index, targets = index[:-1], targets[:, 1:]
    assert list(zip(index.tolist(), targets[0].tolist(), strict=True)) == expected
    assert torch.equal(labels, before)


MODELS = {family.name: (training(family, num_virtual_tokens=3)) for family in (LLAMA, FAMILIES["gpt2"], BERT, T5)}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(MODELS)))
def test_any_shape_padding_and_choice_of_labels(data, name):
    family, count = FAMILIES[name], data.draw(st.integers(1, 6), "virtual tokens")
    model = MODELS[name]
    if find_state(model).active_prompt().num_virtual_tokens != count:
        model = MODELS[name] = training(family, num_virtual_tokens=count)
    lengths = data.draw(st.lists(st.integers(2, 8), min_size=1, max_size=4), "lengths")
    inputs = batch(tokens(*lengths, seed=sum(lengths)), data.draw(st.sampled_from(["left", "right"]), "side"))
    rows, length = inputs["input_ids"].shape
    length = data.draw(st.integers(1, 6), "target length") if family.kind == "encoder_decoder" else length
    marks = data.draw(st.lists(st.booleans(), min_size=rows * length, max_size=rows * length), "labelled")
    labels = torch.randint(5, 99, (rows, length), generator=torch.Generator().manual_seed(rows))
    inputs["labels"] = labels.masked_fill(~torch.tensor(marks).view(rows, length), -100)
    (whole, expected), (few, got) = (run(model, inputs, loss_only) for loss_only in (False, True))
    torch.testing.assert_close(few.loss, whole.loss, rtol=1e-5, atol=1e-5, equal_nan=True)
    for key, gradient in expected.items():
        torch.testing.assert_close(got[key], gradient, rtol=1e-5, atol=1e-5, equal_nan=True)


# ---------------------------------------------------------------------- when it is on


def test_a_bare_call_keeps_its_logits_and_so_does_a_call_after():
    model, inputs = training(LLAMA), some_labels(LLAMA)
    seen = rows_seen(model)
    assert model(**inputs).logits.shape == (3, 9, 99)
    with model.base_model.loss_only():
        assert model(**inputs).logits is None
        assert model(**{k: v for k, v in inputs.items() if k != "labels"}).logits.shape == (3, 9, 99)
    assert model(**inputs).logits.shape == (3, 9, 99)
    assert seen == [27, SCORED + 1, 27, 27]


def test_an_error_in_the_model_leaves_nothing_behind():
    model, inputs = training(LLAMA), some_labels(LLAMA)
    broken = {**inputs, "labels": inputs["labels"] + 1000}
    with pytest.raises(IndexError), model.base_model.loss_only():
        model(**broken)
    assert model(**inputs).logits.shape == (3, 9, 99)


def test_an_interrupted_pass_leaves_nothing_behind():
    """Hooks after a pass are called for errors, but not when someone presses a key."""
    model, inputs = training(LLAMA), some_labels(LLAMA)

    def interrupt(module, args):
        raise KeyboardInterrupt

    handle = model.get_base_model().model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), model.base_model.loss_only():
        model(**inputs)
    handle.remove()
    assert model(**inputs).logits.shape == (3, 9, 99)


def test_the_share_is_announced_once(caplog):
    model, inputs = training(LLAMA), some_labels(LLAMA)
    with caplog.at_level("INFO", logger="softprompt"), model.base_model.loss_only():
        model(**inputs)
        model(**inputs)
    assert [message for message in caplog.messages if "shared prefix" not in message] == [
        "label_only_logits on: the vocabulary is projected where the loss reads it, 5 of 27 positions (19%) in the first "
        "batch; label_only_logits=False in the config turns it off"
    ]


class Confidence(Objective):
    """An objective that reads logits."""

    name, needs = "confidence", frozenset({"logits"})

    def __call__(self, seen, critics):
        return seen.logits.softmax(-1).pow(2).mean()


def with_an_objective(model):
    find_state(model).objectives["default"] = ObjectiveSet([Confidence(weight=0.5)], HIDDEN)


def own_loss(model):
    model.get_base_model().loss_function = lambda logits, labels, **rest: logits.float().mean()


def tuples(model):
    model.get_base_model().config.return_dict = False


def elsewhere(model):
    model.get_base_model().get_output_embeddings = lambda: torch.nn.Linear(32, 99)


REFUSALS = {
    "gated": (LLAMA, "spt_gated", None, {}, "the consistency of a gated prompt compares logits"),
    "objective": (LLAMA, "ept", with_an_objective, {}, "an objective reads logits"),
    "own loss": (LLAMA, "ept", own_loss, {}, "LlamaForCausalLM was given a loss function of its own"),
    "tuple": (BERT, "ept", None, {"return_dict": False}, "return_dict=False asks for a tuple"),
    "tuples": (BERT, "ept", tuples, {}, "return_dict=False asks for a tuple"),
    "elsewhere": (BERT, "ept", elsewhere, {}, "not called on the states of all positions"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_where_logits_are_read_they_are_made_and_the_reason_is_announced_once(name, caplog):
    family, method, change, more, reason = REFUSALS[name]
    model, inputs = training(family, method), {**some_labels(family), **more}
    if family is LLAMA:
        inputs["labels"][1, 0] = -100
    if change is not None:
        change(model)
    found = []
    for loss_only in (False, True, True):
        torch.manual_seed(0)
        with caplog.at_level("INFO", logger="softprompt"), find_state(model).loss_only(loss_only):
            found.append(model(**inputs))
    for out in found[1:]:
        assert torch.equal(out[0], found[0][0]) and torch.equal(out[1], found[0][1])
    said = [record.message for record in caplog.records if "label_only_logits" in record.message]
    assert len(said) == 1 and said[0].startswith("label_only_logits off: ") and reason in said[0]


def test_a_gated_prompt_without_consistency_needs_no_logits():
    inputs = some_labels(LLAMA)
    inputs["labels"][1, 0] = -100
    check_equal(training(LLAMA, "spt_gated", consistency=0.0), inputs)


def test_token_classification_has_no_vocabulary(caplog):
    model = prompted(BERT, "token_cls", "ept").train()
    inputs = batch(tokens(9, 5))
    with caplog.at_level("INFO", logger="softprompt"), model.base_model.loss_only():
        out = model(**inputs, labels=torch.zeros(2, 9, dtype=torch.long))
    assert out.logits.shape == (2, 9, 3)
    assert caplog.messages == [
        "label_only_logits off: BertForTokenClassification has no output embeddings, so logits are made at all positions"
    ]


def test_classification_is_not_concerned(caplog):
    model = prompted(BERT, "seq_cls", "ept").train()
    with caplog.at_level("INFO", logger="softprompt"), model.base_model.loss_only():
        assert model(**batch(tokens(9, 5)), labels=torch.tensor([0, 2])).logits.shape == (2, 3)
    assert not caplog.messages


def test_the_switch_turns_it_off(caplog):
    model, inputs = training(LLAMA, label_only_logits=False), some_labels(LLAMA)
    with caplog.at_level("INFO", logger="softprompt"), model.base_model.loss_only():
        assert model(**inputs).logits.shape == (3, 9, 99)
    assert "label_only_logits" not in caplog.text


def test_without_a_prompt_nothing_changes():
    model, inputs = training(LLAMA), some_labels(LLAMA)
    with model.base_model.loss_only(), model.disable_adapter():
        assert model(**inputs).logits.shape == (3, 9, 99)


def test_a_projection_that_is_not_a_module_on_the_whole_states():
    """DeBERTa's own head multiplies with the input embeddings; the dense layer before is what it calls its output embedding."""
    options = {**FAMILIES["deberta-v2"].options, "legacy": False}
    base = tf.DebertaV2ForMaskedLM(tf.DebertaV2Config(vocab_size=99, pad_token_id=1, **options))
    model = stir(get_peft_model(base, config("ept"))).train()
    check_equal(model, some_labels(BERT))


def test_a_deep_copy_has_hooks_of_its_own():
    model, inputs = training(LLAMA), some_labels(LLAMA)
    other = copy.deepcopy(model)
    with model.base_model.loss_only():
        assert model(**inputs).logits is None and other(**inputs).logits.shape == (3, 9, 99)
    check_equal(other, inputs)


def test_a_search_of_layers_makes_few_logits():
    model, inputs = training(LLAMA, "spt_gated"), some_labels(LLAMA)
    inputs["labels"][1, 0] = -100
    search, seen = softprompt.LayerSearch(model), rows_seen(model)
    search.search_step(inputs)
    search.ablation_scores([inputs])
    assert set(seen) == {SCORED + 1}
