"""What persistence diagrams say: counts, lifetimes, entropy, and how far two diagrams are apart."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .._types import SoftPromptError
from .rips import DEGREES, Persistence


def metrics(persistence: Persistence) -> dict[str, float]:
    """Sum up the bars of positive length in numbers that can be recorded over training.

    Keys: ``h0_count``, ``h0_mean_lifetime``, ``h0_max_lifetime``, the same of h1 (0 where there are no bars), and
    ``persistent_entropy`` of both degrees pooled. Units: bars, the metric's distance, nats.

    The component that never dies counts in none of them. Equal points have bars of length 0, so ``h0_count`` + 1 is the
    number of different points.

    Source: arXiv 2602.16500, which follows these numbers over training.
    """
    numbers: dict[str, float] = {}
    pooled = []
    for degree in DEGREES:
        lifetimes = persistence.lifetimes(degree).detach()
        lifetimes = lifetimes[lifetimes > 0]
        numbers[f"h{degree}_count"] = float(len(lifetimes))
        numbers[f"h{degree}_mean_lifetime"] = float(lifetimes.mean()) if len(lifetimes) else 0.0
        numbers[f"h{degree}_max_lifetime"] = float(lifetimes.max()) if len(lifetimes) else 0.0
        pooled.append(lifetimes)
    return {**numbers, "persistent_entropy": float(persistent_entropy(torch.cat(pooled)))}


def persistent_entropy(lifetimes: Float[Tensor, " bars"]) -> Float[Tensor, ""]:
    """Return ``-sum q ln q``, ``q = l / sum l`` over positive lifetimes, in nats; 0 without any. Differentiable."""
    lifetimes = lifetimes[lifetimes > 0]  # a bar of length 0 adds nothing, but its gradient would be infinite
    return torch.special.entr(lifetimes / lifetimes.sum()).sum()


def wasserstein(first: Float[Tensor, "first 2"], second: Float[Tensor, "second 2"]) -> Float[Tensor, ""]:
    """Return the 1-Wasserstein distance of two diagrams: the cost of the cheapest matching of their bars.

    A bar is matched with a bar of the other diagram or with the diagonal.

    ::

        W(A, B) = min over matchings (sum c)
        c = max(|birth - birth'|, |death - death'|) of a pair,  (death - birth) / 2 of a bar left to the diagonal

    The distance is differentiable with the matching held; two bars that coincide have the sub-gradient 0. The component
    of H0 that never dies is the same everywhere and is left out.

    Args:
        first, second: diagrams [K, 2] of finite bars; either may be empty.

    Raises:
        SoftPromptError: a bar is not finite.
    """
    costs = _costs(first, second)
    pairs, alone_first, alone_second = (cost.detach().double().numpy(force=True) for cost in costs)
    # what a pair saves over two bars left alone; what saves nothing is no pair, so the diagonal needs no places
    saved = np.minimum(pairs - alone_first[:, None] - alone_second, 0)
    left, right = linear_sum_assignment(saved)
    matched = saved[left, right] < 0
    return _total(costs, left[matched], right[matched], 1.0)


def bottleneck(first: Float[Tensor, "first 2"], second: Float[Tensor, "second 2"]) -> Float[Tensor, ""]:
    """Return the bottleneck distance of two diagrams: the longest move of the matching that keeps it shortest.

    ::

        W(A, B) = min over matchings (max c)
        c = max(|birth - birth'|, |death - death'|) of a pair,  (death - birth) / 2 of a bar left to the diagonal

    Diagrams and gradients are as for `wasserstein`.

    Raises:
        SoftPromptError: a bar is not finite.
    """
    costs = _costs(first, second)
    pairs, alone_first, alone_second = (cost.detach().double().numpy(force=True) for cost in costs)
    m, n = pairs.shape
    # from bars of the first and n places on the diagonal, to bars of the second and m places
    moves = np.zeros((m + n, n + m))
    moves[:m, :n], moves[:m, n:], moves[m:, :n] = pairs, alone_first[:, None], alone_second
    bounds = np.unique(moves)
    low, high = 0, len(bounds) - 1
    left = right = np.zeros(0, dtype=np.int64)
    while low <= high:  # the least bound that some matching keeps; the greatest is kept by any
        middle = (low + high) // 2
        beyond = moves > bounds[middle]
        start, end = linear_sum_assignment(beyond)
        if beyond[start, end].any():
            low = middle + 1
        else:
            high = middle - 1
            pair = (start < m) & (end < n)
            left, right = start[pair], end[pair]
    return _total(costs, left, right, math.inf)


def _costs(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Costs of pairs [m, n], and of leaving a bar to the diagonal [m], [n]."""
    if not (first.isfinite().all() and second.isfinite().all()):
        raise SoftPromptError("a distance of diagrams takes finite bars; leave out those that never die.")
    pairs = torch.linalg.vector_norm(first[:, None] - second, math.inf, dim=-1)
    return pairs, 0.5 * (first[:, 1] - first[:, 0]), 0.5 * (second[:, 1] - second[:, 0])


def _total(costs: tuple[Tensor, Tensor, Tensor], left: np.ndarray, right: np.ndarray, order: float) -> Tensor:
    """The norm of the costs of a matching; bars in neither ``left`` nor ``right`` go to the diagonal."""
    pairs, alone_first, alone_second = costs
    paid = (
        pairs[torch.from_numpy(left), torch.from_numpy(right)],
        alone_first[np.delete(np.arange(len(alone_first)), left)],
        alone_second[np.delete(np.arange(len(alone_second)), right)],
        pairs.new_zeros(1),  # two empty diagrams are 0 apart
    )
    return torch.linalg.vector_norm(torch.cat(paid), order)
