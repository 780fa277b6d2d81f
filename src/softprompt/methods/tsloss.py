"""TSLoss: a topological loss for prompt tuning (Huang et al., arXiv 2602.16500)."""

from __future__ import annotations

from typing import Any

from ..objectives import objective
from ..tuner import SoftPromptConfig


def ts_loss(l1: float = 0.1, l2: float = 0.1, **fields: Any) -> dict[str, Any]:
    """Return the entry of ``objectives`` that keeps a prompt connected (l1) and free of redundancy (l2).

    Args:
        l1, l2: weights of connectivity and redundancy.
        **fields: any other field of `softprompt.objectives.TSLoss`.
    """
    return objective("ts_loss", l1=l1, l2=l2, **fields)


def tsloss(
    num_virtual_tokens: int = 20, l1: float = 0.1, l2: float = 0.1, alpha: float = 10.0, **options: Any
) -> SoftPromptConfig:
    """Prompt tuning whose virtual tokens keep an even, connected shape.

    Args:
        num_virtual_tokens: P.
        l1, l2: weights of connectivity and redundancy.
        alpha: sharpness of the soft minimum and maximum.
        **options: any other field of `SoftPromptConfig`; further ``objectives`` are added to this one.

    Differs from the paper: alpha, l1 and l2 are chosen, distances are divided by their mean, and j = i is masked (see
    `softprompt.objectives.TSLoss`).
    """
    objectives = [ts_loss(l1, l2, alpha=alpha), *options.pop("objectives", [])]
    return SoftPromptConfig(
        prompt="plain", placement="input", num_virtual_tokens=num_virtual_tokens, objectives=objectives, **options
    )
