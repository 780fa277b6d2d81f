"""Vietoris-Rips persistence of a point cloud, with gradients through the critical edges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._types import NonFiniteError, SoftPromptError, check_choice
from .reduction import critical_edges

METRICS = ("euclidean", "cosine")
DEGREES = (0, 1)
CLOSE = 1e-6  # share of |x_i|^2 + |x_j|^2 below which a Gram matrix has lost too many digits of |x_i - x_j|^2


@dataclass(frozen=True)
class Persistence:
    """The finite bars of H0 and H1 of a cloud of N points.

    Attributes:
        deaths0: [N - 1], ascending; births are 0. The component that never dies is left out.
        births1, deaths1: [K]; every loop of a Vietoris-Rips filtration dies.

    Units: the metric's distance.
    """

    deaths0: Float[Tensor, " merges"]
    births1: Float[Tensor, " loops"]
    deaths1: Float[Tensor, " loops"]

    @property
    def h0(self) -> Float[Tensor, "merges 2"]:
        """The diagram of H0: (0, death)."""
        return torch.stack((torch.zeros_like(self.deaths0), self.deaths0), dim=1)

    @property
    def h1(self) -> Float[Tensor, "loops 2"]:
        """The diagram of H1: (birth, death)."""
        return torch.stack((self.births1, self.deaths1), dim=1)

    def diagram(self, degree: int) -> Float[Tensor, "bars 2"]:
        """Return ``h0`` or ``h1``; raise `SoftPromptError` unless ``degree`` is 0 or 1."""
        _check_degree("degree", degree)
        return self.h1 if degree else self.h0

    def lifetimes(self, degree: int) -> Float[Tensor, " bars"]:
        """Return death minus birth of each bar; raise `SoftPromptError` unless ``degree`` is 0 or 1."""
        _check_degree("degree", degree)
        return self.deaths1 - self.births1 if degree else self.deaths0


def persistence(points: Tensor, metric: str = "euclidean", max_degree: int = 1) -> Persistence:
    """Compute H0 and H1 over Z/2 of the Vietoris-Rips filtration of N points [N, H], exactly; differentiable once.

    ::

        d_ij = |x_i - x_j|                                  euclidean
        d_ij = |y_i - y_j| = sqrt(2 - 2 cos(x_i, x_j))      cosine, y_i = x_i / |x_i|
        d birth / d x_i = (x_i - x_j) / d_ij                on the edge ij that bears the class; deaths likewise

    Distances are computed in float64 from a centred Gram matrix; births and deaths have the dtype of the points, or
    float32 for half types. The cosine distance is the chord, which is a metric; 1 - cos = d^2 / 2 has the same critical
    edges. Two sub-gradients are chosen: an edge of length 0 (equal points) gives 0, and of edges of equal length the
    first in row order is the critical one. H1 bars shorter than 1e-12 of the enclosing radius are left out: rounding
    makes them of ties.

    Args:
        points: [N, H], N >= 1.
        metric: "euclidean" or "cosine".
        max_degree: 1, or 0 for H0 alone: ``h1`` is empty then.

    Raises:
        NonFiniteError: a value, or its square, is not finite.
        SoftPromptError: the metric or the degree is unknown; ``points`` is no matrix of floating-point numbers with at
            least one point; a point is zero under the cosine metric; the backward pass is asked for a gradient of the
            gradient.

    Source: gradients through critical edges, arXiv 2010.08356; the reduction, arXiv 2307.16333 (see `reduction`).
    """
    check_choice("metric", metric, METRICS)
    _check_degree("max_degree", max_degree)
    if points.ndim != 2 or not len(points) or not points.is_floating_point():
        raise SoftPromptError(
            "a point cloud is a matrix [points, size] of floating-point numbers with at least one row, "
            f"got {points.dtype} of shape {list(points.shape)}."
        )
    dtype, device = points.dtype if points.dtype in (torch.float32, torch.float64) else torch.float32, points.device
    if metric == "cosine":
        points = points.to("cpu", torch.float64)
        lengths = torch.linalg.vector_norm(points, dim=1, keepdim=True)
        if not lengths.isfinite().all():
            raise _not_finite(points)
        if not lengths.all():
            zero = (lengths == 0).nonzero()[:, 0].tolist()
            raise SoftPromptError(
                f"{len(zero)} of {len(points)} points are zero, first row {zero[0]}: "
                "they have no direction; use metric='euclidean'."
            )
        points = points / lengths
    return Persistence(*_Rips.apply(points, dtype, device, max_degree))


class _Rips(torch.autograd.Function):
    """Points [N, H] -> the fields of `Persistence`, in the given dtype and on the given device.

    Backward, for lengths l_e of the critical edges with incoming gradients g_e, and L the Laplacian of the graph whose
    edges weigh g_e / l_e (0 where l_e = 0)::

        dL/dX = L X

    All of it runs on the CPU: the reduction does, and the rest is small; results are the same from every device.
    """

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, dtype: torch.dtype, device: torch.device, max_degree: int
    ) -> tuple[Tensor, ...]:
        x = points.detach().to("cpu", torch.float64, copy=True)
        x -= x.mean(0)  # distances stay; a common offset would cost digits, and time in `_lengths`
        count = len(x)
        ends = torch.triu_indices(count, count, 1).numpy()
        lengths = _lengths(x, ends)
        if lengths is None:
            raise _not_finite(points)
        merges, births, deaths = critical_edges(ends, lengths, max_degree)
        critical = np.concatenate((merges, births, deaths))
        ctx.save_for_backward(x)
        ctx.ends, ctx.lengths = ends[:, critical], lengths[critical]
        ctx.like = points.dtype, points.device
        bars = torch.from_numpy(ctx.lengths).to(device, dtype, copy=True).split([len(merges), len(births), len(deaths)])
        return tuple(bars)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():
            raise SoftPromptError(
                "persistence is differentiable once: its gradient has none; leave out create_graph=True."
            )
        (x,) = ctx.saved_tensors
        dtype, device = ctx.like
        count, (i, j) = len(x), ctx.ends
        gradient = torch.cat(gradients).to("cpu", torch.float64).numpy()
        weights = np.divide(gradient, ctx.lengths, out=np.zeros(len(i)), where=ctx.lengths > 0)
        graph = np.bincount(i * count + j, weights, count * count).reshape(count, count).astype(np.float64, copy=False)
        laplacian = -graph - graph.T  # float64 also where no edges were counted
        np.fill_diagonal(laplacian, -laplacian.sum(1))
        return (torch.from_numpy(laplacian) @ x).to(device, dtype), None, None, None


def _lengths(x: Float[Tensor, "points hidden"], ends: Int[np.ndarray, "2 edges"]) -> Float[np.ndarray, " edges"] | None:
    """Lengths of edges between centred points, float64, exactly 0 between equal ones; None where squares overflow."""
    i, j = ends
    gram = (x @ x.T).numpy()
    squares = gram.diagonal()
    if not math.isfinite(squares.sum()):
        return None
    sums = squares[i] + squares[j]
    squared = sums - 2 * gram[i, j]
    close = np.flatnonzero(squared < CLOSE * sums)
    for start in range(0, len(close), len(x)):  # no more pairs at a time than the cloud has points
        part = close[start : start + len(x)]
        squared[part] = (x[i[part]] - x[j[part]]).square().sum(1).numpy()
    return np.sqrt(squared)


def _check_degree(what: str, degree: int) -> None:
    if degree not in DEGREES:
        raise SoftPromptError(
            f"{what} must be 0 (components) or 1 (loops), got {degree}; higher degrees are not computed."
        )


def _not_finite(points: Tensor) -> NonFiniteError:
    broken = (~points.detach().isfinite()).any(1).nonzero().flatten().tolist()
    if not broken:
        return NonFiniteError("the squared distances of the points overflow float64; scale the points down.")
    return NonFiniteError(
        f"{len(broken)} of {len(points)} points are not finite, first row {broken[0]}: "
        "a cloud with NaN or infinity has no distances; look for a learning rate that is too high."
    )
