"""The free prompt: every virtual token is a parameter of its own."""

from __future__ import annotations

from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._base import Prompt


class PlainPrompt(Prompt):
    """A free matrix of virtual tokens, ``prefix = embedding`` (Lester et al. 2021, arXiv 2104.08691).

    With ``depth`` > 1 there is one matrix per layer (the hidden-state form of P-tuning v2, arXiv 2110.07602).
    With ``max_positions`` > 0 it also holds a free delta of the input embeddings; a decomposed prompt collapses to this
    form.

    Args:
        depth: D, number of sites.
        num_virtual_tokens: P.
        hidden_size: H.
        max_positions: S_max, input positions that get a delta; 0 for no delta.

    Shapes: embedding [D, P, H]; delta [S_max, H].
    """

    form = "plain"
    fields = MappingProxyType({"max_positions": "max_positions"})

    def __init__(self, depth: int, num_virtual_tokens: int, hidden_size: int, max_positions: int = 0):
        super().__init__(depth)
        self.embedding = nn.Parameter(torch.zeros(depth, num_virtual_tokens, hidden_size))
        self.delta = nn.Parameter(torch.zeros(max_positions, hidden_size)) if max_positions else None

    @property
    def num_virtual_tokens(self) -> int:
        return self.embedding.shape[1]

    def prefix(self) -> Float[Tensor, "depth prompt hidden"]:
        return self.embedding

    def input_delta(self) -> Float[Tensor, "positions hidden"] | None:
        return self.delta

    @torch.no_grad()
    def start_from(
        self, vectors: Float[Tensor, "depth prompt hidden"], generator: torch.Generator | None = None
    ) -> None:
        self.embedding.copy_(vectors)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"prompt": [self.embedding]}
        if self.delta is not None:
            groups["low_rank"] = [self.delta]
        return groups
