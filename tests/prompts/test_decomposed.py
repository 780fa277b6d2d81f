"""Decomposed prompts: formulas, gradients, starts and groups."""

import itertools
import math

import pytest
import torch
from peft import get_peft_model
from torch import nn

import softprompt
from house.by_hand import softmax
from house.families import FAMILIES, backbone, close, config
from softprompt.prompts import DecomposedPrompt, PlainPrompt

ROWS, H, S, R, K, B = 3, 6, 5, 2, 2, 4


PHI = {
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "relu": lambda x: max(x, 0.0),
    "tanh": math.tanh,
    "identity": lambda x: x,
}


def decomposed(depth=1, **options):
    """A small decomposed prompt in float64 with every parameter drawn."""
    torch.manual_seed(0)
    prompt = DecomposedPrompt(
        depth, ROWS, H, S, R, **{"alpha": 3.0, "num_spaces": K, "space_bottleneck": B, **options}
    ).double()
    for parameter in prompt.parameters():
        nn.init.normal_(parameter)
    return prompt


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=False))


def by_hand(prompt, fusion_memory, gate, activation, temperature=None):
    """The docstring's formulas, one row, one subspace and one number at a time. Lists of floats: [D][m][H] and [S][H]."""
    short, a, b = prompt.short.tolist(), prompt.lowrank_a.tolist(), prompt.lowrank_b.tolist()
    product = [[sum(a[t][r] * b[r][h] for r in range(R)) for h in range(H)] for t in range(S)]
    delta = [[3.0 / math.sqrt(R) * x for x in row] for row in product]
    memory = {"none": [], "product": product, "factor": b}[fusion_memory]
    scale = 1.0 if temperature is None else 3.0 / math.sqrt(R)

    def score(x, y):
        if temperature is None:
            return dot(x, y) / math.sqrt(H)
        return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y)) / temperature

    prefix = []
    for layer in short:
        mean = [sum(row[h] for row in layer) / ROWS for h in range(H)]
        out = []
        for row in layer:
            total = list(row)
            if memory:
                for weight, entry in zip(softmax([score(row, entry) for entry in memory]), memory, strict=False):
                    total = [t + weight * scale * e for t, e in zip(total, entry, strict=False)]
            gates = [1 / K] * K
            if gate != "none":
                gates = softmax([dot(w, row if gate == "token" else mean) for w in prompt.gate_weight.tolist()])
            for k in range(K):
                down, up = prompt.space_down[k].tolist(), prompt.space_up[k].tolist()
                inner = [PHI[activation](sum(row[h] * down[h][j] for h in range(H))) for j in range(B)]
                total = [t + gates[k] * sum(inner[j] * up[j][h] for j in range(B)) for h, t in enumerate(total)]
            out.append(total)
        prefix.append(out)
    return torch.tensor(prefix, dtype=torch.float64), torch.tensor(delta, dtype=torch.float64)


@pytest.mark.parametrize(
    "fusion_memory, gate, activation", itertools.product(("none", "product", "factor"), ("prompt", "token"), PHI)
)
@torch.no_grad()
def test_decomposed_prompt_equals_its_formula(fusion_memory, gate, activation):
    prompt = decomposed(depth=2, fusion_memory=fusion_memory, gate=gate, activation=activation)
    prefix, delta = by_hand(prompt, fusion_memory, gate, activation)
    close(prompt().prefix, prefix, 1e-12)
    close(prompt().input_delta, delta, 1e-12)


@pytest.mark.parametrize(
    "fusion_memory, gate, temperature", [("product", "none", 0.1), ("factor", "prompt", 0.7), ("product", "token", 1.0)]
)
def test_fusion_by_cosines_equals_its_formula(fusion_memory, gate, temperature):
    """With s A B or s B as memory; the gradient is checked, too."""
    how = {"fusion_scores": "cosine", "fusion_temperature": temperature}
    prompt = decomposed(depth=2, fusion_memory=fusion_memory, gate=gate, activation="gelu", **how)
    prefix, _ = by_hand(prompt, fusion_memory, gate, "gelu", temperature)
    close(prompt().prefix.detach(), prefix, 1e-9)  # the norms' eps is 1e-6
    names, values = zip(*prompt.named_parameters(), strict=False)

    def forward(*parameters):
        return torch.func.functional_call(prompt, dict(zip(names, parameters, strict=False)), ()).prefix

    assert torch.autograd.gradcheck(forward, values)
    close(prompt.attention(), decomposed_attention(prompt, prompt.short * 10), 1e-9)  # a cosine knows no norm


def decomposed_attention(prompt, short):
    with torch.no_grad():
        before = prompt.short.clone()
        prompt.short.copy_(short)
        attention = prompt.attention()
        prompt.short.copy_(before)
    return attention


@pytest.mark.parametrize(
    "fusion_memory, gate, activation",
    [("none", "prompt", "tanh"), ("product", "token", "gelu"), ("factor", "prompt", "identity")],
)
def test_gradients_of_every_parameter(fusion_memory, gate, activation):
    prompt = decomposed(depth=2, fusion_memory=fusion_memory, gate=gate, activation=activation)
    names, values = zip(*prompt.named_parameters(), strict=False)

    def forward(*parameters):
        parts = torch.func.functional_call(prompt, dict(zip(names, parameters, strict=False)), ())
        return parts.prefix, parts.input_delta

    assert torch.autograd.gradcheck(forward, values)


@pytest.mark.parametrize("gate, rows", [("prompt", 1), ("token", ROWS)])
@torch.no_grad()
def test_gates_sum_to_one(gate, rows):
    gates = decomposed(depth=2, gate=gate).gates()
    assert gates.shape == (2, rows, K)
    close(gates.sum(-1), torch.ones(2, rows, dtype=torch.float64), 1e-12)
    assert DecomposedPrompt(1, ROWS, H, S, R).gates() is None


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("fusion_memory", ["none", "product", "factor"])
@torch.no_grad()
def test_start_is_the_plain_prompt(fusion_memory, depth):
    rows = torch.randn(depth, ROWS, H, dtype=torch.float64)
    prompt = decomposed(depth, fusion_memory=fusion_memory)
    prompt.start_from(rows)
    assert torch.equal(prompt().prefix, rows)
    assert not prompt().input_delta.any()
    assert torch.equal(prompt.gates(), torch.full((depth, 1, K), 1 / K, dtype=torch.float64))
    plain = PlainPrompt(depth, ROWS, H).double()
    plain.start_from(rows)
    assert torch.equal(plain().prefix, rows) and plain().input_delta is None


def test_start_draws_the_random_parts_from_the_generator():
    def started(seed):
        prompt = DecomposedPrompt(1, ROWS, H, S, R, num_spaces=K, space_bottleneck=B)
        prompt.start_from(torch.zeros(1, ROWS, H), torch.Generator().manual_seed(seed))
        return prompt

    one, again, other = started(1), started(1), started(2)
    for name in ("lowrank_a", "space_down"):
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))
    # Kaiming-uniform with a = sqrt(5) is uniform in +- 1 / sqrt(R)
    assert 0 < one.lowrank_a.abs().max() <= 1 / math.sqrt(R)


def test_a_new_prompt_draws_nothing():
    state = torch.get_rng_state()
    prompts = [PlainPrompt(2, ROWS, H, S), DecomposedPrompt(1, ROWS, H, S, R, num_spaces=K, space_bottleneck=B)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(bool(p.any()) for prompt in prompts for p in prompt.parameters())


@pytest.mark.parametrize(
    "prompt, names",
    [
        (PlainPrompt(1, ROWS, H), ["prompt"]),
        (PlainPrompt(2, ROWS, H, S), ["prompt", "low_rank"]),
        (DecomposedPrompt(1, ROWS, H, S, R), ["prompt", "low_rank"]),
        (
            DecomposedPrompt(2, ROWS, H, S, R, num_spaces=K, space_bottleneck=B),
            ["prompt", "low_rank", "spaces", "space_gate"],
        ),
    ],
)
def test_groups_hold_every_parameter_once(prompt, names):
    groups = prompt.parameter_groups()
    assert list(groups) == names
    held = [id(p) for group in groups.values() for p in group]
    assert sorted(held) == sorted(id(p) for p in prompt.parameters())


def test_groups_of_a_model_take_their_rates():
    rates = {"low_rank": 5e-4, "prompt": 0.3}
    model = get_peft_model(backbone(FAMILIES["bert"], "seq_cls"), config("ept", "seq_cls", learning_rates=rates))
    groups = {
        group["name"]: group
        for group in softprompt.parameter_groups(model, 1e-3, weight_decay=0.01, head_learning_rate=2e-3)
    }
    assert {name: group["lr"] for name, group in groups.items()} == {
        "prompt": 0.3,
        "low_rank": 5e-4,
        "spaces": 1e-4,
        "space_gate": 1e-3,
        "head": 2e-3,
    }
    assert {group["weight_decay"] for group in groups.values()} == {0.01}
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    torch.optim.AdamW(list(groups.values()))
