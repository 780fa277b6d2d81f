"""InfoPrompt: mutual-information objectives for prompts (Wu et al., NeurIPS 2023, arXiv 2306.04933)."""

from __future__ import annotations

from typing import Any

from .._types import check_choice
from ..objectives import objective
from ..tuner import SoftPromptConfig

GENERATORS = {"free": "plain", "instance": "instance"}


def infoprompt(
    num_virtual_tokens: int = 20,
    generator: str = "free",
    negatives: str = "own_tokens",
    gamma: float = 0.1,
    beta: float = 0.2,
    kl: float = 0.1,
    decay: float = 1.0,
    latent: int = 32,
    bottleneck: int = 64,
    placement: str = "input",
    **options: Any,
) -> SoftPromptConfig:
    """A prompt that is trained to share information with the head and with the representation.

    The loss is ``loss + (gamma L_head + beta L_rep + kl L_KL) (1 - decay progress)`` with the terms
    `softprompt.objectives.HeadInformation`, `RepresentationInformation` and `LatentDivergence`.

    Args:
        num_virtual_tokens: P.
        generator: "free" (one matrix) or "instance" (a prompt for each input, made from its unprompted state).
        negatives: negatives of the head term: "own_tokens", "gaussian" or "batch".
        gamma, beta, kl: weights of the terms.
        decay: share of the weights that training takes away by its end.
        latent: size of the variational head.
        bottleneck: b of the instance generator.
        placement: "input" or "deep".
        **options: any other field of `SoftPromptConfig`; further ``objectives`` are added to these three.

    ``softprompt train`` computes the states of the unprompted pass once, keeps them on disk and adds them to the data
    set as a column ``unprompted``; without this column each step computes them.

    Differs from the paper: decay = 1 (the paper's code has the field; the value is chosen), the prompt learns at the
    rate of prompt tuning, and critics at a tenth of it (paper: 1e-3 for all).
    """
    check_choice("generator", generator, GENERATORS)
    shared = {"decay": decay}
    own = [
        objective("head_information", weight=gamma, negatives=negatives, **shared),
        objective("representation_information", weight=beta, latent=latent, **shared),
        objective("latent_divergence", weight=kl, latent=latent, **shared),
    ]
    return SoftPromptConfig(
        prompt=GENERATORS[generator],
        placement=placement,
        num_virtual_tokens=num_virtual_tokens,
        bottleneck=bottleneck,
        objectives=[*own, *options.pop("objectives", [])],
        **options,
    )
