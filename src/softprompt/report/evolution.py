"""The structural evolution of a prompt as numbers that a page can draw: places, edges and bars at each recorded step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

NUMBERS = 60_000  # of one run: about 300 kB of the page
SHORTEST = 4  # edges per virtual token, at most, from which the page draws those below a scale


def evolution(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Places, trees, edges, bars and measures by layer and recorded step.

    The map of a layer is a principal component analysis of its virtual tokens at all kept steps together, so that places at two steps can be
    compared; ``explained`` is the share of the variance that each axis shows. Lengths are those in all H dimensions.

    Returns:
        ``steps``, ``every`` (only each so manieth record is kept where there are many), and by layer: ``explained`` [2], ``places``
        [S][P][2], ``tree`` [S][P - 1][2] (a minimum spanning tree), ``edges`` [S][E][3] (the shortest ones: two ends and the length),
        ``h0`` and ``h1`` [S][bars][2], ``measures`` (a list over all records by name).
    """
    _, tokens, _ = records[-1]["prompt"].shape
    layers = list(records[-1]["layers"])
    each = len(layers) * tokens * (4 + 3 * SHORTEST)
    every = max(1, -(-len(records) * each // NUMBERS))
    kept = [*records[::-1][::every]][::-1]  # the last record always
    return {
        "steps": [record["step"] for record in kept],
        "every": every,
        "all_steps": [record["step"] for record in records],
        "layers": {layer: _layer(kept, records, layer, place) for place, layer in enumerate(layers)},
    }


def _layer(kept: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]], layer: str, place: int) -> dict[str, Any]:
    clouds = np.stack([record["prompt"][place] for record in kept]).astype(np.float64)
    steps, tokens, width = clouds.shape
    centred = clouds.reshape(-1, width) - clouds.reshape(-1, width).mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    shown = centred @ axes[:2].T
    if shown.shape[1] < 2:  # one virtual token at one step
        shown = np.pad(shown, ((0, 0), (0, 2 - shown.shape[1])))
    variance = (sizes**2).sum()
    explained = [float(size**2 / variance) if variance > 0 else 0.0 for size in sizes[:2]]
    trees, edges = zip(*(_edges(cloud) for cloud in clouds), strict=True)
    names = records[-1]["layers"][layer]["metrics"]
    return {
        "explained": [*explained, 0.0][:2],
        "places": _rounded(shown.reshape(steps, tokens, 2)),
        "tree": [tree.tolist() for tree in trees],
        "edges": [[[int(a), int(b), float(f"{length:.4g}")] for a, b, length in found] for found in edges],
        "h0": [_rounded(np.array(record["layers"][layer]["h0"]).reshape(-1, 2)) for record in kept],
        "h1": [_rounded(np.array(record["layers"][layer]["h1"]).reshape(-1, 2)) for record in kept],
        "measures": {name: [record["layers"][layer]["metrics"].get(name) for record in records] for name in names},
    }


def _edges(cloud: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, float]]]:
    """A minimum spanning tree [P - 1, 2], and the shortest edges with their lengths."""
    if len(cloud) < 2:
        return np.zeros((0, 2), int), []
    lengths = pdist(cloud)
    # a sparse graph has no edges of length 0, as between equal tokens; adding one to all lengths changes no tree
    tree = minimum_spanning_tree(squareform(1.0 + lengths)).tocoo()
    first, second = np.triu_indices(len(cloud), 1)
    order = np.argsort(lengths, kind="stable")[: SHORTEST * len(cloud)]
    return np.stack([tree.row, tree.col], 1), [(first[i], second[i], lengths[i]) for i in order]


def _rounded(values: np.ndarray) -> Any:
    """Five digits of the largest value: a page shows fewer."""
    largest = float(np.abs(values).max()) if values.size else 0.0
    digits = 4 - int(np.floor(np.log10(largest))) if largest > 0 else 4
    return np.round(values, max(0, digits)).tolist()
