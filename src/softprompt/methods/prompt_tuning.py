"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691)."""

from __future__ import annotations

from typing import Any

from ..tuner import SoftPromptConfig


def prompt_tuning(num_virtual_tokens: int = 20, **options: Any) -> SoftPromptConfig:
    """A free matrix of P virtual tokens in front of the input embeddings.

    Args:
        num_virtual_tokens: P (the paper: 100 for T5; 20 is enough for most classification tasks).
        **options: any other field of `SoftPromptConfig` (task_type, init, ...).

    Differs from the paper: P = 20 by default; the virtual tokens start from the whole vocabulary without special
    tokens, not from its 5,000 most common tokens.
    """
    return SoftPromptConfig(prompt="plain", placement="input", num_virtual_tokens=num_virtual_tokens, **options)
