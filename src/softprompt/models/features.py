"""Which layers a head should read: sets of layers, compared by leave-one-out on the training rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..data import batches, by_length
from ..tuner import find_backbone
from .classifier import PooledClassifier
from .finite import check_finite
from .probe import head_features, standardiser

ROWS = 2000  # that are compared: time grows with their third power
UPPER_HALF = "upper half"
UPPER, ALL = 4, 7  # layers of a set, evenly spaced
SHARPNESS = 2.0 ** np.arange(7)  # of the softmax over scores, which are about 1 apart


@dataclass(frozen=True)
class LeaveOneOut:
    """How well rows are classified that a ridge regression has not seen.

    Attributes:
        accuracy: share of rows.
        losses: [N], -log of the label's softmax, in nats.
    """

    accuracy: float
    losses: np.ndarray

    @property
    def loss(self) -> float:
        """The mean over rows."""
        return float(self.losses.mean())

    def clearly_better(self, other: LeaveOneOut) -> bool:
        """Whether the loss is lower by more than one standard error of the difference, row by row."""
        gained = other.losses - self.losses
        return bool(gained.mean() > gained.std() / len(gained) ** 0.5)


def candidate_layers(num_layers: int) -> dict[str, list[int]]:
    """Sets of layers, by a name for each: the last one, one below it, up to four of the upper half, up to seven of all."""
    half = (num_layers + 1) // 2
    upper = np.linspace(half, num_layers, min(UPPER, num_layers - half + 1)).round().astype(int)
    every = np.linspace(0, num_layers, min(ALL, num_layers + 1)).round().astype(int)
    sets: dict[str, list[int]] = {
        "last": [num_layers],
        "at two thirds": [round(2 * num_layers / 3)],
        UPPER_HALF: upper.tolist(),
        "all": every.tolist(),
    }
    distinct = {tuple(layers): name for name, layers in reversed(sets.items())}  # of a shallow stack some are the same
    return {name: list(layers) for layers, name in reversed(distinct.items())}


def kernel(features: np.ndarray) -> tuple[np.ndarray, int]:
    """``Z Z'`` [N, N] of the standardised features Z of [N, H], and how many of these are alive."""
    scaler, live = standardiser(features)
    scaled = scaler.transform(features).astype(np.float64)[:, live]
    return scaled @ scaled.T, int(live.sum())


def held_out_scores(gram: np.ndarray, labels: np.ndarray, num_classes: int, penalty: float = 1.0) -> np.ndarray:
    """Score each row by the ridge regression on the other rows: closed form, equal to N fits on features that all rows scaled.

    ::

        min_(f, b) sum_i (y_i - f(x_i) - b)^2 + penalty ||f||^2,   y_ic = 1 for the label, 0 elsewhere
        A = [[K + penalty I, 1], [1', 0]],   (a, b) = A^-1 (y, 0),   y_i - score_i = a_i / (A^-1)_ii

    Args:
        gram: K [N, N].
        labels: [N].
        num_classes: C.
        penalty: weight of the squared norm; K with a mean diagonal of about 1 suits the default.

    Returns:
        Scores [N, C].

    Source: the identity is that of least-squares support vector machines (Cawley 2006, Leave-one-out cross-validation based model
    selection criteria for weighted LS-SVMs).
    """
    rows, targets = len(labels), np.eye(num_classes)[labels]
    system = np.ones((rows + 1, rows + 1))
    system[:rows, :rows] = gram + penalty * np.eye(rows)
    system[rows, rows] = 0.0
    inverse = np.linalg.inv(system)
    residuals = (inverse[:rows, :rows] @ targets) / np.diag(inverse)[:rows, None]
    return targets - residuals


def judge(scores: np.ndarray, labels: np.ndarray) -> LeaveOneOut:
    """Accuracy and loss of scores [N, C]; of a few sharpnesses of the softmax the one with the lowest loss counts."""
    losses = []
    for sharpness in SHARPNESS:
        logits = sharpness * (scores - scores.max(1, keepdims=True))
        losses.append(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels])
    return LeaveOneOut(float((scores.argmax(1) == labels).mean()), min(losses, key=np.mean))


def compare_layers(
    states: Sequence[np.ndarray], labels: np.ndarray, num_classes: int, sets: Mapping[str, Sequence[int]]
) -> dict[str, LeaveOneOut]:
    """Judge each set of layers by the rows' pooled ``states``, one array [N, H] per layer."""
    needed = sorted({layer for layers in sets.values() for layer in layers})
    kernels = {layer: kernel(states[layer]) for layer in needed}
    found = {}
    for name, layers in sets.items():
        alive = sum(kernels[layer][1] for layer in layers)
        gram = np.sum([kernels[layer][0] for layer in layers], 0) / max(
            alive, 1
        )  # features side by side: kernels add up
        found[name] = judge(held_out_scores(gram, labels, num_classes), labels)
    return found


def best_of(found: Mapping[str, LeaveOneOut]) -> str:
    """The name of the set to choose: see `choose_features`."""
    best = min(found, key=lambda name: (found[name].loss, -found[name].accuracy))
    usual = UPPER_HALF if UPPER_HALF in found else best  # a shallow stack may have it under another name
    return best if found[best].clearly_better(found[usual]) else usual


def layer_states(model: PooledClassifier, rows: Iterable[Mapping[str, Tensor]]) -> list[np.ndarray]:
    """What the head would read of each layer, 0 to L: [N, H] each, in one pass over batches of ``rows``."""
    depth = find_backbone(model).num_layers + 1
    before = model.features, model.classifier
    model.features, model.classifier = tuple(range(depth)), nn.Identity()  # type: ignore[assignment]
    try:
        found = head_features(model, model.classifier, rows)
    finally:
        model.features, model.classifier = before
    return np.split(found, depth, axis=1)


def choose_features(
    model: PooledClassifier, rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int] | None, str]:
    """Choose the layers that a head reads, by training rows alone; returns (layers, reason), None for the last layer.

    The upper half is chosen, or the set with the lowest leave-one-out loss where this is clearly lower
    (`LeaveOneOut.clearly_better`): few rows cannot tell more. No other rows are read.

    Args:
        model: with a frozen backbone.
        rows: encoded training rows.
        tokenizer: of the backbone.
    """
    if len(rows) > ROWS:
        rows = rows.select(np.linspace(0, len(rows) - 1, ROWS).round().astype(int))
    rows = by_length(rows)
    labels = np.asarray(rows["labels"])
    states = layer_states(model, batches(rows, tokenizer, "classification"))
    check_finite("states of the training rows", states, "try dtype=float32, or look into the backbone's weights")
    sets = candidate_layers(len(states) - 1)
    found = compare_layers(states, labels, model.config.num_labels, sets)
    best = best_of(found)
    figures = ", ".join(f"{sets[n]} {one.accuracy:.3f} ({one.loss:.3f})" for n, one in found.items())
    reason = f"leave-one-out accuracy (loss) on {len(rows)} training rows: {figures}"
    return (None if best == "last" else sets[best]), reason
