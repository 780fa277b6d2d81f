"""EPT: efficient prompt tuning by multi-space projection and prompt fusion (Lan et al., AAAI 2025, arXiv 2405.11464)."""

from __future__ import annotations

from typing import Any

from ..tuner import SoftPromptConfig


def ept(
    num_virtual_tokens: int = 60,
    rank: int = 30,
    max_positions: int = 256,
    alpha: float = 8.0,
    fusion_memory: str = "product",
    fusion_scores: str = "cosine",
    fusion_temperature: float = 0.1,
    num_spaces: int = 4,
    space_bottleneck: int = 16,
    gate: str = "prompt",
    **options: Any,
) -> SoftPromptConfig:
    """A decomposed prompt whose short part is fused with the low-rank part and projected into K gated subspaces.

    Args:
        num_virtual_tokens: m.
        rank: R; `equal_budget` gives (m, R) for P and H.
        max_positions: S_max; later tokens get no delta. Tokens that no training text reaches would get one that was only drawn: a run
            takes the longest training input where that is shorter.
        alpha: numerator of the delta's scale.
        fusion_memory: "product" (M = s A B), "factor" (M = s B, cheaper) or "none".
        fusion_scores: "cosine", or "dot", which is inert where embeddings have norm 1.
        fusion_temperature: T of the cosines.
        num_spaces: K.
        space_bottleneck: b.
        gate: "prompt" (one weight per subspace), "token" (one per subspace and virtual token) or "none" (1 / K each).
        **options: any other field of `SoftPromptConfig`.

    Differs from the paper: the paper describes the four parts in words; the formulas of fusion, projection and gate
    (see `softprompt.prompts.DecomposedPrompt`) are chosen here. In training the projection costs K (2 H b + H)
    parameters beyond the equal budget; after `softprompt.collapse` it costs nothing.
    """
    return SoftPromptConfig(
        prompt="decomposed",
        placement="input",
        num_virtual_tokens=num_virtual_tokens,
        rank=rank,
        max_positions=max_positions,
        alpha=alpha,
        fusion_memory=fusion_memory,
        fusion_scores=fusion_scores,
        fusion_temperature=fusion_temperature,
        num_spaces=num_spaces,
        space_bottleneck=space_bottleneck,
        gate=gate,
        **options,
    )
