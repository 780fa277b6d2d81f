"""Objectives that read a prompt as a point cloud: layers, rows, controls."""

import pytest
import torch
from peft import get_peft_model

from house.batches import training_inputs
from house.clouds import made, seen
from house.families import BERT, backbone, close, config
from softprompt import SoftPromptError
from softprompt.objectives import NormControl, PairControl, PersistenceObjective, TSLoss, objective

TRIANGLE = [[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]  # sides 3, 4 and 5


@pytest.mark.parametrize("kind", [TSLoss, PersistenceObjective, PairControl, NormControl])
def test_equal_tokens_and_a_single_token_have_a_finite_gradient(kind):
    for count in (1, 2, 4):
        cloud = torch.ones(count, 3, requires_grad=True)
        loss = made(kind)(seen(cloud))
        (gradient,) = torch.autograd.grad(loss, cloud)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
        assert loss.item() == (3.0 if kind is NormControl else pytest.approx(0.0, abs=1e-5))


def test_controls_by_hand():
    cloud = torch.tensor(TRIANGLE)
    assert made(NormControl)(seen(cloud)).item() == pytest.approx((0 + 9 + 16) / 3)
    assert made(PairControl)(seen(cloud)).item() == pytest.approx(4.0)


@pytest.mark.parametrize("kind", [TSLoss, PersistenceObjective, PairControl, NormControl])
def test_layers_are_chosen_and_averaged(kind):
    torch.manual_seed(0)
    clouds = [torch.randn(5, 3) for _ in range(3)]
    alone = [made(kind)(seen(cloud)) for cloud in clouds]
    close(made(kind)(seen(*clouds)), torch.stack(alone).mean())
    close(made(kind, layers=[1])(seen(*clouds)), alone[1])
    with pytest.raises(
        SoftPromptError,
        match=r"reads the layers \[1, 7\], but the prompt enters \[0, 1, 2\]; name layers of these, without \[7\]",
    ):
        made(kind, layers=[1, 7])(seen(*clouds))


@pytest.mark.parametrize("kind", [TSLoss, PersistenceObjective, NormControl, PairControl])
def test_a_layer_counts_once_however_many_rows_it_has(kind):
    torch.manual_seed(0)
    shared, own = torch.randn(1, 5, 3), torch.randn(4, 5, 3)
    close(made(kind)(seen(shared, own)), (made(kind)(seen(shared)) + made(kind)(seen(own))) / 2)


def test_prompts_that_differ_between_rows_are_clouds_of_their_own():
    torch.manual_seed(0)
    rows = torch.randn(2, 5, 3)
    close(made(TSLoss)(seen(rows)), torch.stack([made(TSLoss)(seen(row)) for row in rows]).mean())


@pytest.mark.parametrize("name", ["ts_loss", "persistence", "l2", "pairwise"])
@pytest.mark.parametrize("method", ["prompt_tuning", "deep_prompts", "ept", "spt", "infoprompt"])
def test_shapes_compose_with_every_prompt(name, method):
    """The term joins the loss, and its gradient reaches the prompt; EPT's is that of the reconstructed rows."""
    extra = {"objectives": [objective(name, weight=0.7)]}
    if method == "infoprompt":
        extra |= {"gamma": 0.1, "beta": 0.2}
    model = get_peft_model(backbone(BERT, "seq_cls"), config(method, "seq_cls", **extra)).train()
    inputs = training_inputs(BERT, "seq_cls")
    torch.manual_seed(0)
    found = model(**inputs)
    assert name in found.objectives
    others = {"head_information": 0.1, "representation_information": 0.2, "latent_divergence": 0.1, name: 0.7}
    with model.base_model.state.plainly():
        bare = model(**inputs).loss
    close(found.loss, bare + sum(others[key] * value for key, value in found.objectives.items()))
    prompt = model.base_model.state.active_prompt()
    before = [p.grad for p in prompt.parameters()]
    assert before == [None] * len(before)
    found.loss.backward()
    assert any(bool(p.grad.any()) for p in prompt.parameters())
