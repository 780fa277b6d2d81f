"""Contrast: supervised contrast between examples moves few virtual tokens at every layer; for few training rows."""

from __future__ import annotations

from typing import Any

from ..objectives import objective
from ..tuner import SoftPromptConfig
from ._signs import check_at_least_zero


def contrast(
    num_virtual_tokens: int = 1, weight: float = 1.0, temperature: float = 0.1, **options: Any
) -> SoftPromptConfig:
    """One virtual token at every layer, trained by the task's loss and by contrast between examples; for few rows.

    The loss is ``loss + weight L`` with L of `softprompt.objectives.SupervisedContrast`. ``softprompt train`` fits the
    head on the prompted states (``head_fit``) instead of training it.

    Args:
        num_virtual_tokens: P, the same at every layer. With 16 rows per class more tokens forget more than they learn.
        weight: weight of the contrast.
        temperature: T of the contrast.
        **options: any other field of `SoftPromptConfig`; further ``objectives`` are added to this one.

    Differs from the paper: the paper is about fine-tuning; prompts, P, weight, the task's loss beside the contrast and
    the fitted head are chosen here.
    """
    check_at_least_zero(weight=weight)
    objectives = [
        objective("contrastive", weight=weight, temperature=temperature),
        *options.pop("objectives", []),
    ]
    return SoftPromptConfig(
        prompt="plain", placement="deep", num_virtual_tokens=num_virtual_tokens, objectives=objectives, **options
    )
