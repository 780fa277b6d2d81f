"""ULPT: ultra-low-dimensional prompt tuning (arXiv 2502.04501)."""

from __future__ import annotations

from typing import Any

from ..tuner import SoftPromptConfig


def ulpt(
    num_virtual_tokens: int = 20, rank: int = 2, projection_seed: int = 0, placement: str = "input", **options: Any
) -> SoftPromptConfig:
    """Train a prompt in r dimensions, which a frozen random matrix lifts to the width of the embeddings.

    ``E = (Z P~) * scale + shift``: P r + 2 H trained numbers; P~ is stored as its seed.

    Args:
        num_virtual_tokens: P.
        rank: r (the paper: 2 to 256).
        projection_seed: seed of P~.
        placement: "input" or "deep"; a deep prompt has codes, scale and shift of its own at each layer, and one P~.
        **options: any other field of `SoftPromptConfig`.

    Differs from the paper: see `softprompt.prompts.ProjectedPrompt`.
    """
    return SoftPromptConfig(
        prompt="projected",
        placement=placement,
        num_virtual_tokens=num_virtual_tokens,
        rank=rank,
        projection_seed=projection_seed,
        **options,
    )
