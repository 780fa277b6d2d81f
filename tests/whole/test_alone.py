"""Each objective of the prompt's shape, followed alone until it rests, at the scale of real embeddings."""

import pytest
import torch
from transformers import AutoModel

from house.clouds import made, seen
from softprompt.models import embedded_backbone
from softprompt.objectives import PersistenceObjective, TSLoss, build_objectives, objective
from softprompt.topology import persistence

TOKENS, STEPS = 8, 150


@pytest.fixture(scope="module")
def words():
    """Rows of the embedded encoder's vocabulary, where prompts start."""
    table = AutoModel.from_pretrained(embedded_backbone()).get_input_embeddings().weight.detach()
    return table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:TOKENS]].clone()


def mean_lifetime(cloud):
    return persistence(cloud.detach()).lifetimes(0).mean().item()


def followed(loss, cloud, steps=STEPS, rate=0.004):
    """The cloud after ``steps`` of Adam on the objective alone, the rate going to 0, and the first and last value."""
    cloud = cloud.clone().requires_grad_()
    optimizer = torch.optim.Adam([cloud], rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    values = []
    for _ in range(steps):
        value = loss(seen(cloud))
        value = value[0] if isinstance(value, tuple) else value
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return cloud.detach(), values[0], values[-1]


TARGET = [(0.0, 0.5 + k / TOKENS) for k in range(TOKENS - 1)]


@pytest.mark.parametrize(
    "fields",
    [
        {"weight": 1.0},
        {"weight": -1.0},
        {"weight": 1.0, "statistic": "entropy", "scale": "detached"},
        {"weight": -1.0, "statistic": "entropy", "degrees": (0, 1)},
        {"weight": 1.0, "statistic": "total", "scale": "start"},
        {"weight": 1.0, "statistic": "variance", "scale": "start"},
        {"weight": 1.0, "statistic": "target", "degrees": (0,), "target": TARGET},
    ],
    ids=lambda fields: " ".join(str(fields[key]) for key in ("weight", "statistic", "scale") if key in fields),
)
def test_persistence_does_not_collapse_a_prompt(words, fields):
    """Two fifths of the first mean lifetime or more are left; its value does what it is asked to."""
    cloud, first, last = followed(build_objectives([objective("persistence", **fields)], words.shape[1]), words)
    assert mean_lifetime(cloud) > 0.4 * mean_lifetime(words)
    assert last < first


def test_the_old_form_collapses_it(words):
    """Lifetimes over their detached mean: the value is a constant, and the force grows as the prompt shrinks."""
    old = made(PersistenceObjective, statistic="total", degrees=(0,), scale="detached")
    cloud, first, last = followed(old, words)
    assert last == pytest.approx(first, rel=1e-4) == TOKENS - 1
    assert mean_lifetime(cloud) < 0.1 * mean_lifetime(words)


def test_the_total_stops_at_what_is_kept(words):
    kept = build_objectives([objective("persistence", weight=1.0, statistic="total", degrees=(0,), scale="start")], 384)
    _, first, last = followed(kept, words)
    assert first == pytest.approx(TOKENS - 1, rel=1e-4)
    assert last == pytest.approx(0.5 * (TOKENS - 1), rel=0.02)
    small = (0.2 * words).requires_grad_()  # below what is kept nothing pulls
    assert not torch.autograd.grad(kept(seen(small))[0], small)[0].any()


def test_a_scale_with_its_gradient_leaves_the_size_alone(words):
    """<gradient, p - mean> is the rate at which the prompt would grow; of the default it is 0 at every size."""
    for size in (0.1, 1.0, 10.0):
        cloud = (size * words).requires_grad_()
        gradient = torch.autograd.grad(made(PersistenceObjective)(seen(cloud)), cloud)[0]
        radial = (gradient * (cloud - cloud.mean(0))).sum().item()
        assert abs(radial) < 1e-3 * gradient.norm().item() * cloud.detach().norm().item()


def test_ts_loss_keeps_the_spread_and_reaches_its_aim(words):
    cloud, first, last = followed(made(TSLoss), words)
    assert last < 0.1 * first
    assert torch.pdist(cloud).mean() > 0.5 * torch.pdist(words).mean()
