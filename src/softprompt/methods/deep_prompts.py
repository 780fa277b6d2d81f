"""Deep prompts: virtual tokens at every layer (P-tuning v2, Liu et al. 2022, arXiv 2110.07602)."""

from __future__ import annotations

from typing import Any

from ..tuner import SoftPromptConfig


def deep_prompts(num_virtual_tokens: int = 20, **options: Any) -> SoftPromptConfig:
    """A free matrix [L, P, H] that replaces the states at the prompt positions at the input of every layer.

    Args:
        num_virtual_tokens: P, the same at every layer.
        **options: any other field of `SoftPromptConfig` (task_type, init, ...).

    Differs from the paper: the hidden-state form (layers see replaced states, and compute keys and values from them)
    instead of free keys and values; no re-parameterisation by an MLP; the virtual tokens start from the frozen states
    of one vocabulary prompt.
    """
    return SoftPromptConfig(prompt="plain", placement="deep", num_virtual_tokens=num_virtual_tokens, **options)
