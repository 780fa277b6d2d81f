"""Supervised contrast between rows, and the head that is fitted on the states it shapes."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

import softprompt
from softprompt import SoftPromptError, objective
from softprompt.data import collator
from softprompt.models.probe import fit_probe, head_features
from softprompt.objectives import PromptedOutput, SupervisedContrast, build_objectives
from softprompt.training.fit import batch_size_for
from softprompt.training.options import RunOptions
from softprompt.training.prepare import prepare
from softprompt.training.refit import choose_head_fit
from test_training import StopAfter, options
from tiny import save_backbone, write_classification

H, CONTRAST = 6, [{"name": "contrastive", "weight": 10.0}]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    return write_classification(tmp_path_factory.mktemp("animals"))


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
    with pytest.raises(SoftPromptError, match="objective 'contrastive': temperature: expected a number above 0, got "):
        build_objectives([objective("contrastive", temperature=temperature)], H)


@pytest.mark.parametrize("labels", [None, torch.zeros(3, 2, dtype=torch.long)], ids=["none", "of tokens"])
def test_contrast_needs_one_label_per_row(labels):
    with pytest.raises(SoftPromptError, match=r"expected labels of shape \[3\], got .*; it suits classification only"):
        contrast()(seen(torch.randn(3, H), labels))


# ---------------------------------------------------------------------- the fitted head


def train(encoder, animals, folder, **more):
    return softprompt.train(options(encoder, animals, folder, **more), progress=False)


@pytest.mark.parametrize("method", ["deep_prompts", "peft:lora"])
def test_a_fitted_head_is_the_probe_of_the_prompted_states(method, encoder, animals, tmp_path):
    more = {"method": method, "head_fit": "probe", "num_train_epochs": 3}
    if method == "peft:lora":
        flat = options(encoder, animals, tmp_path / "run").to_flat()
        flat.pop("num_virtual_tokens")
        chosen = RunOptions.from_flat({**flat, **more, "r": 2})
        result = softprompt.train(chosen, progress=False)
    else:
        chosen = options(encoder, animals, tmp_path / "run", **more)
        result = softprompt.train(chosen, progress=False)
    model, prepared = result.model, prepare(chosen)
    head = model.get_base_model().classifier.modules_to_save["default"]
    rows = prepared.encoded["train"]
    batch = collator(prepared.tokenizer, "classification")(rows.to_list())
    features = head_features(model, head, [batch])
    weight, bias = fit_probe(features, np.asarray(rows["labels"]), 3)
    expected = torch.tensor(features) @ weight.T + bias
    torch.testing.assert_close(
        torch.tensor(features) @ head.weight.detach().T + head.bias.detach(), expected, atol=1e-3, rtol=1e-3
    )
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    (name,) = [key for key in saved if key.endswith("classifier.weight")]
    assert torch.equal(saved[name], head.weight.detach().cpu())


def test_contrast_chooses_the_fitted_head_and_says_so(encoder, animals, tmp_path, announced):
    result = train(encoder, animals, tmp_path / "run", objectives=CONTRAST)
    assert "head_fit=probe: the objective 'contrastive' shapes the states that the head reads" in announced()
    logged = [entry["contrastive"] for entry in result.document["train_info"]["metrics"] if "contrastive" in entry]
    assert len(logged) == 2 and all(value > 0 for value in logged)
    found = softprompt.Predictor(tmp_path / "run").evaluate(softprompt.load_task(animals).test)["accuracy"]
    assert found == pytest.approx(result.metrics["test accuracy"])


def test_gradient_trains_the_head_under_contrast_too(encoder, animals, tmp_path, announced):
    train(encoder, animals, tmp_path / "run", objectives=CONTRAST, head_fit="gradient")
    assert not [said for said in announced() if said.startswith("head_fit")]


def test_a_head_is_trained_at_its_rate_or_fitted(encoder, animals, tmp_path, announced):
    with pytest.raises(
        SoftPromptError, match=r"head_learning_rate=0.01 is of a head that is trained, .*; drop the other"
    ):
        train(encoder, animals, tmp_path / "both", head_fit="probe", head_learning_rate=0.01)
    train(encoder, animals, tmp_path / "run", objectives=CONTRAST, head_learning_rate=0.01)
    assert "head_fit=gradient: head_learning_rate=0.01 is of a head that is trained" in announced()


def test_a_resumed_run_fits_the_same_head(encoder, animals, tmp_path):
    more = {"objectives": CONTRAST, "num_train_epochs": 3}
    whole = train(encoder, animals, tmp_path / "whole", **more)
    cut = options(encoder, animals, tmp_path / "cut", **more)
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(cut, callbacks=[StopAfter(2)], progress=False)
    softprompt.train(cut, resume=True, progress=False)
    mine, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert whole.metrics["dev accuracy"] >= 0


def test_only_one_linear_layer_can_be_fitted(encoder):
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    with pytest.raises(
        SoftPromptError, match=r"head_fit='probe' fits one linear layer on pooled states: expected .*head='pooled'"
    ):
        choose_head_fit("probe", None, model)
    assert choose_head_fit("auto", None, model) == "gradient"


def test_an_unknown_fit_is_named(encoder, animals, tmp_path):
    with pytest.raises(SoftPromptError, match="head_fit"):
        options(encoder, animals, tmp_path, head_fit="probes")


def test_contrast_is_one_deep_token_with_one_more_term(encoder, animals, tmp_path):
    made = softprompt.contrast(weight=2.0, objectives=[objective("l2")])
    assert made.objectives == [objective("contrastive", weight=2.0, temperature=0.1), objective("l2")]
    assert (made.prompt, made.placement, made.num_virtual_tokens) == ("plain", "deep", 1)
    entries = [{"name": "contrastive", "weight": 1.0, "temperature": 0.1}]
    more = {"method": "deep_prompts", "num_virtual_tokens": 1, "objectives": entries}
    train(encoder, animals, tmp_path / "composed", **more)
    train(encoder, animals, tmp_path / "named", method="contrast", num_virtual_tokens=1)
    mine, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("composed", "named"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_only_the_prompt_moves_under_contrast(encoder, animals, tmp_path):
    result = train(encoder, animals, tmp_path / "run", method="contrast", num_virtual_tokens=1)
    before = AutoModel.from_pretrained(encoder).state_dict()
    after = result.model.unload().backbone.state_dict()
    del before["pooler.dense.weight"]  # not in the file, so drawn at each loading
    assert before.keys() <= after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


def test_many_classes_make_a_batch_large_enough_to_hold_pairs(announced):
    made = softprompt.contrast()
    assert batch_size_for(made, rows=1000, classes=6) == batch_size_for(None, rows=1000, classes=77) == 16
    assert batch_size_for(softprompt.deep_prompts(), rows=1000, classes=77) == 16 and announced() == []
    assert batch_size_for(made, rows=1000, classes=60) == 121 and batch_size_for(made, rows=90, classes=77) == 90
    assert batch_size_for(made, rows=1000, classes=500) == 128
    assert announced()[0].startswith("per_device_train_batch_size=121: of 60 classes a batch of 16 rows has hardly two")


def test_a_head_is_fitted_on_cached_states_too(encoder, animals, tmp_path):
    found = {}
    for name in ("none", "memory"):
        more = {"method": "contrast", "num_virtual_tokens": 1, "layers": [1], "cache_below": name}
        train(encoder, animals, tmp_path / name, **more)
        found[name] = load_file(tmp_path / name / "adapter_model.safetensors")
    assert found["none"].keys() == found["memory"].keys()
    for key, value in found["none"].items():
        torch.testing.assert_close(found["memory"][key], value, atol=1e-4, rtol=1e-4)


def test_a_head_is_fitted_on_prompts_that_read_unprompted_states(encoder, animals, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    more = {"method": "infoprompt", "generator": "instance", "head_fit": "probe"}
    result = train(encoder, animals, tmp_path / "run", **more)
    found = softprompt.Predictor(tmp_path / "run").evaluate(softprompt.load_task(animals).test)["accuracy"]
    assert found == pytest.approx(result.metrics["test accuracy"])
