"""What there is before a prompt: a linear probe on what a head reads, from which it starts, or template and label words alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from .._types import SoftPromptError, announce
from ..data import batches, by_length
from ..tuner import evaluating
from .classifier import PooledClassifier
from .finite import check_finite
from .kinds import KINDS, Kind
from .verbalized import VerbalizedClassifier

DEAD = 1e-6  # share of the largest spread; float32 rounds at 1e-7


@torch.no_grad()
def head_features(model: nn.Module, head: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> np.ndarray:
    """What the linear ``head`` inside ``model`` reads, [N, H], dropout-free, float32: of a bare backbone, or of a prompted one."""
    features: list[np.ndarray] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        features.append(args[0].float().cpu().numpy())

    device, hook = next(model.parameters()).device, head.register_forward_pre_hook(note)
    try:
        with evaluating(model):
            for batch in batches:
                model(**{key: value.to(device) for key, value in batch.items() if key != "labels"})
    finally:
        hook.remove()
    return np.concatenate(features)


def standardiser(features: np.ndarray) -> tuple[StandardScaler, np.ndarray]:
    """What standardises features [N, H], and which of them are alive, [H]; the others become 0.

    A feature is dead whose spread is rounding noise beside the others': it tells nothing, and what standardises it would pass the
    range of float16.
    """
    scaler = StandardScaler().fit(features)
    spread = np.sqrt(scaler.var_)
    live = spread > DEAD * spread.max()
    scaler.scale_[~live] = np.inf
    return scaler, live


def fit_probe(
    features: np.ndarray, labels: np.ndarray, num_classes: int, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Fit a linear model on standardised features and return it for raw ones: W [C, H], b [C].

    It is a multinomial logistic regression for class indices, a logistic regression for each class for flags, and a ridge regression
    for numbers. Dead features get the weight 0; see `standardiser`.

    Args:
        features: [N, H].
        labels: class indices [N], every class at least once; flags [N, C]; or numbers [N], C = 1.
        num_classes: C.
        strength: C of scikit-learn divided by H, so that one value suits every width; its inverse is the penalty of the ridge.

    Raises:
        NonFiniteError: features that are not finite.
        SoftPromptError: a class has no row.
    """
    check_finite("states of the training rows", features, "try dtype=float32, or look into the backbone's weights")
    scaler, _ = standardiser(features)
    scaled, inverse_penalty = scaler.transform(features), strength / features.shape[1]
    if not np.issubdtype(labels.dtype, np.floating):
        weight, bias = _of_classes(scaled, labels, num_classes, inverse_penalty)
    elif labels.ndim == 2:
        weight, bias = _of_flags(scaled, labels, inverse_penalty)
    else:
        fitted = Ridge(alpha=1 / inverse_penalty).fit(scaled, labels)
        weight, bias = fitted.coef_[None], np.asarray([fitted.intercept_])
    weight = weight / scaler.scale_
    return torch.tensor(weight, dtype=torch.float32), torch.tensor(bias - weight @ scaler.mean_, dtype=torch.float32)


def _of_classes(
    scaled: np.ndarray, labels: np.ndarray, num_classes: int, inverse_penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise SoftPromptError(f"the linear probe needs every class in the training rows; classes {missing} have none.")
    fitted = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(scaled, labels)
    weight, bias = fitted.coef_, fitted.intercept_
    if num_classes == 2:  # one row for class 1 against class 0
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return weight, bias


def _of_flags(scaled: np.ndarray, flags: np.ndarray, inverse_penalty: float) -> tuple[np.ndarray, np.ndarray]:
    weight, bias = np.zeros((flags.shape[1], scaled.shape[1])), np.zeros(flags.shape[1])
    for c, own in enumerate(flags.T > 0):
        if own.all() or not own.any():  # nothing to tell apart: its rows, and one of the other kind, say how sure to be
            bias[c] = np.log(len(own) + 1) * (1 if own.all() else -1)
        else:
            fitted = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(scaled, own)
            weight[c], bias[c] = fitted.coef_[0], fitted.intercept_[0]
    return weight, bias


@torch.no_grad()
def set_head(head: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Put a probe's W [C, H] and b [C] into a linear head."""
    head.weight.copy_(weight)
    head.bias.copy_(bias)


def start_from_probe(
    model: PooledClassifier,
    encoded: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind = KINDS["classification"],
) -> dict[str, dict[str, float]]:
    """Fit the linear probe on the training rows, start the head from it, and return its scores on each split.

    Args:
        kind: of the task, whose scores are taken.
    """
    ordered = {**encoded, "train": by_length(encoded["train"])}  # dev and test are sorted already
    features = {
        name: head_features(model, model.classifier, batches(rows, tokenizer, "classification"))
        for name, rows in ordered.items()
    }
    labels = {name: np.asarray(rows["labels"]) for name, rows in ordered.items()}
    weight, bias = fit_probe(features["train"], labels["train"], model.config.num_labels)
    set_head(model.classifier, weight, bias)
    logits = {name: found @ weight.numpy().T + bias.numpy() for name, found in features.items()}
    names = list(model.config.id2label.values())
    scores, first = _scores(kind, names, logits, labels), kind.scores(names)[0]
    announce(
        "head_init=probe",
        f"training starts from a linear probe with dev {first} {scores['dev'][first]:.3f}"
        if "dev" in scores
        else "training starts from a linear probe",
    )
    return scores


@torch.no_grad()
def logits_of_rows(
    model: PreTrainedModel, rows: Dataset, tokenizer: PreTrainedTokenizerBase, task: str = "classification"
) -> np.ndarray:
    """The logits [N, C] of encoded rows by a model that holds all its weights, dropout-free, float32."""
    found: list[np.ndarray] = []
    with evaluating(model):
        for batch in batches(rows, tokenizer, task):
            call = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
            found.append(model(**call).logits.float().cpu().numpy())
    return np.concatenate(found)


def score_template(
    model: VerbalizedClassifier, encoded: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> dict[str, dict[str, float]]:
    """Return the scores of template and label words alone on each split but "train"; it draws no random number."""
    asked = {name: rows for name, rows in encoded.items() if name != "train"}
    with torch.random.fork_rng(devices=[]):  # a loader draws one
        logits = {name: logits_of_rows(model, rows, tokenizer, kind.name) for name, rows in asked.items()}
    for name, found in logits.items():
        check_finite(f"scores of the label words on {name} rows", found, "try dtype=float32")
    labels = {name: np.asarray(rows["labels"]) for name, rows in asked.items()}
    names = model.verbalizer.label_names
    scores, first = _scores(kind, names, logits, labels), kind.scores(names)[0]
    if "dev" in scores:
        announce("zero_shot", f"template and label words alone have dev {first} {scores['dev'][first]:.3f}")
    return scores


def _scores(
    kind: Kind, names: list[str], logits: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """The kind's scores on each split."""
    measure = kind.metrics(names)
    assert measure is not None  # heads have logits to measure
    return {name: measure(EvalPrediction(found, labels[name])) for name, found in logits.items()}
