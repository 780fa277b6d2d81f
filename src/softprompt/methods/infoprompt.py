"""InfoPrompt: mutual-information objectives for prompts (Wu et al., NeurIPS 2023, arXiv 2306.04933)."""

from __future__ import annotations

from typing import Any

from .._types import SoftPromptError, check_choice
from ..objectives import objective
from ..tuner import SoftPromptConfig
from ._signs import check_at_least_zero

# defaults, which the signature says as numbers for those who read it from the source
SHARE, TEMPERATURE, BOTTLENECK = 0.1, 0.1, 64
GENERATORS = {"free": "plain", "instance": "instance"}


def infoprompt(
    num_virtual_tokens: int = 20,
    generator: str = "free",
    negatives: str = "own_tokens",
    share: float = 0.1,
    gamma: float | None = None,
    beta: float | None = None,
    kl: float = 0.1,
    exact: bool = False,
    temperature: float = 0.1,
    decay: float = 1.0,
    objectives_first: float = 0.0,
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
        share: of each of the two information terms, in the size of the gradient on the virtual tokens, the task's loss being 1;
            gamma and beta are then measured.
        gamma, beta: weights of the two terms; None takes ``share``, or 0.1 and 0.2 where ``exact``.
        kl: weight of the third, which regularises the critic alone.
        exact: take the terms as the paper's code has them: products over sqrt(H), the mean of the head's rows, and a KL whose
            gradient reaches the prompt.
        temperature: T of the cosines.
        decay: share of the weights that training takes away by its end.
        objectives_first: share of the training, at its start, in which the terms alone are minimised: the prompt that they find
            is where the task's loss begins.
        latent: size of the variational head.
        bottleneck: b of the instance generator.
        placement: "input" or "deep".
        **options: any other field of `SoftPromptConfig`; further ``objectives`` are added to these three.

    ``softprompt train`` computes the states of the unprompted pass once, keeps them on disk and adds them to the data
    set as a column ``unprompted``; without this column each step computes them.

    Differs from the paper: cosines, shares, class directions of the head, a KL that ends at the states, and decay = 1 (the paper's
    code has the field) are chosen; ``exact=True, decay=0.0`` is that code's loss. The prompt learns at the rate of prompt tuning, and
    critics at a tenth of it (paper: 1e-3 for all).
    """
    check_choice("generator", generator, GENERATORS)
    check_at_least_zero(share=share, gamma=gamma, beta=beta, kl=kl)
    weighed = "exact=True takes weights" if exact else "gamma and beta are given" if None not in (gamma, beta) else ""
    for name, value, usual, why_not in (
        ("share", share, SHARE, weighed),
        ("temperature", temperature, TEMPERATURE, "exact=True takes products, not cosines" if exact else ""),
        ("bottleneck", bottleneck, BOTTLENECK, "generator='free' has none" if generator == "free" else ""),
    ):
        if why_not and value != usual:
            raise SoftPromptError(f"{name}={value} makes no difference: {why_not}; drop {name}.")
    scores = {"scores": "dot"} if exact else {"temperature": temperature}
    if exact:
        gamma, beta = 0.1 if gamma is None else gamma, 0.2 if beta is None else beta
    head = {"negatives": negatives, "rows": "mean" if exact else "classes"}
    own = [
        objective("head_information", **_strength(gamma, share), **scores, **head, decay=decay),
        objective("representation_information", **_strength(beta, share), **scores, latent=latent, decay=decay),
        objective("latent_divergence", weight=kl, latent=latent, through_state=exact, decay=decay),
    ]
    return SoftPromptConfig(
        prompt=GENERATORS[generator],
        placement=placement,
        num_virtual_tokens=num_virtual_tokens,
        bottleneck=bottleneck,
        objectives=[*own, *options.pop("objectives", [])],
        objectives_first=objectives_first,
        **options,
    )


def _strength(weight: float | None, share: float) -> dict[str, float]:
    return {"share": share} if weight is None else {"weight": weight}
