"""Supervised contrast between rows: its formula, its gradient, and what it does to classes."""

import math
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import softprompt
from house.runs import trained
from softprompt import SoftPromptError, objective
from softprompt.objectives import PromptedOutput, SupervisedContrast, build_objectives

H, CONTRAST = 6, [{"name": "contrastive", "weight": 10.0}]


def seen(states, labels):
    tokens = torch.zeros(len(states), 2, states.shape[-1])
    return PromptedOutput(
        {0: torch.zeros(1, 2, states.shape[-1])},
        tokens,
        torch.ones(len(states), 2, dtype=torch.bool),
        states,
        labels=labels,
    )


def contrast(**fields):
    """The term, which has no critics."""
    return partial(SupervisedContrast(**fields), critics=torch.nn.ModuleDict())


def by_hand(states, labels, temperature):
    """Equation 2 of arXiv 2004.11362, one number at a time."""
    units = [[x / math.sqrt(sum(v * v for v in row)) for x in row] for row in states.tolist()]

    def similar(i, j):
        return sum(a * b for a, b in zip(units[i], units[j], strict=True)) / temperature

    losses = []
    for i in range(len(units)):
        others = [a for a in range(len(units)) if a != i]
        positive = [p for p in others if labels[p] == labels[i]]
        if positive:
            total = math.log(sum(math.exp(similar(i, a)) for a in others))
            losses.append(-sum(similar(i, p) - total for p in positive) / len(positive))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 1], [2, 0, 2, 1, 1], [0, 0, 0, 0, 0]], ids=str)
def test_contrast_equals_its_formula(labels, temperature):
    states = torch.randn(5, H, generator=torch.Generator().manual_seed(1))
    term = contrast(temperature=temperature)(seen(states, torch.tensor(labels)))
    assert term.item() == pytest.approx(by_hand(states, labels, temperature), rel=1e-5)


def test_a_batch_without_a_pair_adds_nothing():
    for labels in ([0, 1, 2], [0]):
        states = torch.randn(len(labels), H, requires_grad=True)
        term = contrast()(seen(states, torch.tensor(labels)))
        term.backward()
        assert term.item() == 0.0 and not states.grad.any()


def test_gradients_of_contrast(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    states = torch.randn(5, H, dtype=torch.float64, requires_grad=True)
    term = contrast(temperature=0.5)
    labels = torch.tensor([0, 1, 0, 2, 1])  # row 3 has no other of its class
    assert torch.autograd.gradcheck(lambda x: term(seen(x, labels)), states)


def test_contrast_pulls_rows_of_a_class_together():
    states = torch.randn(8, H, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, term = torch.arange(8) % 2, contrast()
    for _ in range(200):
        (step,) = torch.autograd.grad(term(seen(states, labels)), states)
        states = (states - 0.1 * step).detach().requires_grad_()
    units = torch.nn.functional.normalize(states, dim=-1)
    similar = units @ units.T
    same = labels[:, None] == labels
    assert similar[same].min() > similar[~same].max()


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_must_be_above_zero(temperature):
    with pytest.raises(SoftPromptError, match=r"objective 'contrastive': temperature: expected a .*number"):
        build_objectives([objective("contrastive", temperature=temperature)], H)


@pytest.mark.parametrize("labels", [None, torch.zeros(3, 2, dtype=torch.long)], ids=["none", "of tokens"])
def test_contrast_needs_one_label_per_row(labels):
    with pytest.raises(SoftPromptError, match=r"expected labels of shape \[3\], got .*; it suits classification only"):
        contrast()(seen(torch.randn(3, H), labels))


# ---------------------------------------------------------------------- the fitted head


def test_contrast_is_one_deep_token_with_one_more_term(encoder, animals, tmp_path):
    made = softprompt.contrast(weight=2.0, objectives=[objective("l2")])
    assert made.objectives == [objective("contrastive", weight=2.0, temperature=0.1), objective("l2")]
    assert (made.prompt, made.placement, made.num_virtual_tokens) == ("plain", "deep", 1)
    entries = [{"name": "contrastive", "weight": 1.0, "temperature": 0.1}]
    more = {"method": "deep_prompts", "num_virtual_tokens": 1, "objectives": entries}
    trained(encoder, animals, tmp_path / "composed", **more)
    trained(encoder, animals, tmp_path / "named", method="contrast", num_virtual_tokens=1)
    mine, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("composed", "named"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_only_the_prompt_moves_under_contrast(encoder, animals, tmp_path):
    result = trained(encoder, animals, tmp_path / "run", method="contrast", num_virtual_tokens=1)
    before = AutoModel.from_pretrained(encoder).state_dict()
    after = result.model.unload().backbone.state_dict()
    del before["pooler.dense.weight"]  # not in the file, so drawn at each loading
    assert before.keys() <= after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
