"""Contract: a head reads the states of several layers at the tokens alone, whatever prompt stands beside them."""

import dataclasses

import pytest
import torch
from peft import get_peft_model

import softprompt
from house.families import BERT, FAMILIES, LAYERS, backbone, batch, tokens
from softprompt import SoftPromptError, objective
from softprompt.methods import METHODS
from softprompt.tuner import compare_texts, pool, prompts_of

SMALL = {
    "ept": {"num_virtual_tokens": 3, "rank": 2, "max_positions": 24},
    "dept": {"num_virtual_tokens": 3, "rank": 2, "max_positions": 24},
    "spt": {"layers": [0, 2], "bottleneck": 4},
    "peft:lora": {"r": 2},
    "peft:ia3": {},
}
SIX = [FAMILIES[name] for name in ("bert", "roberta", "gpt2", "llama", "t5", "bart")]
READ = (0, 1, LAYERS)


def classifier(family=BERT, pooling="mean", features=READ, **more):
    base = backbone(family, "base")
    torch.manual_seed(1)
    return softprompt.PooledClassifier(base, ["a", "b", "c"], pooling, features=features, **more).eval()


def prompted(method, family=BERT, train=False, stir=True, features=READ, **more):
    own = SMALL.get(method, {"num_virtual_tokens": 3})
    torch.manual_seed(2)
    model = get_peft_model(
        classifier(family, features=features), METHODS[method].build(task_type="SEQ_CLS", **own, **more)
    )
    torch.manual_seed(3)
    for name, value in model.named_parameters():
        if stir and value.requires_grad and "classifier" not in name:
            torch.nn.init.normal_(value, std=0.3)
    return model.train(train)


def rows(*lengths, side="right"):
    return batch([tokens(length, seed=length)[0] for length in lengths], side=side)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", SIX, ids=str)
def test_logits_are_of_the_pooled_states_side_by_side(family, pooling):
    model, inputs = classifier(family, pooling), rows(7, 4)
    with torch.no_grad():
        states = model.backbone(**inputs, output_hidden_states=True).hidden_states
        expected = torch.cat([pool(states[i], inputs["attention_mask"], pooling) for i in READ], -1)
        found = model(**inputs)
    assert model.classifier.in_features == expected.shape[-1] == 3 * 32
    torch.testing.assert_close(found.logits, model.classifier(expected), atol=1e-5, rtol=1e-5)


def test_texts_apart_are_compared_layer_by_layer():
    model, inputs = classifier(pairs="apart"), rows(7, 4, 5, 6)
    with torch.no_grad():
        states = model.backbone(**inputs, output_hidden_states=True).hidden_states
        read = [compare_texts(pool(states[i], inputs["attention_mask"], "mean")) for i in READ]
        torch.testing.assert_close(model(**inputs).logits, model.classifier(torch.cat(read, -1)))
    assert model.classifier.in_features == 6 * 32
    with pytest.raises(SoftPromptError, match="pairs='apart' reads first and second texts in turn"):
        model(**rows(7, 4, 5))


def test_states_are_returned_to_who_asks_for_them_alone():
    model, inputs = classifier(), rows(7, 4)
    assert model(**inputs).hidden_states is None
    assert model(**inputs, output_hidden_states=False).hidden_states is None
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == LAYERS + 1
    model.config.output_hidden_states = True
    assert len(model(**inputs).hidden_states) == LAYERS + 1
    plain = classifier(features=None)
    assert plain(**inputs).hidden_states is None and len(plain(**inputs, output_hidden_states=True).hidden_states) == 4


def test_the_last_layer_by_its_number_is_the_last_layer():
    named, plain, inputs = classifier(features=[LAYERS]), classifier(features=None), rows(7, 4)
    assert torch.equal(named(**inputs).logits, plain(**inputs).logits)


@pytest.mark.parametrize("features", [[], [LAYERS + 1], [-1], [1, 1]], ids=str)
def test_layers_that_do_not_exist_are_refused(features):
    with pytest.raises(SoftPromptError, match=f"expected different layers of 0 .* to {LAYERS} "):
        classifier(features=features)


def test_order_does_not_matter():
    assert classifier(features=[2, 0]).features == (0, 2)


# ---------------------------------------------------------------- beside a prompt


def test_virtual_tokens_are_not_pooled_at_any_layer():
    """By hand: the prompt in front of the embeddings, its positions cut off every layer's states."""
    model, inputs = prompted("prompt_tuning"), rows(7, 4)
    base = model.get_base_model()
    (embedding,) = softprompt.active_prompt(model)[0].parameters()
    virtual, mask = embedding.detach().reshape(1, -1, 32), inputs["attention_mask"]
    length = virtual.shape[1]
    seen = []
    hook = base.classifier.modules_to_save["default"].register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
        hook.remove()
        embeds = torch.cat([virtual.expand(2, -1, -1), base.get_input_embeddings()(inputs["input_ids"])], 1)
        with prompts_of(model).silenced():
            call = {"inputs_embeds": embeds, "attention_mask": torch.cat([mask.new_ones(2, length), mask], 1)}
            states = base.backbone(**call, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in found.hidden_states] == [(2, 7, 32)] * (LAYERS + 1)
    expected = torch.cat([pool(states[i][:, length:], mask, "mean") for i in READ], -1)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)


# stock PEFT lets padding on the left stand between prompt and text, and count as positions
SIDES = [(m, side) for m in METHODS for side in ("left", "right") if side == "right" or not m.startswith("peft:")]


@pytest.mark.parametrize("method, side", SIDES)
def test_a_row_reads_the_same_alone_and_beside_others(method, side):
    model, together = prompted(method), rows(7, 4, 5, side=side)
    with torch.no_grad():
        found = model(**together)
        assert found.hidden_states is None
        for i, length in enumerate((7, 4, 5)):
            torch.testing.assert_close(model(**rows(length)).logits[0], found.logits[i], atol=1e-4, rtol=1e-4)
        assert (classifier()(**together).logits - found.logits).abs().max() > 1e-3  # the prompt does something


def test_a_prefix_of_peft_has_no_states_to_pool():
    model, inputs = prompted("peft:prefix_tuning"), rows(7, 4)
    head, seen = model.get_base_model().classifier.modules_to_save["default"], []
    head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert [state.shape[1] for state in states] == [7] * (LAYERS + 1)
    expected = torch.cat([pool(states[i], inputs["attention_mask"], "mean") for i in READ], -1)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", [f for f in SIX if f.name in ("gpt2", "llama", "t5")], ids=str)
@pytest.mark.parametrize("method", ["prompt_tuning", "deep_prompts", "spt", "infoprompt"])
def test_other_families_and_embeddings_in_place_of_ids(method, family):
    model, together = prompted(method, family), rows(7, 4, side="left")
    embeds = model.get_base_model().get_input_embeddings()(together["input_ids"])
    with torch.no_grad():
        found = model(**together).logits
        given = model(inputs_embeds=embeds, attention_mask=together["attention_mask"]).logits
        torch.testing.assert_close(given, found, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(**rows(4)).logits[0], found[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_prefix_changes_no_state_of_any_layer(shared):
    model, alone = (prompted("deep_prompts", FAMILIES["llama"], shared_prefix=s) for s in (shared, False))
    inputs = rows(7, 4, side="left")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, alone(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", [BERT, FAMILIES["llama"]], ids=str)
def test_gradient_checkpointing_changes_nothing(family, reentrant):
    inputs = {**rows(7, 4), "labels": torch.tensor([0, 2])}
    made = []
    for checkpoints in (False, True):
        model = prompted("contrast", family, train=True)
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        loss = model(**inputs).loss
        loss.backward()
        made.append((loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, plain), (again, checkpointed) = made
    torch.testing.assert_close(loss, again)
    assert plain.keys() == checkpointed.keys() and all(bool(value.any()) for value in plain.values())
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------- what objectives see


def test_contrast_compares_what_the_head_reads():
    model, inputs = (
        prompted("contrast", train=True, temperature=0.5),
        {**rows(7, 4, 5, 6), "labels": torch.tensor([0, 1, 0, 1])},
    )
    seen = []
    head = model.get_base_model().classifier.modules_to_save["default"]
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    term = model(**inputs).objectives["contrastive"]
    hook.remove()
    cosines = sum((z := torch.nn.functional.normalize(part, dim=-1)) @ z.T for part in seen[0].split(32, -1)) / 3
    scores = (cosines / 0.5).fill_diagonal_(-torch.inf).log_softmax(1)
    expected = -torch.stack([scores[0, 2], scores[1, 3], scores[2, 0], scores[3, 1]]).mean()
    torch.testing.assert_close(term, expected, atol=1e-5, rtol=1e-5)
    last = prompted("contrast", train=True, temperature=0.5, features=None)
    assert abs(last(**inputs).objectives["contrastive"] - term) > 1e-3


def test_other_objectives_read_the_last_layer():
    inputs = {**rows(7, 4), "labels": torch.tensor([0, 1])}
    found = []
    for features in (READ, None):
        model = prompted(
            "deep_prompts", train=True, features=features, objectives=[objective("representation_information")]
        )
        seen = prompts_of(model).observe(model.get_base_model(), frozenset({"unprompted"}), **inputs)
        found.append(seen)
        assert seen.head_states == ()
    torch.testing.assert_close(found[0].representation, found[1].representation)
    torch.testing.assert_close(found[0].unprompted, found[1].unprompted)


def test_states_of_the_head_are_shown_to_who_needs_them():
    model, inputs = prompted("deep_prompts", train=True), {**rows(7, 4), "labels": torch.tensor([0, 1])}
    seen = prompts_of(model).observe(model.get_base_model(), frozenset({"head_states"}), **inputs)
    states = model(**inputs, output_hidden_states=True).hidden_states
    for got, layer in zip(seen.head_states, READ, strict=True):
        torch.testing.assert_close(got, pool(states[layer], inputs["attention_mask"], "mean"), atol=1e-5, rtol=1e-5)
    assert {field.name for field in dataclasses.fields(seen)} >= {"head_states"}
