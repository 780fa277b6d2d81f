"""SPT: prompts that read their input, gates, layers that do not see the prompt, consistency, the search of layers."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from datasets import Dataset
from hypothesis import given
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import softprompt
from families import (
    DECODERS,
    FAMILIES,
    FIRST,
    HIDDEN,
    LAYERS,
    PAD,
    VOCAB,
    P,
    backbone,
    batch,
    cases,
    close,
    config,
    output,
    prompted,
    stir,
    tokens,
    with_decoder,
)
from softprompt import LayerSearch, NonFiniteError, SearchCallback, SoftPromptError
from softprompt.data import collator, encode_classification
from softprompt.objectives import consistency
from softprompt.prompts import GeneratedPrompt
from softprompt.search import read_gates, split_for_search
from softprompt.tuner.layout import Layout
from test_contract_layout import MASK, PROMPT, placed_row
from test_contract_train import training_inputs
from tiny import save_backbone, tokenizer, write_classification, write_completion

BERT, LLAMA, T5 = FAMILIES["bert"], FAMILIES["llama"], FAMILIES["t5"]
EVERY = tuple(FAMILIES.values())


def gated(family, head, **options):
    """The family's tiny model with a stirred gated prompt at every layer."""
    return prompted(family, head, "spt", layers=None, **options)


def prompt_of(model):
    return softprompt.active_prompt(model)[0]


@torch.no_grad()
def sparse(model, family, head, layers, **options):
    """The sparse model that holds a gated model's parameters of these layers."""
    kept = prompted(family, head, "spt", layers=list(layers), **options)
    full = dict(prompt_of(model).named_parameters())
    for name, parameter in prompt_of(kept).named_parameters():
        one_for_all = len(full[name]) != LAYERS
        parameter.copy_(full[name] if one_for_all else full[name][list(layers)])
    return kept


def inputs_for(family, head, *lengths, side=None):
    side = side or ("left" if family.kind == "decoder" else "right")
    return with_decoder(family, head, batch(tokens(*lengths), side))


# ---------------------------------------------------------------------- 1. the generator

D, M, H, B = 2, 3, 6, 4  # sites, virtual tokens, hidden size, bottleneck
PHI = {
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "relu": lambda x: max(x, 0.0),
    "tanh": math.tanh,
    "identity": lambda x: x,
}
# padding on the right, on the left, on both sides; fewer tokens than slots; one token; no token
REAL = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
).bool()


def generator(pooling="average", seed=0, **options):
    """A small generated prompt in float64 with every parameter drawn."""
    torch.manual_seed(seed)
    prompt = GeneratedPrompt(D, M, H, B, pooling, **options).double()
    for parameter in prompt.parameters():
        nn.init.normal_(parameter)
    return prompt


def states(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kronecker_sum(rules, factors):
    """W[x n' + a][y m' + b] = sum_i A_i[x][y] B_i[a][b]."""
    n, rows, columns = len(rules), len(factors[0]), len(factors[0][0])
    return [
        [
            sum(rules[i][x // rows][y // columns] * factors[i][x % rows][y % columns] for i in range(n))
            for y in range(n * columns)
        ]
        for x in range(n * rows)
    ]


def pooled_by_hand(prompt, g, j, z):
    """c_j of the docstring from z_t of the real tokens, lists of floats."""
    n = len(z)
    if not n:
        return [0.0] * B
    if prompt.pooling == "attention":
        query = prompt.slot_query[g, j].tolist()
        scores = [sum(a * b for a, b in zip(query, row, strict=True)) / math.sqrt(B) for row in z]
        weights = [math.exp(s - max(scores)) for s in scores]
        return [sum(w * row[k] for w, row in zip(weights, z, strict=True)) / sum(weights) for k in range(B)]
    segment = z[math.floor(j * n / M) : math.ceil((j + 1) * n / M)]
    assert segment
    if prompt.pooling == "max":
        return [max(row[k] for row in segment) for k in range(B)]
    return [sum(row[k] for row in segment) / len(segment) for k in range(B)]


def rows_by_hand(prompt, site, tokens, real):
    """The docstring's formulas, one number at a time; [B, P, H]."""
    g = 0 if prompt.shared else site
    down, up = prompt.down[g].tolist(), prompt.up[g].tolist()
    if prompt.down_rule is not None:
        down = kronecker_sum(prompt.down_rule[g].tolist(), down)
        up = kronecker_sum(prompt.up_rule[g].tolist(), up)
    bias, start, phi = prompt.down_bias[g].tolist(), prompt.embedding[site].tolist(), PHI[prompt.activation]
    found = []
    for row, own in zip(tokens.tolist(), real.tolist(), strict=True):
        h = [token for token, kept in zip(row, own, strict=True) if kept]
        z = [[sum(t[x] * down[x][k] for x in range(H)) + bias[k] for k in range(B)] for t in h]
        c = [[phi(v) for v in pooled_by_hand(prompt, g, j, z)] for j in range(M)]
        found.append([[start[j][x] + sum(c[j][k] * up[k][x] for k in range(B)) for x in range(H)] for j in range(M)])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    "pooling, activation, shared, phm_factor",
    [
        ("average", "gelu", False, 0),
        ("max", "gelu", False, 0),
        ("attention", "gelu", False, 0),
        ("average", "relu", True, 2),
        ("max", "tanh", True, 0),
        ("attention", "identity", True, 2),
        ("max", "relu", False, 2),
    ],
)
@torch.no_grad()
def test_generated_prompt_equals_its_formula(pooling, activation, shared, phm_factor):
    prompt = generator(pooling, activation=activation, shared=shared, phm_factor=phm_factor)
    tokens = states(*REAL.shape, H)
    for site in range(D):
        expected = rows_by_hand(prompt, site, tokens, REAL)
        close(prompt.virtual(prompt(), site, tokens, REAL), expected, 1e-12)
        padded = torch.where(REAL.unsqueeze(-1), tokens, 1e6)  # what stands at padding is not read
        close(prompt.virtual(prompt(), site, padded, REAL), expected, 1e-12)
    close(prompt.virtual(prompt(), 0, tokens, None), rows_by_hand(prompt, 0, tokens, torch.ones_like(REAL)), 1e-12)


@pytest.mark.parametrize("length", [2, 3, 5, 8, 9])
@torch.no_grad()
def test_segments_are_those_of_adaptive_pooling(length):
    """With unit matrices the prompt is the pooling itself, and torch has the same pooling."""
    tokens = states(2, length, H)
    for pooling, reference in (("average", F.adaptive_avg_pool1d), ("max", F.adaptive_max_pool1d)):
        prompt = GeneratedPrompt(1, M, H, H, pooling, "identity").double()
        prompt.down.copy_(torch.eye(H))
        prompt.up.copy_(torch.eye(H))
        close(prompt.virtual(prompt(), 0, tokens, None), reference(tokens.mT, M).mT, 1e-12)


@pytest.mark.parametrize("pooling", ["average", "attention"])
def test_every_token_is_read(pooling):
    prompt, tokens = generator(pooling), states(1, 7, H).requires_grad_()
    rows = prompt.virtual(prompt(), 0, tokens, None)
    (gradient,) = torch.autograd.grad((rows * states(1, M, H)).sum(), tokens)
    assert (gradient.abs().amax(-1) > 0).all()


class Reader(nn.Module):
    """The rows of all sites as a function of tokens and parameters."""

    def __init__(self, prompt):
        super().__init__()
        self.prompt = prompt

    def forward(self, tokens, real):
        return torch.stack([self.prompt.virtual(self.prompt(), site, tokens, real) for site in range(D)])


@pytest.mark.parametrize(
    "pooling, activation, shared, phm_factor",
    [("average", "gelu", False, 0), ("max", "tanh", True, 2), ("attention", "gelu", False, 2)],
)
def test_gradients_of_every_parameter_and_of_the_tokens(pooling, activation, shared, phm_factor):
    reader = Reader(generator(pooling, activation=activation, shared=shared, phm_factor=phm_factor))
    names, values = zip(*reader.named_parameters(), strict=True)
    real = REAL[[0, 3, 5], :7]

    def forward(tokens, *parameters):
        return torch.func.functional_call(reader, dict(zip(names, parameters, strict=True)), (tokens, real))

    assert torch.autograd.gradcheck(forward, (states(*real.shape, H).requires_grad_(), *values))


@pytest.mark.parametrize(
    "pooling, shared, n", list(itertools.product(("average", "max", "attention"), (False, True), (0, 2)))
)
def test_parameter_count_is_the_docstrings(pooling, shared, n):
    prompt = GeneratedPrompt(D, M, H, B, pooling, shared=shared, phm_factor=n)
    g = 1 if shared else D
    matrices = 2 * (n**3 + H * B // n) if n else 2 * H * B
    expected = D * M * H + g * (matrices + B) + (g * M * B if pooling == "attention" else 0)
    assert sum(p.numel() for p in prompt.parameters()) == expected


@pytest.mark.parametrize("shared, n", [(False, 0), (True, 2)])
@pytest.mark.parametrize("pooling", ["average", "max", "attention"])
@torch.no_grad()
def test_a_generated_prompt_starts_as_a_deep_prompt(pooling, shared, n):
    """Whatever it reads, a started prompt gives exactly the rows it was started from; the rest of it is drawn."""
    rows = states(D, M, H, seed=2)
    started = []
    for seed in (1, 1, 2):
        prompt = GeneratedPrompt(D, M, H, B, pooling, shared=shared, phm_factor=n).double()
        prompt.start_from(rows, torch.Generator().manual_seed(seed))
        for site in range(D):
            assert torch.equal(prompt.virtual(prompt(), site, states(*REAL.shape, H), REAL), rows[site].expand(6, M, H))
        started.append(prompt.state_dict())
    one, again, other = started
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["down"], other["down"])
    assert not one["up"].any() and not one["down_bias"].any()


def test_a_new_generated_prompt_draws_nothing():
    before = torch.get_rng_state()
    prompt = GeneratedPrompt(D, M, H, B, "attention", phm_factor=2)
    prompt.add_gates()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(bool(p.any()) for p in prompt.parameters())


@pytest.mark.parametrize("pooling, n, gates", [("average", 0, False), ("attention", 2, True)])
def test_groups_hold_every_parameter_of_a_generated_prompt_once(pooling, n, gates):
    prompt = GeneratedPrompt(D, M, H, B, pooling, phm_factor=n)
    if gates:
        prompt.add_gates()
    groups = prompt.parameter_groups()
    assert list(groups) == ["prompt", "generator", *(["gates"] if gates else [])]
    held = [id(p) for group in groups.values() for p in group]
    assert sorted(held) == sorted(id(p) for p in prompt.parameters())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bottleneck": 0}, "a generated prompt needs bottleneck >= 1, got 0."),
        ({"bottleneck": 6, "phm_factor": 4}, "phm_factor=4 must divide hidden_size=32 and bottleneck=6."),
        ({"bottleneck": 6, "phm_factor": 3}, "phm_factor=3 must divide hidden_size=32 and bottleneck=6."),
        (
            {"generator_pooling": "mean"},
            "unknown generator_pooling 'mean': expected one of average, max, attention. Did you mean 'max'?",
        ),
        (
            {"generator_activation": "gelo"},
            "unknown generator_activation 'gelo': expected one of gelu, relu, tanh, identity. Did you mean 'gelu'?",
        ),
    ],
)
def test_a_generator_that_cannot_be_made_is_refused(options, message):
    with pytest.raises(SoftPromptError) as caught:
        get_peft_model(backbone(BERT, "base"), softprompt.spt(**{"bottleneck": 4, **options}))
    assert str(caught.value) == message


# ---------------------------------------------------------------------- 2. the prompt behind the tokens


@given(PROMPT, MASK)
def test_behind_the_tokens_remove_undoes_place(length, mask):
    layout, rows = Layout.of(length, mask, False, behind=True), torch.randn(*mask.shape, 3)
    prompt = torch.randn(len(mask), length, 3)
    placed = layout.place(prompt, rows)
    assert placed.shape == (len(mask), mask.shape[1] + length, 3)
    assert torch.equal(layout.remove(placed), rows)
    assert torch.equal(layout.prompt(placed), prompt)


@given(PROMPT, MASK)
def test_behind_the_tokens_the_prompt_follows_the_last_real_token(length, mask):
    """Tokens count from index 0 as they do without padding on the left; without it, no token moves at all."""
    layout = Layout.of(length, mask, False, behind=True)
    for row, real in zip(placed_row(layout, mask, length).tolist(), mask, strict=True):
        numbers = [int(i) + 1 for i in real.nonzero()]
        assert sorted(row) == sorted([*range(-length, 0), *range(1, mask.shape[1] + 1)])
        if numbers:
            assert row[: len(numbers)] == numbers
            assert row[len(numbers) : len(numbers) + length] == [-i for i in range(1, length + 1)]
        if real[0]:
            assert [row.index(n) for n in numbers] == [n - 1 for n in numbers]


@given(PROMPT, MASK)
def test_behind_the_tokens_the_mask_follows(length, mask):
    layout = Layout.of(length, mask, False, behind=True)
    numbers = placed_row(layout, mask, length)
    placed = layout.place(mask.new_ones(1, length), mask)
    for seen, number, own in zip(placed, numbers, mask, strict=True):
        assert seen.tolist() == [1 if n < 0 else int(own[n - 1]) for n in number.tolist()]
    assert torch.equal(layout.columns(mask), numbers < 0)


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


# ---------------------------------------------------------------------- 6 and 7. layers before the first site


def token_states(model, inputs, late=None):
    """What each layer of the stack puts out at the input's own positions; ``late`` of a prompted model."""
    found = softprompt.tuner.find_backbone(getattr(model, "get_base_model", lambda: model)())
    outputs = []
    hooks = [
        layer.register_forward_hook(lambda _, args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for layer in found.layers
    ]
    try:
        output(model, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if late is None:
        return outputs
    layout = Layout.of(P, inputs["attention_mask"], found.causal, late and found.hidden_behind)
    return [layout.remove(states) for states in outputs]


def attentions(family):
    return ("eager", "sdpa") if backbone(family, family.lm)._supports_sdpa else ("eager",)


@pytest.mark.parametrize("family, kind", [(f, k) for f in EVERY for k in attentions(f)], ids=str)
@torch.no_grad()
def test_tokens_do_not_see_the_prompt_before_its_first_layer(family, kind):
    """Alone and padded on either side, against each row alone in the bare backbone; from the first layer on they do."""
    head, rows = family.lm, tokens(13, 6)
    bare = backbone(family, head)
    bare.set_attn_implementation(kind)
    expected = [token_states(bare, with_decoder(family, head, batch([row]))) for row in rows]
    for first in (1, 2):
        model = prompted(family, head, "spt", layers=[first])
        model.get_base_model().set_attn_implementation(kind)
        batches = [(batch(rows, side), rows) for side in ("right", "left")] + [(batch([row]), [row]) for row in rows]
        for inputs, own in batches:
            actual = token_states(model, with_decoder(family, head, inputs), late=True)
            for at, row in enumerate(own):
                reference = expected[0 if row is rows[0] else 1]
                real = inputs["attention_mask"][at].bool()
                for i in range(LAYERS):
                    if i < first:
                        close(actual[i][at][real], reference[i][0])
                    else:
                        assert (actual[i][at][real] - reference[i][0]).abs().max() > 1e-3


@pytest.mark.parametrize("family", [BERT, LLAMA, T5], ids=str)
def test_nothing_is_kept_for_backward_below_the_first_layer(family):
    head = family.lm
    inputs = inputs_for(family, head, 9, 5)
    for first in range(LAYERS):
        model = prompted(family, head, "spt", layers=[first]).train()
        kept, running = dict.fromkeys(range(LAYERS), 0), [-1]
        for i, layer in enumerate(softprompt.tuner.find_backbone(model.get_base_model()).layers):
            layer.register_forward_pre_hook(lambda *_, i=i, running=running: running.append(i), prepend=True)
            layer.register_forward_hook(lambda *_, running=running: running.append(-1))

        def count(tensor, kept=kept, running=running):
            if running[-1] >= 0:
                kept[running[-1]] += 1
            return tensor

        if family is LLAMA:
            inputs = {**inputs, "labels": inputs["input_ids"].clone().index_fill(1, torch.arange(5), -100)}
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output(model, **inputs).sum().backward()
        assert [kept[i] > 0 for i in range(LAYERS)] == [i >= first for i in range(LAYERS)], (first, kept)


# ---------------------------------------------------------------------- 8. consistency


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


# ---------------------------------------------------------------------- 9. what a prompt may read


@contextmanager
def entered(model, inputs):
    """Inside, note what stands at the prompt positions as it enters each layer; a list of [B, P, H] per pass."""
    found, seen = softprompt.tuner.find_backbone(model.get_base_model()), []

    def note(layer, args):
        if layer is found.layers[0]:
            seen.append([])
        mask, length = inputs["attention_mask"], args[0].shape[1] - P
        mask = F.pad(mask, (0, length - mask.shape[1]), value=1)  # generate without a cache reads its own words again
        seen[-1].append(Layout.of(P, mask, found.causal).prompt(args[0]))

    hooks = [layer.register_forward_pre_hook(note) for layer in found.layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def pass_of(model, inputs):
    """Prompt rows by layer [L, B, P, H], and logits, of one pass."""
    with entered(model, inputs) as passes:
        logits = output(model, **inputs)
    (rows,) = passes
    return torch.stack(rows), logits


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", ["spt_all", "spt_last", "spt_gated"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_a_prompt_in_a_causal_model_does_not_read_the_answer(name, method, side):
    model, inputs = prompted(FAMILIES[name], "causal_lm", method, consistency=0.0).train(), batch(tokens(12, 9), side)
    mask = inputs["attention_mask"]
    order = mask.cumsum(1) * mask  # the t-th real token
    source = (order > 0) & (order <= 5)
    labels = inputs["input_ids"].masked_fill(source | (mask == 0), -100)
    rows, logits = pass_of(model, {**inputs, "labels": labels})

    answer = torch.where(labels == -100, inputs["input_ids"], (inputs["input_ids"] + 7) % (VOCAB - FIRST) + FIRST)
    assert not torch.equal(answer, inputs["input_ids"])
    changed = {**inputs, "input_ids": answer, "labels": torch.where(labels == -100, labels, answer)}
    same_rows, same_logits = pass_of(model, changed)
    assert torch.equal(same_rows, rows)
    close(same_logits[source], logits[source], 1e-6)
    assert (same_logits - logits)[~source & mask.bool()].abs().max() > 1e-2

    asked = torch.where(order == 3, (inputs["input_ids"] + 7) % (VOCAB - FIRST) + FIRST, inputs["input_ids"])
    other_rows, other_logits = pass_of(model, {**inputs, "input_ids": asked, "labels": labels})
    assert (other_rows[-1] - rows[-1]).abs().amax((1, 2)).min() > 1e-3
    assert (other_logits - logits)[order == 2].abs().max() > 1e-3  # through the prompt: attention is causal


@torch.no_grad()
def test_every_row_gets_its_own_prompt():
    """Not every row's prompt from the first row; and equal rows get equal prompts, wherever they stand."""
    row, other = tokens(9, 9)
    rows, _ = pass_of(prompted(BERT, "seq_cls", "spt_all"), batch([row, other, row]))
    close(rows[:, 0], rows[:, 2], 1e-6)
    assert (rows[:, 0] - rows[:, 1]).abs().amax((1, 2)).min() > 1e-2


def test_training_a_causal_model_needs_labels():
    model = prompted(LLAMA, "causal_lm", "spt").train()
    with pytest.raises(SoftPromptError) as caught:
        model(**batch(tokens(5)))
    assert str(caught.value) == (
        "a generated prompt reads the source of a causal language model and needs labels to know it: "
        "expected labels with -100 on the source, got none; pass labels to the model."
    )
    model(**training_inputs(LLAMA, "causal_lm")).loss.backward()


@pytest.mark.parametrize("method", ["spt_all", "spt_last"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_generate_reads_only_the_given_text(name, method):
    """Without a cache the prompt is made anew for every word, from the same text; with one it is made once."""
    model, inputs = prompted(FAMILIES[name], "causal_lm", method), batch(tokens(13, 4), "left")
    options = {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5, "pad_token_id": PAD}
    with entered(model, inputs) as passes:
        words = model.generate(**inputs, use_cache=False, **options)
    rows = [layers[-1] for layers in passes]
    assert len(rows) == 5
    for later in rows[1:]:
        close(later, rows[0])
    assert torch.equal(model.generate(**inputs, **options), words)
    # scoring the same words with labels gives what was generated
    mask = F.pad(inputs["attention_mask"], (0, 5), value=1)
    labels = words.index_fill(1, torch.arange(inputs["input_ids"].shape[1]), -100)
    scored = output(model, input_ids=words, attention_mask=mask, labels=labels)
    assert torch.equal(scored.argmax(-1)[:, -6:-1], words[:, -5:])


@pytest.mark.parametrize("family", [f for f in DECODERS if "seq_cls" in f.heads], ids=str)
@torch.no_grad()
def test_a_classifier_on_a_causal_stack_reads_all_tokens(family):
    model, inputs = prompted(family, "seq_cls", "spt_all").train(), batch(tokens(9, 9))
    rows, _ = pass_of(model, {**inputs, "labels": torch.tensor([0, 1])})
    for at in (0, 5, 8):
        changed = inputs["input_ids"].clone()
        changed[:, at] = (changed[:, at] + 7) % (VOCAB - FIRST) + FIRST
        other, _ = pass_of(model, {**inputs, "input_ids": changed})
        assert (other[0] - rows[0]).abs().amax((1, 2)).min() > 1e-4


# ---------------------------------------------------------------------- 10. one step of the search


def moved(before, model):
    """Names of the parameters whose values changed."""
    return {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}


def values(model):
    return {key: value.detach().clone() for key, value in model.named_parameters()}


def adam(alpha, gradients, rate):
    """AdamW without decay, by its formulas."""
    first = second = torch.zeros_like(alpha)
    for t, gradient in enumerate(gradients, 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        alpha = alpha - rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return alpha


@pytest.mark.parametrize("family, head", [(BERT, "seq_cls"), (LLAMA, "causal_lm")], ids=str)
def test_a_search_moves_the_gates_and_training_moves_the_rest(family, head):
    model, inputs = gated(family, head).train(), training_inputs(family, head)
    search = LayerSearch(model)
    groups = softprompt.parameter_groups(model, 0.05)
    assert [group["name"] for group in groups] == ["prompt", "generator", *(["head"] if head == "seq_cls" else [])]
    assert not search.logits.requires_grad
    gates = {key for key in values(model) if key.endswith("gate_logits")}
    ours = {key for key in values(model) if "softprompt_" in key or "modules_to_save.default" in key} - gates
    optimizer, before = torch.optim.AdamW(groups, weight_decay=0.0), values(model)
    model(**inputs).loss.backward()
    optimizer.step()
    assert moved(before, model) == ours

    before, gradients = values(model), {key: p.grad.clone() for key, p in model.named_parameters() if key in ours}
    search.search_step(inputs)
    assert moved(before, model) == gates
    assert not search.logits.requires_grad and search.logits.grad is None
    for key, parameter in model.named_parameters():
        if key in ours:
            assert torch.equal(parameter.grad, gradients[key])
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("rate", [None, 0.03])
def test_search_steps_are_adamws_on_the_gradient_of_the_task_loss(rate):
    """The consistency loss is for the weights: it is no part of the gates' gradient."""
    model, inputs = gated(BERT, "seq_cls").train(), training_inputs(BERT, "seq_cls")
    search, alpha, gradients = LayerSearch(model, rate), prompt_of(model).gate_logits, []
    start = alpha.detach().clone()
    for _ in range(2):
        alpha.requires_grad_(True)
        with model.base_model.state.plainly():
            expected = model(**inputs).loss
        gradients += torch.autograd.grad(expected, alpha)
        alpha.requires_grad_(False)
        assert search.search_step(inputs) == expected.item()
    close(alpha, adam(start, gradients, rate or 0.01), 1e-6)
    assert search.gates == pytest.approx(torch.sigmoid(alpha).tolist())


def test_the_rate_of_the_gates_is_the_configs():
    model = gated(BERT, "seq_cls", learning_rates={"gates": 0.2})
    assert LayerSearch(model).optimizer.param_groups[0]["lr"] == 0.2
    assert LayerSearch(model, 0.5).optimizer.param_groups[0]["lr"] == 0.5


def test_a_loss_that_is_not_finite_leaves_the_gates():
    model, inputs = gated(BERT, "seq_cls"), training_inputs(BERT, "seq_cls")
    search = LayerSearch(model)
    search.search_step(inputs)
    before, moments = values(model), search.optimizer.state[search.logits]["exp_avg"].clone()
    with torch.no_grad():
        kept = prompt_of(model).embedding.clone()
        prompt_of(model).embedding.fill_(math.nan)
    with pytest.raises(
        NonFiniteError, match="expected a finite validation loss in the search of layers, got nan; lower"
    ):
        search.search_step(inputs)
    with torch.no_grad():
        prompt_of(model).embedding.copy_(kept)
    assert not moved(before, model) and not search.logits.requires_grad
    assert torch.equal(search.optimizer.state[search.logits]["exp_avg"], moments)
    search.search_step(inputs)
    assert all(map(math.isfinite, search.gates))


def test_select_keeps_the_best_layers():
    model = gated(BERT, "seq_cls")
    search = LayerSearch(model)
    search.logits.copy_(torch.tensor([0.5, -1.0, 2.0]))
    by_gates = search.select(2)
    assert by_gates.layers == [0, 2] and by_gates.candidates == [0, 1, 2] and by_gates.scores == by_gates.gates
    assert by_gates.gates == pytest.approx([1 / (1 + math.exp(-x)) for x in (0.5, -1.0, 2.0)])
    by_scores = search.select(2, [1.0, 3.0, 2.0])
    assert by_scores.layers == [1, 2] and by_scores.scores == [1.0, 3.0, 2.0] and by_scores.gates == by_gates.gates
    assert search.select(3).layers == [0, 1, 2]
    assert search.select(2, [1.0, 1.0, 1.0]).layers == [0, 1]  # ties go to the lower layer
    for budget in (0, 4, -1):
        with pytest.raises(SoftPromptError, match=f"budget: expected 1 to 3 layers .* got {budget}."):
            search.select(budget)


def test_select_names_layers_not_sites():
    candidates = softprompt.SoftPromptConfig(prompt="generated", placement="gated", layers=[0, 2], bottleneck=6)
    search = LayerSearch(get_peft_model(backbone(BERT, "seq_cls"), candidates))
    assert search.select(1, [0.0, 1.0]).layers == [2]
    assert search.select(2, [0.0, 1.0]).candidates == [0, 2]


@pytest.mark.parametrize("method", ["spt", "deep_prompts", "prompt_tuning"])
def test_a_prompt_without_gates_cannot_be_searched(method):
    with pytest.raises(SoftPromptError) as caught:
        LayerSearch(prompted(BERT, "seq_cls", method))
    placement = "input" if method == "prompt_tuning" else "deep"
    assert str(caught.value) == (
        f"a search of layers needs a prompt with gates: expected placement='gated', got {placement!r}; "
        "softprompt.spt() without layers has them."
    )


@pytest.mark.parametrize("family, head", [(BERT, "seq_cls"), (T5, "seq2seq_lm")], ids=str)
@torch.no_grad()
def test_ablation_scores_equal_separate_evaluations_of_sparse_prompts(family, head):
    model = gated(family, head, decoupled_gates=False)
    batches = [training_inputs(family, head) for _ in range(2)]
    batches[1] = {key: value[:1] if len(value) == 2 else value for key, value in batches[1].items()}  # 2 rows and 1

    def score(*layers):
        kept = sparse(model, family, head, layers)
        losses = [kept.get_base_model()(**inputs).loss.item() for inputs in batches]
        return -(2 * losses[0] + losses[1]) / 3

    model.train()
    found = LayerSearch(model).ablation_scores(batches)
    assert model.training
    others = {0: (1, 2), 1: (0, 2), 2: (0, 1)}
    expected = [score(0, 1, 2) - score(*others[i]) + score(i) for i in range(LAYERS)]
    close(torch.tensor(found), torch.tensor(expected))
    assert len({round(x, 4) for x in found}) == LAYERS


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_search_step_runs_under_gradient_checkpointing(reentrant):
    inputs, plain, recomputed = training_inputs(BERT, "seq_cls"), gated(BERT, "seq_cls"), gated(BERT, "seq_cls")
    recomputed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    searches = [LayerSearch(model.train()) for model in (plain, recomputed)]
    for search in searches:
        search.search_step(inputs)
    close(*(torch.tensor(search.gates) for search in searches))


# ---------------------------------------------------------------------- 11. the two halves


def encoded(*labels):
    return Dataset.from_dict({"input_ids": [[i] for i in range(len(labels))], "labels": list(labels)})


def ids(rows):
    return [row[0] for row in rows["input_ids"]]


def test_the_halves_are_disjoint_stratified_and_seeded():
    rows = encoded(*[0] * 20, *[1] * 11, *[2] * 6)
    train, held = split_for_search(rows, 3)
    assert sorted(ids(train) + ids(held)) == list(range(37))
    assert len(held) == 18 and len(train) == 19
    for label, count in ((0, 20), (1, 11), (2, 6)):
        assert abs(held["labels"].count(label) - count / 2) < 1
    again, other = split_for_search(rows, 3)[1], split_for_search(rows, 4)[1]
    assert ids(again) == ids(held) != ids(other)


def test_one_row_cannot_be_halved():
    with pytest.raises(
        SoftPromptError, match=r"a search of layers halves the training rows: expected at least 2, got 1\."
    ):
        split_for_search(encoded(0), 0)


def test_completion_rows_are_halved_too():
    train, held = split_for_search(encoded([-100, 7], [-100, 8], [9], [-100, 9]), 0)
    assert len(train) == len(held) == 2 and sorted(ids(train) + ids(held)) == [0, 1, 2, 3]


def test_one_row_per_class_leaves_rows_for_the_gates():
    """Or is refused: an empty half fails later, with a division by zero."""
    try:
        train, held = split_for_search(encoded(0, 1, 2, 3), 0)
    except SoftPromptError:
        return
    assert len(train) == len(held) == 2


# ---------------------------------------------------------------------- 12. the search beside a trainer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    return write_classification(tmp_path_factory.mktemp("animals"), rows=24)


class StopAt(TrainerCallback):
    """Stand-in for a kill: leave the loop after its ``step``-th step, in phases whose folder has ``where`` in it."""

    def __init__(self, step, where=""):
        self.step, self.where = step, where

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.where in args.output_dir:
            raise KeyboardInterrupt


def searched(encoder, animals, folder, *callbacks, resume=None):
    """Five steps with checkpoints after two and four (an epoch has three), with the backbone's own dropout."""
    torch.manual_seed(0)
    model = softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["bird", "cat", "dog"], "mean")
    model = get_peft_model(model, softprompt.spt(4, bottleneck=4, task_type="SEQ_CLS"))
    search = LayerSearch(model)
    words = tokenizer()
    rows, gate_rows = split_for_search(encode_classification(words, softprompt.load_task(animals).train, 24), 0)
    collate = collator(words, "classification")
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=5,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        save_strategy="steps",
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    callback = SearchCallback(search, gate_rows, collate, folder / "gates.jsonl", seed=1)
    trainer = softprompt.PromptTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[callback, *callbacks]
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, search, rows, gate_rows


def test_an_interrupted_search_goes_on_bit_for_bit(encoder, animals, tmp_path):
    model, search, *_ = searched(encoder, animals, tmp_path / "whole")
    log = tmp_path / "whole" / "gates.jsonl"
    entries = read_gates(log)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[-1]["gates"] == search.gates != [0.5, 0.5]
    assert all(math.isfinite(entry["loss"]) for entry in entries)

    for step, checkpoint in ((3, 2), (5, 4)):  # killed a step after the checkpoint, while the next line was written
        cut = tmp_path / f"cut{step}"
        with pytest.raises(KeyboardInterrupt):
            searched(encoder, animals, cut, StopAt(step))
        assert [entry["step"] for entry in read_gates(cut / "gates.jsonl")] == list(range(1, step + 1))
        with (cut / "gates.jsonl").open("a") as file:
            file.write('{"step": 4, "loss": 0.')
        assert [entry["step"] for entry in read_gates(cut / "gates.jsonl")] == list(range(1, step + 1))
        resumed, other, *_ = searched(encoder, animals, cut, resume=str(cut / f"checkpoints/checkpoint-{checkpoint}"))
        assert torch.equal(other.logits, search.logits)
        assert (cut / "gates.jsonl").read_text() == log.read_text()
        for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, two)


def test_every_pass_of_the_gates_takes_every_row_once(tmp_path):
    rows = encoded(*range(12))
    callback = SearchCallback(LayerSearch(gated(BERT, "seq_cls")), rows, lambda picked: picked, tmp_path / "log", 5)

    def taken(*steps, size=4):
        return [row["input_ids"][0] for step in steps for row in callback.batch(step, size)]

    assert sorted(taken(0, 1, 2)) == sorted(taken(3, 4, 5)) == list(range(12))
    assert taken(0, 1, 2) != taken(3, 4, 5)
    assert taken(4) == taken(4)  # a resumed search finds its batch again
    assert len(taken(0, size=5)) == 5 and len(set(taken(0, 1, size=5))) == 10
    assert sorted(taken(7, size=100)) == list(range(12))


# ---------------------------------------------------------------------- 13. a planted layer

DEPTH, LENGTH = 4, 6


def planted(seed, at, **options):
    """A random frozen encoder, its head included, in which a prompt can help at layer ``at`` only.

    In the other layers the tokens do not see the prompt positions; instead they are disturbed by what stands there, in
    a direction drawn anew in every pass, so that these gates have gradients too. What layers put out at the prompt
    positions is dropped. The prompt starts at zero, as what propagates. The head cannot learn, and its threshold is
    three standard deviations off, so that at the start half of the rows are right.
    """
    draw = torch.Generator().manual_seed(seed)
    base = tf.BertForSequenceClassification(BERT.config(num_hidden_layers=DEPTH, num_labels=2))
    with torch.no_grad():
        for key, parameter in base.named_parameters():
            noise, wide = torch.randn(parameter.shape, generator=draw), parameter.dim() > 1
            parameter.copy_((0.5 if "embed" in key else 0.2) * noise if wide else parameter + 0.1 * noise)
    # not SEQ_CLS, which would train the head
    given = {"bottleneck": 4, "consistency": 0.1, "task_type": "FEATURE_EXTRACTION", "init_seed": seed, **options}
    model = get_peft_model(base.eval(), softprompt.spt(P, **given))
    prompt, layers = prompt_of(model), base.bert.encoder.layer

    def prompt_positions(hidden):
        position = torch.arange(hidden.shape[1])
        return position >= LENGTH if prompt.is_late() else position < hidden.shape[1] - LENGTH

    def hide(layer, args):
        own = prompt_positions(args[0])
        hidden = torch.zeros(len(own), len(own)).masked_fill(own & ~own[:, None], torch.finfo(torch.float32).min)
        return (args[0], hidden[None, None], *args[2:])

    def disturb(layer, args, out):
        own = prompt_positions(out)
        read, write = torch.randn(2, HIDDEN, generator=draw)
        push = (args[0][:, own].mean(1) @ read / HIDDEN**0.5)[:, None, None] * write
        return out + 0.3 * push * (~own)[:, None]

    for i, layer in enumerate(layers):
        if i != at:
            layer.register_forward_pre_hook(hide)
            layer.register_forward_hook(disturb)
        layer.register_forward_hook(lambda _, args, out: out.masked_fill(prompt_positions(out)[:, None], 0))
    rows = torch.randint(FIRST, VOCAB, (256, LENGTH), generator=draw)
    with torch.no_grad():
        prompt.embedding.zero_()
        logits = base(input_ids=rows).logits
        margin = logits[:, 1] - logits[:, 0]
        base.classifier.weight /= margin.std()
        base.classifier.bias /= margin.std()
        base.classifier.bias[1] -= margin.median() / margin.std() + 3
    return model, rows, (margin > margin.median()).long(), draw


def search_planted(seed, steps, **options):
    """The layer that the search finds, and the one that was planted."""
    at = seed % DEPTH
    model, rows, labels, draw = planted(seed, at, **options)
    search = LayerSearch(model.train())
    optimizer = torch.optim.AdamW(softprompt.parameter_groups(model, 0.02), weight_decay=0.0)
    torch.manual_seed(seed)  # sub-networks

    def drawn(first, last):
        picked = torch.randint(first, last, (32,), generator=draw)
        return {"input_ids": rows[picked], "labels": labels[picked]}

    for _ in range(steps):
        optimizer.zero_grad()
        model(**drawn(0, 128)).loss.backward()
        optimizer.step()
        search.search_step(drawn(128, 256))
    return search.select(1).layers[0], at


@pytest.mark.parametrize("decoupled", [True, False], ids=["decoupled", "soft"])
def test_the_search_finds_the_layer_where_a_prompt_helps(decoupled):
    found = [search_planted(seed, 12, decoupled_gates=decoupled) for seed in range(10)]
    assert sum(layer == at for layer, at in found) >= 9, found


def test_without_a_search_the_layer_is_not_found():
    """Negative control: equal gates give the lowest layer, wherever the planted one is."""
    assert [search_planted(seed, 0) for seed in range(4)] == [(0, 0), (0, 1), (0, 2), (0, 3)]


# ---------------------------------------------------------------------- 14. runs


def run(encoder, data, folder, *callbacks, resume=False, **more):
    flat = {
        "backbone": str(encoder),
        "data": str(data),
        "output_dir": str(folder),
        "method": "spt",
        "num_virtual_tokens": 4,
        "bottleneck": 4,
        "budget": 1,
        "search_epochs": 2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "max_length": 24,
        "dtype": "float32",
        "disable_tqdm": True,
    }
    options = softprompt.RunOptions.from_flat({**flat, **more})
    return softprompt.train(options, resume=resume, callbacks=list(callbacks))


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def whole(encoder, animals, tmp_path_factory):
    return run(encoder, animals, tmp_path_factory.mktemp("whole") / "out")


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_run_writes_down_its_search(whole):
    found = read_json(whole.folder / "search" / "selection.json")
    entries = read_gates(whole.folder / "search" / "gates.jsonl")
    assert found["rows"] == {"weights": 12, "gates": 12}  # the halves of 24 training rows; dev and test stay out
    assert found["steps"] == len(entries) == 2 * 3
    assert found["candidates"] == [0, 1] and found["layer_score"] == "gates" and found["seed"] == 42
    assert found["gates"] == found["scores"] == entries[-1]["gates"]
    assert found["layers"] == [max(found["candidates"], key=lambda i: found["gates"][i])]
    assert read_json(whole.folder / "result.json")["train_info"]["search"] == found
    saved = read_json(whole.folder / "adapter_config.json")
    assert (saved["placement"], saved["layers"], saved["prompt"]) == ("deep", found["layers"], "generated")
    prompt = softprompt.read_prompt(whole.folder)
    assert prompt.layers == tuple(found["layers"]) and prompt.gate_logits is None and len(prompt.embedding) == 1
    predictor = softprompt.Predictor(whole.folder)
    task = softprompt.load_task(whole.document["run_info"]["train_config"]["data"])
    assert predictor.evaluate(task.test)["accuracy"] == pytest.approx(whole.metrics["test accuracy"])


def test_a_learning_rate_of_the_gates_is_the_search_s_alone(encoder, animals, whole, tmp_path):
    fast = run(encoder, animals, tmp_path / "out", search_epochs=1, learning_rates={"gates": 1.0, "generator": 0.01})
    moved = [
        max(abs(a - 0.5) for a in read_gates(x.folder / "search" / "gates.jsonl")[0]["gates"]) for x in (fast, whole)
    ]
    assert moved[0] > 2 * moved[1] > 0
    assert read_json(fast.folder / "adapter_config.json")["learning_rates"] == {"generator": 0.01}


def same_without_a_search(encoder, animals, folder, **options):
    """Run with a search, then name its layers; both must end in the same weights."""
    done = run(encoder, animals, folder / "searched", init_seed=0, **options)
    layers = done.document["train_info"]["search"]["layers"]
    direct = run(encoder, animals, folder / "direct", init_seed=0, layers=layers, **options)
    assert not (folder / "direct" / "search").exists() and "search" not in direct.document["train_info"]
    assert weights(folder / "searched") == weights(folder / "direct")
    assert direct.metrics == done.metrics
    assert direct.document["train_info"]["train_steps"] == 2 * 6  # of all 24 rows


def test_nothing_of_the_search_is_left_but_the_layers(encoder, animals, tmp_path):
    same_without_a_search(encoder, animals, tmp_path)


def test_a_run_killed_between_the_phases_goes_on_bit_for_bit(whole, encoder, animals, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole.folder / "search", folder / "search")
    options = {**read_json(whole.folder / "run.json"), "output_dir": str(folder)}
    (folder / "run.json").write_text(json.dumps(options))
    resumed = run(encoder, animals, folder, resume=True)
    assert weights(folder) == weights(whole.folder) and resumed.metrics == whole.metrics
    assert resumed.document["train_info"]["search"] == whole.document["train_info"]["search"]


class Steps(TrainerCallback):
    """Count the steps of each phase that this process takes."""

    def __init__(self):
        self.taken = {}

    def on_step_end(self, args, state, control, **kwargs):
        phase = Path(args.output_dir).parent.name
        self.taken[phase] = self.taken.get(phase, 0) + 1


# an epoch, at whose end a checkpoint is written, has 3 steps in the search and 6 after it
@pytest.mark.parametrize(
    "where, step, left",
    [
        ("out/search", 4, {"search": 3, "out": 12}),
        ("out/checkpoints", 1, {"out": 12}),
        ("out/checkpoints", 8, {"out": 6}),
    ],
)
def test_a_run_killed_in_a_phase_goes_on_bit_for_bit(whole, encoder, animals, tmp_path, where, step, left):
    folder, steps = tmp_path / "out", Steps()
    with pytest.raises(KeyboardInterrupt):
        run(encoder, animals, folder, StopAt(step, where))
    assert (folder / "search" / "selection.json").exists() == (where != "out/search")
    resumed = run(encoder, animals, folder, steps, resume=True)
    assert steps.taken == left
    assert weights(folder) == weights(whole.folder) and resumed.metrics == whole.metrics
    for name in ("gates.jsonl", "selection.json"):
        one, two = ((f / "search" / name).read_text() for f in (folder, whole.folder))
        if name == "selection.json":
            one, two = ({**json.loads(text), "seconds": 0} for text in (one, two))
        assert one == two


@pytest.mark.parametrize("options", [{"head_init": "random"}, {"head": "stock"}], ids=str)
def test_a_head_is_trained_anew_too(encoder, animals, tmp_path, options):
    """Otherwise a run killed between the phases, whose head is fresh, differs from one that was not."""
    same_without_a_search(encoder, animals, tmp_path, **options)


def test_a_budget_beyond_the_layers_leaves_the_folder_free(encoder, animals, tmp_path):
    with pytest.raises(SoftPromptError, match=r"budget: expected 1 to 2 layers .* got 3\."):
        run(encoder, animals, tmp_path / "out", budget=3)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_layers_may_be_scored_by_ablation(encoder, animals, tmp_path):
    result = run(encoder, animals, tmp_path / "out", layer_score="ablation", num_train_epochs=1, search_epochs=1)
    found = result.document["train_info"]["search"]
    assert found["layer_score"] == "ablation" and found["scores"] != found["gates"]
    assert found["layers"] == [max(found["candidates"], key=lambda i: found["scores"][i])]


def test_a_completion_task_is_searched_too(tmp_path):
    decoder, data = save_backbone(tmp_path / "decoder", "decoder"), write_completion(tmp_path / "data")
    result = run(decoder, data, tmp_path / "out", num_train_epochs=1, search_epochs=1)
    assert result.document["train_info"]["search"]["rows"] == {"weights": 12, "gates": 12}


# ---------------------------------------------------------------------- 15. two processes


def two_steps(search, inputs):
    return [search.search_step(inputs) for _ in range(2)]


def in_one_of_two(rank, folder):
    """Run in a process of its own: two steps on this process's half, one on a loss that is NaN in one of them."""
    from accelerate import PartialState

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    PartialState(cpu=True)
    model, inputs = gated(BERT, "seq_cls"), four_rows()
    search = LayerSearch(model)
    half = {key: value[2 * rank : 2 * rank + 2] for key, value in inputs.items()}
    losses = two_steps(search, half)
    callback = SearchCallback(search, encoded(*range(12)), lambda picked: picked, folder)
    taken = [[row["input_ids"][0] for row in callback.batch(step, 3)] for step in range(2)]
    found = {"losses": losses, "alpha": search.logits.tolist(), "taken": taken}
    if rank:
        torch.nn.init.constant_(prompt_of(model).embedding, math.nan)
    try:
        search.search_step(half)
    except NonFiniteError:
        found["stopped"] = search.logits.tolist()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def four_rows():
    return {**batch(tokens(9, 9, 9, 9)), "labels": torch.tensor([0, 2, 1, 1])}


def test_two_processes_take_the_step_of_one_on_the_whole_batch(tmp_path):
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "ACCELERATE"))}
    plain |= {"PYTHONPATH": here, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": "2"}
    plain |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    command = "import sys, test_spt; test_spt.in_one_of_two(int(sys.argv[1]), sys.argv[2])"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", command, str(rank), str(tmp_path)],
            env={**plain, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    first, second = (read_json(tmp_path / f"{rank}.json") for rank in range(2))
    assert first["alpha"] == second["alpha"] and first["losses"] == second["losses"]
    assert first["stopped"] == second["stopped"] == first["alpha"]
    assert sorted(itertools.chain(*first["taken"], *second["taken"])) == list(
        range(12)
    )  # together one pass over the rows

    search = LayerSearch(gated(BERT, "seq_cls"))
    losses = two_steps(search, four_rows())
    assert first["losses"] == pytest.approx(losses, abs=1e-6)
    close(torch.tensor(first["alpha"]), search.logits, 1e-6)
