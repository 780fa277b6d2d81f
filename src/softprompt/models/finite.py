"""Numbers that are none: found where they arise, and said once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._types import NonFiniteError

ADVICE = "try a lower learning_rate (a tenth), max_grad_norm=1.0, more warm-up, or dtype=float32"


def is_finite(values: Any, masked: bool = False) -> bool:
    """Whether every number of a tensor, an array, a number, or a nest of them in tuples, lists and dicts is finite.

    With ``masked``, minus infinity counts as finite: models give it to scores of what cannot be.
    """
    if isinstance(values, (tuple, list)):
        return all(is_finite(value, masked) for value in values)
    if isinstance(values, dict):
        return is_finite(list(values.values()), masked)
    if isinstance(values, torch.Tensor):
        return bool((values.isfinite() | (masked & values.isneginf())).all())
    return values is None or bool((np.isfinite(values) | (masked & np.isneginf(values))).all())


def check_finite(what: str, values: Any, advice: str = ADVICE) -> None:
    """Raise `NonFiniteError` unless ``values`` are finite (see `is_finite`).

    Args:
        what: the name of the values, such as "scores of the rows".
        advice: what the user can do.
    """
    if not is_finite(values):
        raise NonFiniteError(f"expected finite {what}, got NaN or infinity; {advice}.")


def not_finite(where: str) -> NonFiniteError:
    """The error for a row whose scores are no finite numbers."""
    return NonFiniteError(
        f"{where}: the model's scores are not finite; take an earlier checkpoint, train with a lower learning_rate, or with "
        "dtype=float32."
    )
