"""Consistency of sub-networks: the mean squared difference where it counts."""

from __future__ import annotations

import itertools

import pytest
import torch

from house.batches import training_inputs
from house.by_hand import states
from house.families import BERT, LAYERS, LLAMA, T5, batch, close, tokens
from house.models import gated, prompt_of
from softprompt.objectives import consistency
from softprompt.prompts import GeneratedPrompt

D, M, H, B = 2, 3, 6, 4  # sites, virtual tokens, hidden size, bottleneck


def test_consistency_is_the_mean_squared_difference_where_it_counts():
    full, part = states(2, 3, 4, seed=1), states(2, 3, 4, seed=2)
    where = torch.tensor([[1, 0, 1], [0, 0, 1]])
    by_hand = [
        (full[b, s, v] - part[b, s, v]).item() ** 2
        for b, s, v in itertools.product(range(2), range(3), range(4))
        if where[b, s]
    ]
    assert consistency(full, part, where).item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    assert consistency(full, part).item() == pytest.approx(((full - part) ** 2).mean().item(), rel=1e-5)
    assert consistency(full, full, where).item() == 0
    assert consistency(full, part, torch.zeros(2, 3)).item() == 0
    one, two = full[:, 0], part[:, 0]
    assert consistency(one, two, where).item() == pytest.approx(((one - two) ** 2).mean().item(), rel=1e-5)


def labelled(family, head):
    inputs = training_inputs(family, head)
    if head == "token_cls":
        inputs["labels"] = torch.where(inputs["labels"] == -100, -100, inputs["labels"] % 3)
    return inputs


def counted(family, head, inputs, logits):
    """Positions whose prediction the loss counts, one at a time; None where there is one prediction per row."""
    if head == "seq_cls":
        return None
    where = torch.zeros(logits.shape[:2], dtype=torch.bool)
    shift = 1 if head == "causal_lm" else 0  # position t predicts the token at t + 1
    for b, s in itertools.product(*map(range, where.shape)):
        where[b, s] = s + shift < inputs["labels"].shape[1] and inputs["labels"][b, s + shift] != -100
    return where


def by_two_passes(model, family, head, inputs, sites):
    """Loss of the whole network, and the mean squared difference to a sub-network, from two plain passes."""
    base = model.get_base_model()
    with torch.no_grad():
        full = base(**inputs)
        with prompt_of(model).subnetwork(sites):
            part = base(**inputs)
    where = counted(family, head, inputs, full.logits)
    difference = (full.logits - part.logits) ** 2
    return full.loss, (difference if where is None else difference[where]).mean()


HEADS = [(BERT, "seq_cls"), (BERT, "token_cls"), (LLAMA, "causal_lm"), (LLAMA, "seq_cls"), (T5, "seq2seq_lm")]


@pytest.mark.parametrize("family, head", HEADS, ids=str)
def test_training_adds_the_weighted_consistency_of_a_drawn_subnetwork(family, head):
    model, inputs = gated(family, head, consistency=0.7, decoupled_gates=False), labelled(family, head)
    torch.manual_seed(4)
    sites = prompt_of(model).draw_subnetwork()
    assert 0 < len(sites) < LAYERS
    loss, term = by_two_passes(model, family, head, inputs, sites)
    torch.manual_seed(4)
    trained = model.train()(**inputs)
    assert term > 1e-3
    close(trained.objectives["consistency"], term)
    assert not trained.objectives["consistency"].requires_grad
    close(trained.loss.detach(), loss + 0.7 * term)
    evaluated = model.eval()(**inputs)
    assert "objectives" not in evaluated
    close(evaluated.loss.detach(), loss)


def test_training_a_masked_language_model_adds_the_consistency_too():
    """PEFT has no task type for it; verbalizers are trained like this."""
    trained = gated(BERT, "masked_lm").train()(**training_inputs(BERT, "masked_lm"))
    assert "consistency" in trained.objectives


def test_a_whole_subnetwork_costs_nothing():
    model, inputs = gated(BERT, "seq_cls"), training_inputs(BERT, "seq_cls")
    with torch.no_grad():
        prompt_of(model).gate_logits.fill_(40.0)  # every site is drawn
    assert model.train()(**inputs).objectives["consistency"] == 0


@pytest.mark.parametrize("family, head", HEADS, ids=str)
def test_weight_0_leaves_the_loss_untouched(family, head):
    model, inputs = gated(family, head, consistency=0.0).train(), labelled(family, head)
    before = torch.get_rng_state()
    trained = model(**inputs)
    assert torch.equal(torch.get_rng_state(), before)
    assert "objectives" not in trained
    assert torch.equal(trained.loss, model.get_base_model()(**inputs).loss)


def test_accumulated_batches_share_the_consistency_by_their_labels():
    """Trainer passes the labels of all accumulated batches; the loss is then a sum over them, and so is the term."""
    model, inputs = gated(LLAMA, "causal_lm", consistency=0.7), training_inputs(LLAMA, "causal_lm")
    torch.manual_seed(4)
    sites = prompt_of(model).draw_subnetwork()
    mean_loss, term = by_two_passes(model, LLAMA, "causal_lm", inputs, sites)
    labels = int((inputs["labels"] != -100).sum())
    torch.manual_seed(4)
    trained = model.train()(**inputs, num_items_in_batch=torch.tensor(3 * labels))
    close(trained.loss.detach(), (mean_loss + 0.7 * term) / 3)


def test_a_first_token_that_nothing_predicts_is_no_label():
    model, inputs = gated(LLAMA, "causal_lm"), batch(tokens(9, 9))
    inputs["labels"] = inputs["input_ids"].clone()
    torch.manual_seed(4)
    mean_loss, term = by_two_passes(model, LLAMA, "causal_lm", inputs, prompt_of(model).draw_subnetwork())
    torch.manual_seed(4)
    trained = model.train()(**inputs, num_items_in_batch=inputs["labels"][:, 1:].ne(-100).sum())
    close(trained.loss.detach(), mean_loss + term)


@pytest.mark.parametrize("family, head", [(BERT, "seq_cls"), (LLAMA, "causal_lm")], ids=str)
def test_checkpointing_changes_no_gradient_of_a_gated_prompt(family, head):
    """Recomputed layers must see the sub-network of their own pass."""

    def gradients(checkpointing):
        model = gated(family, head)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(4)
        model.train()(**training_inputs(family, head)).loss.backward()
        return [p.grad for p in prompt_of(model).parameters()]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert plain.abs().max() > 0
        close(recomputed, plain, 1e-4)


@torch.no_grad()
def test_a_drawn_subnetwork_follows_the_gates_and_is_never_empty():
    prompt = GeneratedPrompt(4, M, H, B)
    prompt.add_gates()
    prompt.gate_logits.copy_(torch.tensor([-2.0, 0.0, 0.5, 2.5]))
    generator, count, opened = torch.Generator().manual_seed(0), 4000, torch.zeros(4)
    for _ in range(count):
        drawn = prompt.draw_subnetwork(generator)
        assert drawn and drawn == tuple(sorted(drawn))
        opened[list(drawn)] += 1
    a = prompt.layer_gates()
    expected = a + (1 - a).prod() * a / a.sum()  # an empty draw is made up for by one site
    assert ((opened / count - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all()
    prompt.gate_logits.fill_(-30.0)
    picked = [prompt.draw_subnetwork(generator) for _ in range(200)]
    assert {len(drawn) for drawn in picked} == {1} and len(set(picked)) == 4
