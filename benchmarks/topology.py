"""What exact persistence of a prompt costs, beside two libraries.

    python benchmarks/topology.py                     # a table, then one line of JSON
    python benchmarks/topology.py --write             # also results/speed/topology.json
    python benchmarks/topology.py --rounds 1 --small  # a smoke run

Forward and backward of the sum of all H0 and H1 lifetimes of N points in float32. One process, the same tensors; every
contender runs once a round, in random order, and a ratio is of one round. The others are the extra
`benchmarks`; what is missing is left out and named. GUDHI is used as its manual says: the distances go through a simplex tree,
its generators are gathered from torch.cdist.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from importlib import metadata

import torch
from torch import Tensor

from measure import Step, command_line, finish, ratio, rounds_of
from softprompt.topology import persistence

Loss = Callable[[Tensor], Tensor]


def ours(points: Tensor) -> Tensor:
    bars = persistence(points)
    return bars.lifetimes(0).sum() + bars.lifetimes(1).sum()


def torch_topological() -> Loss:
    from torch_topological.nn import VietorisRipsComplex

    complex_of = VietorisRipsComplex(dim=1, n_threads=torch.get_num_threads())

    def loss(points: Tensor) -> Tensor:
        return sum(((bars.diagram[:, 1] - bars.diagram[:, 0]).sum() for bars in complex_of(points)), torch.zeros(()))

    return loss


def gudhi() -> Loss:
    from gudhi import RipsComplex

    def loss(points: Tensor) -> Tensor:
        distances = torch.cdist(points, points)
        tree = RipsComplex(distance_matrix=distances.detach().numpy()).create_simplex_tree(max_dimension=2)
        tree.compute_persistence(homology_coeff_field=2)
        merges, loops, *_ = tree.flag_persistence_generators()
        i, j = torch.as_tensor(merges[:, 1:].copy()).long().T
        total = distances[i, j].sum()
        if len(loops):
            a, b, c, d = torch.as_tensor(loops[0].copy()).long().T
            total = total + (distances[c, d] - distances[a, b]).sum()
        return total

    return loss


OTHERS: dict[str, Callable[[], Loss]] = {"torch_topological": torch_topological, "gudhi": gudhi}


def cloud(shape: str, count: int, size: int) -> Tensor:
    """N points in float32: noise, four clusters, or a circle with noise."""
    generator = torch.Generator().manual_seed(count)
    noise = torch.randn(count, size, generator=generator)
    if shape == "clusters":
        return noise + 3 * torch.randn(4, size, generator=generator)[torch.arange(count) % 4]
    if shape == "circle":
        angles = torch.rand(count, generator=generator) * 2 * torch.pi
        noise *= 0.1 / size**0.5
        noise[:, 0] += angles.cos()
        noise[:, 1] += angles.sin()
    return noise


def steps_of(losses: dict[str, Loss], points: Tensor) -> dict[str, Step]:
    """Forward and backward of each loss on the same points."""
    points.requires_grad_()

    def step(loss: Loss) -> None:
        points.grad = None
        loss(points).backward()

    return {name: partial(step, loss) for name, loss in losses.items()}


def main() -> None:
    arguments = command_line(__doc__, 50).parse_args()
    counts, size = ((8, 12), 16) if arguments.small else ((20, 50, 100), 768)

    losses: dict[str, Loss] = {"softprompt": ours}
    missing = []
    for name, load in OTHERS.items():
        try:
            losses[name] = load()
        except ImportError:
            missing.append(name)
    cells = []
    for shape in ("noise", "clusters", "circle"):
        for count in counts:
            times = rounds_of(steps_of(losses, cloud(shape, count, size)), arguments.rounds)
            ratios = {name: round(ratio(times, name, "softprompt"), 2) for name in losses}
            milliseconds = round(1000 * statistics.median(times["softprompt"]), 3)
            cells.append({"shape": shape, "N": count, "ratios": ratios, "softprompt, ms": milliseconds})

    print("| points | N |" + "".join(f" {name} |" for name in losses) + "\n|---|---|" + "---|" * len(losses))
    for cell in cells:
        print(f"| {cell['shape']} | {cell['N']} |" + "".join(f" {value:.2f} |" for value in cell["ratios"].values()))
    if missing:
        print(f"left out, not installed: {', '.join(missing)}")
    document = {
        "benchmark": "topology",
        "unit": "t / t(softprompt), forward and backward of the sum of the H0 and H1 lifetimes",
        "cells": cells,
        "H": size,
        "rounds": arguments.rounds,
        "versions": {name: metadata.version(name) for name in losses if name in OTHERS},
        "left out": missing,
    }
    finish(document, arguments.write)


if __name__ == "__main__":
    main()
