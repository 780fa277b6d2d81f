"""Contract: gates are exact: their gradient is that of the loss, and an open sub-network is the sparse model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from house.batches import inputs_for
from house.families import BERT, FAMILIES, HIDDEN, LAYERS, LLAMA, P, backbone, cases, close, config, output, stir
from house.models import gated, prompt_of, sparse

EVERY = tuple(FAMILIES.values())


# ---------------------------------------------------------------------- 3. gates


def in_double(family, **options):
    """All of it: the norms of Llama, which round to float32, become those of torch."""
    base = backbone(family, family.lm).double()
    for module in list(base.modules()):
        for name, child in module.named_children():
            if isinstance(child, LlamaRMSNorm):
                norm = nn.RMSNorm(HIDDEN, eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)
    model = get_peft_model(base, config("spt", family.lm, layers=None, **options))
    prompt_of(stir(model)).double()
    return model.eval()


def some_loss(model, inputs):
    """A smooth function of the logits in float64; transformers' own losses round to float32."""
    logits = output(model, **inputs)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=logits.dtype)
    real = inputs["attention_mask"].bool()
    return torch.tanh(logits[real] * weight[real]).sum()


def differences(function, at, step=1e-3):
    """Central differences of fourth order, one coordinate at a time."""
    found = torch.zeros_like(at)
    for i in range(len(at)):
        direction = step * F.one_hot(torch.tensor(i), len(at)).to(at)
        near = function(at + direction) - function(at - direction)
        far = function(at + 2 * direction) - function(at - 2 * direction)
        found[i] = (8 * near - far) / (12 * step)
    return found


@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("family", [BERT, LLAMA], ids=str)
def test_gradient_of_soft_gates_equals_finite_differences(family, tau):
    model, inputs = in_double(family, decoupled_gates=False, tau=tau), inputs_for(family, family.lm, 9, 5)
    alpha = prompt_of(model).gate_logits
    (gradient,) = torch.autograd.grad(some_loss(model, inputs), alpha)

    @torch.no_grad()
    def loss_at(value):
        alpha.copy_(value)
        return some_loss(model, inputs)

    close(gradient, differences(loss_at, alpha.detach().clone()), 1e-7)
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("family", [BERT, LLAMA], ids=str)
def test_gradient_of_decoupled_gates_is_that_of_open_gates(family, tau):
    """The pass runs with g = 1; alpha gets (1 - a) dL/dg, as d(a / sg(a)) = (1 - a) d alpha."""
    model, inputs = in_double(family, tau=tau), inputs_for(family, family.lm, 9, 5)
    prompt = prompt_of(model)
    a = prompt.layer_gates().detach()
    (gradient,) = torch.autograd.grad(some_loss(model, inputs), prompt.gate_logits)

    @torch.no_grad()
    def loss_at(gates):
        hook = prompt.register_forward_hook(lambda module, args, parts: replace(parts, weights=tau * gates))
        try:
            return some_loss(model, inputs)
        finally:
            hook.remove()

    opened = torch.ones_like(a)
    with torch.no_grad():
        close(some_loss(model, inputs), loss_at(opened), 1e-12)
    close(gradient, (1 - a) * differences(loss_at, opened), 1e-7)
    assert gradient.abs().max() > 0.1


def test_a_gate_that_ran_far_down_is_open_still():
    """In float32 it is 0 below a logit of -89: its share of itself stays 1, with the gradient of open gates."""
    model, inputs = gated(BERT, BERT.lm), inputs_for(BERT, BERT.lm, 9, 5)
    logits = prompt_of(model).gate_logits
    expected, a = some_loss(model, inputs), prompt_of(model).layer_gates().detach()
    (before,) = torch.autograd.grad(expected, logits)
    with torch.no_grad():
        logits[0] = -120.0
    assert prompt_of(model).layer_gates()[0] == 0
    loss = some_loss(model, inputs)
    (gradient,) = torch.autograd.grad(loss, logits)
    close(loss, expected, 1e-6)
    close((1 - a[0]) * gradient[0], before[0], 1e-5)
    close(gradient[1:], before[1:], 1e-5)


@pytest.mark.parametrize("name", ["llama", "modernbert", "t5"])
def test_every_gate_has_a_gradient(name):
    """Also that of the first layer: else Adam turns rounding errors into steps of full size, and its rank is chance."""
    family = FAMILIES[name]
    model, inputs = gated(family, family.lm), inputs_for(family, family.lm, 9, 5)
    loss = output(model, **inputs)[:, -3:].logsumexp(-1).sum()
    (gradient,) = torch.autograd.grad(loss, prompt_of(model).gate_logits)
    assert (gradient.abs() > 1e-3 * gradient.abs().max()).all()


@torch.no_grad()
def test_an_open_gate_replaces_and_a_closed_gate_lets_pass():
    """Between them the rows are mixed: what enters layer i is w new + (1 - w) propagated."""
    model, inputs = gated(BERT, "masked_lm", decoupled_gates=False), inputs_for(BERT, "masked_lm", 6)
    prompt, layers = prompt_of(model), model.base_model.model.bert.encoder.layer
    before, after = [], []
    hooks = [layer.register_forward_pre_hook(lambda _, args: before.append(args[0])) for layer in layers]
    hooks += [layer.register_forward_hook(lambda _, args, out: after.append(out)) for layer in layers]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    a = prompt.layer_gates()
    for i in range(1, LAYERS):
        real = torch.ones(1, 6, dtype=torch.bool)
        new = prompt.virtual(prompt(), i, after[i - 1][:, P:], real)
        close(before[i][:, :P], a[i] * new + (1 - a[i]) * after[i - 1][:, :P])
        close(before[i][:, P:], after[i - 1][:, P:], 0)


# ---------------------------------------------------------------------- 4 and 5. sub-networks are the sparse models


@pytest.mark.parametrize("family", EVERY, ids=str)
@torch.no_grad()
def test_the_whole_subnetwork_is_the_deep_prompt(family):
    head = family.lm
    for tau in (1.0, 0.5):
        model, inputs = gated(family, head, decoupled_gates=False, tau=tau), inputs_for(family, head, 13, 5)
        deep = sparse(model, family, head, range(LAYERS), tau=tau)
        soft = output(model, **inputs)
        with prompt_of(model).subnetwork(range(LAYERS)):
            hard = output(model, **inputs)
        close(hard, output(deep, **inputs))
        assert (soft - hard).abs().max() > 1e-2  # the gates act


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("family", EVERY, ids=str)
@torch.no_grad()
def test_a_subnetwork_is_the_sparse_prompt(family, layer):
    """Layers before the first open one are hidden from the prompt in both, however the sub-network is reached."""
    head = family.lm
    model, inputs = gated(family, head, shared_generator=layer == 1), inputs_for(family, head, 13, 5)
    one = sparse(model, family, head, [layer], shared_generator=layer == 1)
    with prompt_of(model).subnetwork([layer]):
        close(output(model, **inputs), output(one, **inputs))
    rest = [i for i in range(LAYERS) if i != layer]
    two = sparse(model, family, head, rest, shared_generator=layer == 1)
    with prompt_of(model).subnetwork(rest[::-1]):
        close(output(model, **inputs), output(two, **inputs))
    assert (output(one, **inputs) - output(two, **inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("family, head", cases(methods=False), ids=str)
@torch.no_grad()
def test_a_prompt_without_layers_is_the_frozen_backbone(family, head):
    opened, bare = gated(family, head), backbone(family, head)
    for side in ("right", "left"):
        inputs = inputs_for(family, head, 9, 5, side=side)
        with prompt_of(opened).subnetwork([]):
            assert torch.equal(output(opened, **inputs), output(bare, **inputs))
