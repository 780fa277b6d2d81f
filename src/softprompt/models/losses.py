"""The loss of a text's label: of one class, of any number of classes, of a number."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")  # as transformers calls them


def label_loss(logits: Tensor, labels: Tensor, problem_type: str | None, weights: Tensor | None = None) -> Tensor:
    """The mean loss of a batch, as transformers' sequence classifiers have it.

    ``mean_i -w_{y_i} log softmax(z_i)_{y_i}`` for one class; ``mean_{ic} BCE(sigmoid(z_ic), y_ic)`` for any number of
    classes, where ``w_c`` multiplies the part of the rows that have class c; ``mean_i (z_i - y_i)^2`` for a number.

    Args:
        logits: [B, C].
        labels: class indices [B], flags [B, C], or numbers [B].
        problem_type: of `PROBLEMS`; None is one class.
        weights: w [C] of the classes; None is 1 for each. torch divides by the weights of the batch's rows instead, so that in a batch of one
            row, or of one class, they would do nothing.
    """
    weights = None if weights is None else weights.to(logits)
    if problem_type == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), pos_weight=weights)
    losses = F.cross_entropy(logits, labels, reduction="none")
    return losses.mean() if weights is None else (weights[labels] * losses).mean()
