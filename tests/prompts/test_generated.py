"""Generated prompts: formulas, gradients, starts and groups."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F

import softprompt
from house import families as f
from house.by_hand import states
from house.families import BERT, backbone, close
from softprompt import SoftPromptError
from softprompt.prompts import GeneratedPrompt, InstancePrompt

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
        ({"bottleneck": 0}, "bottleneck: expected a whole number of at least 1, got 0."),
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


def test_generators_start_at_one_over_the_root_of_h() -> None:
    for made in (GeneratedPrompt(2, 4, 256, 64), InstancePrompt(2, 4, 256, 64)):
        made.start_from(torch.zeros(2, 4, 256), torch.Generator().manual_seed(0))
        assert made.down.std().item() == pytest.approx(256**-0.5, rel=0.05)


def test_generators_learn_at_a_tenth_of_the_rate() -> None:
    model = get_peft_model(f.backbone(f.BERT, "seq_cls"), f.config("spt", "seq_cls", layers=[0]))
    rates = {group["name"]: group["lr"] for group in softprompt.parameter_groups(model, 0.5)}
    assert rates["generator"] == pytest.approx(0.05)


def test_every_part_that_is_drawn_is_drawn_at_its_scale() -> None:
    made = GeneratedPrompt(8, 64, 256, 64, "attention", phm_factor=8)
    made.start_from(torch.zeros(8, 64, 256), torch.Generator().manual_seed(0))
    assert made.slot_query is not None and made.down_rule is not None and made.up_rule is not None
    assert made.slot_query.std().item() == pytest.approx(1, rel=0.05)
    for rule in (made.down_rule, made.up_rule):
        assert rule.std().item() == pytest.approx(8**-0.5, rel=0.05)
