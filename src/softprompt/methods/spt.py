"""SPT: learn at which layers to insert instance-aware prompts (Zhu and Tan, EMNLP 2023, arXiv 2310.20127)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tuner import SoftPromptConfig


def spt(
    num_virtual_tokens: int = 10,
    budget: int = 4,
    layers: Sequence[int] | None = None,
    bottleneck: int = 256,
    generator_pooling: str = "average",
    phm_factor: int = 0,
    tau: float = 1.0,
    consistency: float = 1.0,
    layer_score: str = "ablation",
    gate_optimizer: str = "shared",
    **options: Any,
) -> SoftPromptConfig:
    """Prompts made from the input at the layers where they help; a search with one gate per layer finds these layers.

    Without ``layers`` the config is the hyper-network, with a generator and a gate at every layer.
    `softprompt.LayerSearch` searches it; ``softprompt train`` then keeps ``budget`` layers and trains them anew. With
    ``layers`` the config is the sparse model, and nothing is searched.

    Args:
        num_virtual_tokens: P.
        budget: K, layers to keep after the search.
        layers: the layers to enter, counted from 0.
        bottleneck: b of the generators.
        generator_pooling: "average", "max" or "attention".
        phm_factor: n of Kronecker-factored generators; 0 for free matrices.
        tau: share of the new virtual tokens that an open gate lets in; the paper's group uses 0.5 and 1.
        consistency: weight of the consistency loss in the search; 0 with ``decoupled_gates=False`` is plain DARTS.
        layer_score: what ranks layers after the search: "ablation" (evaluations of the validation half, 2 D + 1 of them for
            D candidates), "gates", or "gradient" (-dL/dalpha, summed over the search).
        gate_optimizer: how gates step: "shared" (one scale for all, in competition, see `softprompt.search.SharedScale`) or
            "adam" (AdamW, each gate on its own scale).
        **options: any other field of `SoftPromptConfig` (decoupled_gates, shared_generator, ...).

    Differs from the paper: the forms of gate, decoupling and consistency are chosen here (see
    `softprompt.prompts.Prompt`), and so is how gates step; layers are kept by ablation scores, not by their gates. The embedding layer and the first transformer layer, between which only positions and
    a norm stand, are one candidate, so there are L candidates, numbered as transformers numbers its layers.
    """
    return SoftPromptConfig(
        prompt="generated",
        placement="gated" if layers is None else "deep",
        layers=None if layers is None else list(layers),
        num_virtual_tokens=num_virtual_tokens,
        budget=budget,
        bottleneck=bottleneck,
        generator_pooling=generator_pooling,
        phm_factor=phm_factor,
        tau=tau,
        consistency=consistency,
        layer_score=layer_score,
        gate_optimizer=gate_optimizer,
        **options,
    )
