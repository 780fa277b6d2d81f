"""DePT: decomposed prompt tuning (Shi and Lipani, ICLR 2024, arXiv 2309.05173)."""

from __future__ import annotations

from typing import Any

from ..tuner import SoftPromptConfig


def dept(
    num_virtual_tokens: int = 60, rank: int = 30, max_positions: int = 256, alpha: float = 8.0, **options: Any
) -> SoftPromptConfig:
    """A short prompt [m, H] and a low-rank change ``alpha / sqrt(R) A B`` of the input embeddings.

    Args:
        num_virtual_tokens: m (the paper: 40, 60 or 80).
        rank: R (45, 30 or 15 for these m; see `equal_budget`).
        max_positions: S_max; later tokens get no delta. Tokens that no training text reaches would get one that was only drawn: a run
            takes the longest training input where that is shorter.
        alpha: numerator of the scale.
        **options: any other field of `SoftPromptConfig`; the paper trains with
            ``learning_rates={"low_rank": 5e-4}`` beside 0.3 for the prompt on T5.

    Differs from the paper: nothing in the forward pass.
    """
    return SoftPromptConfig(
        prompt="decomposed",
        placement="input",
        num_virtual_tokens=num_virtual_tokens,
        rank=rank,
        max_positions=max_positions,
        alpha=alpha,
        **options,
    )
