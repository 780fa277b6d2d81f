"""Persistence equals GUDHI's and a brute force; gradients, invariances, precision."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from house.clouds import broken, draw
from softprompt import NonFiniteError, SoftPromptError
from softprompt.topology import persistence
from softprompt.topology.reduction import critical_edges

# ---------------------------------------------------------------- numbers that are none


def test_points_that_are_not_finite_are_of_their_own_kind() -> None:
    with pytest.raises(NonFiniteError):
        persistence(torch.full((3, 2), float("nan")))


SIZES = (1, 2, 3, 5, 12, 30, 64, 65, 100)


SEEDS = st.integers(0, 10**6)


def clustered(count):
    return draw(count, 16, seed=1) * 0.1 + 3 * draw(3, 16, seed=2)[torch.arange(count) % 3]


def circle(count, size=2, noise=0.05, seed=0):
    """Points at even angles on the unit circle, moved a little."""
    angles = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    points = noise * draw(count, size, seed=seed)
    points[:, 0] += angles.cos()
    points[:, 1] += angles.sin()
    return points


def doubled(count):
    """Every second point equals an earlier one."""
    points = draw(count, 3, seed=4)
    points[1::2] = points[: count // 2]
    return points


def grid(count):
    """The first points of a 4 x 5 x 5 grid: almost all distances are ties."""
    return torch.tensor(list(itertools.product(range(4), range(5), range(5)))[:count], dtype=torch.float64)


CLOUDS = {
    "plane": lambda count: draw(count, 2),
    "deep": lambda count: draw(count, 200),
    "clustered": clustered,
    "circle": circle,
    "doubled": doubled,
    "grid": grid,
    "equal": lambda count: draw(1, 7).repeat(count, 1),
    "tight": lambda count: draw(2, 9, seed=6)[torch.arange(count) % 2] + 1e-8 * draw(count, 9),
    "far": lambda count: draw(count, 4) + 1e5,
}


def distances(points, metric="euclidean"):
    """By differences, in float64."""
    points = points.double()
    if metric == "cosine":
        points = points / points.norm(dim=1, keepdim=True)
    return (points[:, None] - points).square().sum(-1).sqrt()


def ordered(diagram):
    """Bars sorted by birth and death, as an array."""
    diagram = np.asarray(diagram, dtype=float).reshape(-1, 2)
    return diagram[np.lexsort(diagram.T[::-1])]


def by_gudhi(gudhi, matrix):
    """The finite bars over Z/2 that GUDHI finds in a matrix of distances, H0 and H1, ties of rounding left out."""
    tree = gudhi.RipsComplex(distance_matrix=matrix.numpy()).create_simplex_tree(max_dimension=2)
    tree.compute_persistence(homology_coeff_field=2, min_persistence=-1)  # its default is Z/11
    bars = [tree.persistence_intervals_in_dimension(degree).reshape(-1, 2) for degree in (0, 1)]
    bars = [diagram[np.isfinite(diagram).all(1)] for diagram in bars]
    least = 1e-12 * matrix.max(1).values.min().item()
    return ordered(bars[0]), ordered(bars[1][bars[1][:, 1] - bars[1][:, 0] > least])


def by_force(count, ends, lengths):
    """Deaths of H0 and bars of H1 by the reduction of the whole boundary matrix over Z/2."""
    value = dict(zip(map(frozenset, ends), lengths, strict=True))
    simplices = [((0, 0, (v,)), frozenset([v])) for v in range(count)]
    simplices += [((length, 1, edge), frozenset(edge)) for edge, length in zip(ends, lengths, strict=True)]
    for triangle in itertools.combinations(range(count), 3):
        longest = max(value[frozenset(edge)] for edge in itertools.combinations(triangle, 2))
        simplices.append(((longest, 2, triangle), frozenset(triangle)))
    simplices.sort(key=lambda simplex: simplex[0])
    number = {simplex: k for k, (_, simplex) in enumerate(simplices)}
    lows, deaths, loops = {}, [], []
    for (length, dimension, _), simplex in simplices:
        column = {number[simplex - {v}] for v in simplex} if dimension else set()
        while column and max(column) in lows:
            column ^= lows[max(column)]
        if column:
            lows[max(column)] = column
            birth = simplices[max(column)][0][0]
            if dimension == 1:
                deaths.append(length)
            elif birth < length:
                loops.append((birth, length))
    return sorted(deaths), sorted(loops)


def total(points, metric="euclidean"):
    """The sums of the deaths of H0 and of births and deaths of H1, each with its own weight."""
    found = persistence(points, metric)
    return found.deaths0.sum() + 0.7 * found.births1.sum() - 1.3 * found.deaths1.sum()


def critical(points):
    """The ends [2, K] of the edges that end the bars of H0, and of those that begin and end the bars of H1."""
    ends = torch.triu_indices(len(points), len(points), 1)
    return [ends[:, edges] for edges in critical_edges(ends.numpy(), distances(points)[*ends].numpy())]


# ---------------------------------------------------------------------- equal to oracles


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("name", CLOUDS)
def test_diagrams_equal_gudhi(gudhi, name, count):
    points = CLOUDS[name](count)
    found = persistence(points)
    h0, h1 = by_gudhi(gudhi, distances(points))
    assert found.h0.shape == (count - 1, 2)
    assert found.h1.shape == (len(h1), 2)
    np.testing.assert_allclose(ordered(found.h0), h0, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ordered(found.h1), h1, rtol=0, atol=1e-9)
    assert (found.deaths0.diff() >= 0).all()


@pytest.mark.parametrize("count", [2, 12, 40])
def test_cosine_diagrams_equal_gudhi(gudhi, count):
    points = circle(count, 5, 0.3)
    found = persistence(points, "cosine")
    h0, h1 = by_gudhi(gudhi, distances(points, "cosine"))
    np.testing.assert_allclose(ordered(found.h0), h0, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ordered(found.h1), h1, rtol=0, atol=1e-9)


@given(st.data(), st.integers(1, 8))
def test_any_weights_equal_brute_force(data, count):
    """Ties, zeros, and lengths that break the triangle inequality."""
    pairs = list(itertools.combinations(range(count), 2))
    lengths = np.array(data.draw(st.lists(st.integers(0, 6), min_size=len(pairs), max_size=len(pairs))), dtype=float)
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    merges, births, deaths = critical_edges(ends, lengths)
    h0, h1 = by_force(count, pairs, lengths)
    assert lengths[merges].tolist() == h0
    assert sorted(zip(lengths[births], lengths[deaths], strict=True)) == h1


def test_edges_have_the_lengths_of_the_bars():
    points = circle(20, 6, 0.2)
    found, between, (merges, births, deaths) = persistence(points), distances(points), critical(points)
    assert torch.allclose(found.deaths0, between[*merges], atol=1e-12)
    assert torch.allclose(found.h1, torch.stack((between[*births], between[*deaths]), 1), atol=1e-12)
    assert (merges[0] < merges[1]).all() and len(found.h1)


def test_h0_alone():
    points = circle(20, 6, 0.2)
    whole, alone = persistence(points), persistence(points, max_degree=0)
    assert torch.equal(whole.h0, alone.h0)
    assert len(whole.h1) and alone.h1.shape == (0, 2)


def test_ties_are_broken_in_row_order():
    """The spanning tree is the one that Kruskal's algorithm finds when it goes through equal edges in row order."""
    points = grid(100)
    between, tree, part = distances(points), [], list(range(100))
    for i, j in sorted(itertools.combinations(range(100), 2), key=lambda edge: between[edge].item()):
        if part[i] != part[j]:
            tree.append([i, j])
            part = [part[i] if k == part[j] else k for k in part]
    assert critical(points)[0].T.tolist() == tree


def test_ties_that_rounding_breaks_are_no_bars():
    lattice = torch.randint(0, 3, (40, 5), generator=torch.Generator().manual_seed(0)).double()
    simplex = torch.eye(30, dtype=torch.float64)
    for points, exact in ((lattice, 9), (simplex, 0)):
        for seed in range(3):
            turned = points @ torch.linalg.qr(draw(points.shape[1], points.shape[1], seed=seed)).Q
            assert len(persistence(turned).h1) == len(persistence(points).h1) == exact


@given(SEEDS, st.integers(2, 25), st.integers(1, 6))
def test_permutation_and_rigid_motion_change_nothing(seed, count, size):
    points = draw(count, size, seed=seed)
    turn = torch.linalg.qr(draw(size, size, seed=seed + 1)).Q
    shuffle = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    moved = (points @ turn + 5 * draw(size, seed=seed + 2))[shuffle]
    before, after = persistence(points), persistence(moved)
    for degree in (0, 1):
        np.testing.assert_allclose(ordered(before.diagram(degree)), ordered(after.diagram(degree)), atol=1e-9)
    # and the points of the critical edges are the same points
    same, merges = shuffle[critical(moved)[0]], critical(points)[0]
    assert set(map(frozenset, same.T.tolist())) == set(map(frozenset, merges.T.tolist()))


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("count,size", [(2, 3), (12, 2), (16, 5)])
def test_gradients_by_finite_differences(metric, count, size):
    points = circle(count, size, 0.2).requires_grad_()
    found = persistence(points, metric)
    assert len(found.h1) or count == 2
    for part in ("deaths0", "births1", "deaths1"):
        if len(getattr(found, part)):
            assert torch.autograd.gradcheck(lambda x, part=part: getattr(persistence(x, metric), part).sum(), points)


def test_each_bar_carries_its_own_gradient():
    points = circle(30, 4, 0.2).requires_grad_()
    found = persistence(points)
    weights = [draw(len(bars), seed=k) for k, bars in enumerate((found.deaths0, found.births1, found.deaths1))]
    ours = sum((w * x).sum() for w, x in zip(weights, (found.deaths0, found.births1, found.deaths1), strict=True))
    lengths = [(points[i] - points[j]).norm(dim=1) for i, j in critical(points.detach())]
    gathered = sum((w * x).sum() for w, x in zip(weights, lengths, strict=True))
    torch.testing.assert_close(*(torch.autograd.grad(loss, points)[0] for loss in (ours, gathered)))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_duplicates_get_the_subgradient_zero(metric):
    points = circle(8, 3, 0.1)
    twice = torch.cat((points, points[:3])).requires_grad_()
    found = persistence(twice, metric)
    assert (found.deaths0[:3] == 0).all() and (found.deaths0[3:] > 0).all()
    (gradient,) = torch.autograd.grad(found.deaths0[:3].sum(), twice)
    assert (gradient == 0).all()
    (gradient,) = torch.autograd.grad(total(twice, metric), twice)
    assert gradient.isfinite().all()
    points.requires_grad_()
    (single,) = torch.autograd.grad(total(points, metric), points)
    pooled = gradient[:8] + torch.cat((gradient[8:], torch.zeros(5, 3)))  # which twin is critical is a choice
    torch.testing.assert_close(pooled, single)


@pytest.mark.parametrize("points", [torch.ones(1, 4), torch.ones(6, 4), torch.full((6, 4), 0.1, dtype=torch.bfloat16)])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_one_point_and_equal_points_have_no_gradient(points, metric):
    points = points.clone().requires_grad_()
    found = persistence(points, metric)
    assert (found.h0 == 0).all() and found.h0.shape == (len(points) - 1, 2)
    assert found.h1.shape == (0, 2)
    (gradient,) = torch.autograd.grad(found.lifetimes(0).sum() + found.lifetimes(1).sum(), points)
    assert (gradient == 0).all() and gradient.dtype == points.dtype


def test_two_points():
    points = torch.tensor([[0.0, 3.0], [4.0, 0.0]], requires_grad=True)
    found = persistence(points)
    assert found.h0.tolist() == [[0, 5]] and found.h1.shape == (0, 2)
    (gradient,) = torch.autograd.grad(found.h0.sum(), points)
    torch.testing.assert_close(gradient, torch.tensor([[-0.8, 0.6], [0.8, -0.6]]))


def test_gradient_of_a_gradient_is_refused():
    points = circle(8).requires_grad_()
    with pytest.raises(SoftPromptError, match=r"differentiable once.* leave out create_graph=True"):
        torch.autograd.grad(total(points), points, create_graph=True)


def test_a_circle_has_one_long_loop_and_descent_kills_it():
    points = circle(20, 2, 0.05).requires_grad_()
    assert (persistence(points).lifetimes(1) > 0.5).sum() == 1
    optimizer = torch.optim.SGD([points], lr=0.05)
    for _ in range(60):
        loss = persistence(points).lifetimes(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert persistence(points).lifetimes(1).sum() < 0.05


# ---------------------------------------------------------------------- precision


def test_a_common_offset_costs_no_digits():
    points = circle(30, 64, 0.1)
    assert (persistence(points).deaths0 - persistence(points + 30).deaths0).abs().max() < 1e-13

    exact, found = persistence(points), persistence(points.float() + 30)
    for degree in (0, 1):
        expected, lifetimes = (p.lifetimes(degree).double().sort(descending=True).values for p in (exact, found))
        count = max(len(expected), len(lifetimes))
        pad = [torch.cat((bars, bars.new_zeros(count - len(bars)))) for bars in (expected, lifetimes)]
        torch.testing.assert_close(*pad, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "dtype,out", [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32,) * 2]
)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_any_dtype_is_computed_in_float64(dtype, out, metric):
    points = circle(24, 8, 0.1).to(dtype).requires_grad_()
    found, exact = persistence(points, metric), persistence(points.detach().double(), metric)
    assert found.h0.dtype == found.h1.dtype == out and exact.h1.dtype == torch.float64
    assert torch.equal(found.h0, exact.h0.to(out)) and torch.equal(found.h1, exact.h1.to(out))
    total(points, metric).backward()
    assert points.grad.dtype == dtype and points.grad.isfinite().all() and (points.grad != 0).any()


def test_autocast_changes_nothing():
    points = circle(24, 8, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(persistence(points).h1, persistence(points).h1)
        inside = persistence(points.float())
    assert torch.equal(inside.h1, persistence(points.float()).h1)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "points,options,message",
    [
        (broken(4, 9), {}, r"2 of 20 points are not finite, first row 4"),
        (broken(0, value=math.inf), {}, r"1 of 20 points are not finite, first row 0"),
        (broken(7, value=-math.inf).float(), {"metric": "cosine"}, r"1 of 20 points are not finite, first row 7"),
        (draw(3, 2) * 1e200, {}, r"overflow float64"),
        (draw(3, 2) * 1e200, {"metric": "cosine"}, r"overflow float64"),
        (
            draw(4, 3) * torch.tensor([[1.0], [0], [1], [0]]),
            {"metric": "cosine"},
            r"2 of 4 points are zero, first row 1",
        ),
        (draw(4, 3), {"metric": "cosin"}, r"unknown metric 'cosin'.*Did you mean 'cosine'"),
        (draw(4, 3), {"max_degree": 2}, r"max_degree must be 0 .* or 1 .*, got 2"),
        (draw(2, 4, 3), {}, r"a matrix \[points, size\].* got torch.float64 of shape \[2, 4, 3\]"),
        (draw(0, 3), {}, r"at least one row, got torch.float64 of shape \[0, 3\]"),
        (torch.ones(4, 3, dtype=torch.long), {}, r"floating-point numbers.* got torch.int64"),
    ],
)
def test_refusals(points, options, message):
    with pytest.raises(SoftPromptError, match=message):
        persistence(points, **options)
