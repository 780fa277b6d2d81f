"""Exact persistence as an objective: statistics by hand."""

import math

import pytest
import torch

from house.clouds import made, seen
from softprompt import SoftPromptError
from softprompt.objectives import PersistenceObjective, build_objectives, objective
from softprompt.topology import persistence

TRIANGLE = [[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]  # sides 3, 4 and 5


@pytest.mark.parametrize("scale_free", [False, True])
def test_statistics_of_persistence_by_hand(scale_free):
    """A triangle of sides 3, 4 and 5: two components die at 3 and 4, and no loop is born."""
    cloud, bars = torch.tensor(TRIANGLE), [3.0, 4.0]
    bars = [bar / 3.5 for bar in bars] if scale_free else bars
    share = [bar / sum(bars) for bar in bars]
    expected = {
        "total": sum(bars),
        "variance": ((bars[1] - bars[0]) / 2) ** 2,
        "entropy": -sum(q * math.log(q) for q in share),
    }
    for statistic, value in expected.items():
        how = {"statistic": statistic, "scale_free": scale_free, "scale": "detached"}
        loss = made(PersistenceObjective, **how)(seen(cloud))
        assert loss.item() == pytest.approx(value, rel=1e-5)
    target = [[0.0, bars[0] + 0.25], [0.0, bars[1]]]
    near = made(PersistenceObjective, statistic="target", degrees=[0], target=target, scale_free=scale_free)
    assert near(seen(cloud)).item() == pytest.approx(0.25, rel=1e-4)


def test_loops_count_when_they_are_asked_for():
    angles = torch.arange(12) * (2 * math.pi / 12)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    found = persistence(circle)
    assert len(found.h1) == 1
    both, loops = (
        made(PersistenceObjective, statistic="total", degrees=d, scale_free=False)(seen(circle)).item()
        for d in ((0, 1), (1,))
    )
    assert loops == pytest.approx(found.lifetimes(1).sum().item())
    assert both == pytest.approx(loops + found.lifetimes(0).sum().item())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"statistic": "totl"}, "unknown statistic 'totl': expected one of variance, entropy, total, target"),
        ({"degrees": [2]}, "unknown degree 2: expected one of 0, 1"),
        ({"metric": "chord"}, "unknown metric 'chord': expected one of euclidean, cosine"),
        (
            {"degrees": [0, 1]},
            "statistic='variance' is of degree 0, whose bars are always P - 1: a loop is born with a lifetime of 0",
        ),
        (
            {"statistic": "total"},
            "statistic='total' of degree 0 over its own mean (scale='mean') is the number of bars",
        ),
        ({"scale": "last"}, "unknown scale 'last': expected one of mean, start, detached"),
        ({"statistic": "target"}, "statistic='target' and a target diagram of one degree go together"),
        (
            {"statistic": "target", "degrees": [0], "target": [[1.0, 0.0]]},
            "target: expected bars [birth, death] with birth <= death, got [[1.0, 0.0]]",
        ),
    ],
)
def test_wrong_persistence_objectives_are_named(fields, message):
    with pytest.raises(SoftPromptError) as error:
        build_objectives([objective("persistence", **fields)], 4)
    assert message in str(error.value)


def test_the_scale_at_the_start_is_that_of_all_clouds() -> None:
    made = build_objectives([objective("persistence", weight=1.0, scale="start")], 2)
    # lifetimes 3 and 4, and 6 and 8: their mean is 5.25
    cloud = torch.tensor(TRIANGLE)
    assert made(seen(cloud, 2 * cloud))[0].item() == pytest.approx((0.25 + 1) / 2 / 5.25**2, rel=1e-5)
