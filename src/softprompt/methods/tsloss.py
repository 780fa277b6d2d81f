"""TSLoss: a topological loss for prompt tuning (Huang et al., arXiv 2602.16500)."""

from __future__ import annotations

from typing import Any

from ..objectives import objective
from ..tuner import SoftPromptConfig
from ._signs import check_at_least_zero


def tsloss(
    num_virtual_tokens: int = 20,
    l1: float = 0.1,
    l2: float = 0.1,
    alpha: float = 10.0,
    share: float | None = 0.3,
    decay: float = 0.0,
    **options: Any,
) -> SoftPromptConfig:
    """Prompt tuning whose virtual tokens keep an even, connected shape.

    Args:
        num_virtual_tokens: P.
        l1, l2: weights of connectivity and redundancy; with a share only their ratio counts.
        alpha: sharpness of the soft minimum and maximum.
        share: of both terms together, in the size of the gradient on the virtual tokens, the task's loss being 1; None takes l1 and
            l2 as they are.
        decay: share of the weight that is gone at the end of training.
        **options: any other field of `SoftPromptConfig`; further ``objectives`` are added to this one.

    Differs from the paper: alpha, l1, l2 and their weighing by the gradient are chosen, distances are divided by their mean, and j = i is masked (see
    `softprompt.objectives.TSLoss`).
    """
    check_at_least_zero(l1=l1, l2=l2, alpha=alpha, share=share)
    own = objective("ts_loss", l1=l1, l2=l2, alpha=alpha, share=share, decay=decay)
    objectives = [own, *options.pop("objectives", [])]
    return SoftPromptConfig(
        prompt="plain", placement="input", num_virtual_tokens=num_virtual_tokens, objectives=objectives, **options
    )
