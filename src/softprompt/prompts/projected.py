"""A prompt in few dimensions: short codes, lifted to the width of the embeddings by a frozen random matrix."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import SoftPromptError
from ._base import Prompt


class ProjectedPrompt(Prompt):
    """Train codes Z in r dimensions; a random matrix that a seed names, and that is never trained, makes virtual tokens of them.

    ::

        E = (Z P~) * scale + shift,  P~_ij ~ N(0, 1 / r)

    with scale and shift [H] learned, one pair for each site; all sites share P~. Start, at each site: shift is the mean of the
    vectors that the prompt is started from, scale 1, Z normal with their standard deviation around it, so E has their mean and spread. It cannot start
    at given vectors: they do not lie in r dimensions.

    Args:
        depth: D, number of sites.
        num_virtual_tokens: P.
        hidden_size: H.
        rank: r, at most H.
        seed: of P~; saved in the config in place of the matrix.

    Shapes: codes (Z) [D, P, r]; scale, shift [D, H]. Parameters: D (P r + 2 H).

    Raises:
        SoftPromptError: r above H.

    Source: ULPT (arXiv 2502.04501). Differs from the paper: the variance of P~, and the start, are chosen here.
    """

    form = "projected"
    fields = MappingProxyType({"rank": "rank", "projection_seed": "seed"})
    starts_at_vectors = False

    def __init__(self, depth: int, num_virtual_tokens: int, hidden_size: int, rank: int, seed: int = 0):
        super().__init__(depth)
        if rank > hidden_size:
            raise SoftPromptError(
                f"a projected prompt has codes in fewer dimensions than its tokens: expected rank <= {hidden_size}, got {rank}."
            )
        self.codes = nn.Parameter(torch.zeros(depth, num_virtual_tokens, rank))
        self.scale = nn.Parameter(torch.zeros(depth, hidden_size))
        self.shift = nn.Parameter(torch.zeros(depth, hidden_size))
        self.seed = seed
        self._lift: Tensor | None = None

    @classmethod
    def check(cls, **options: Any) -> None:
        if options["rank"] < 1:
            raise SoftPromptError(f"a projected prompt needs rank >= 1, got rank={options['rank']}.")
        if not 0 <= options["seed"] < 2**32:
            raise SoftPromptError(
                f"projection_seed: expected a whole number from 0 to 2^32 - 1, got {options['seed']}."
            )

    @property
    def num_virtual_tokens(self) -> int:
        return self.codes.shape[1]

    def lift(self) -> Float[Tensor, "rank hidden"]:
        """P~, drawn once and kept on the device of the codes."""
        if self._lift is None or self._lift.device != self.codes.device:
            rank, width = self.codes.shape[-1], self.scale.shape[-1]
            # numpy has frozen this generator's numbers for good, torch has not: a seed in a file must mean one matrix for ever
            drawn = np.random.RandomState(self.seed).standard_normal((rank, width)) / math.sqrt(rank)
            self._lift = torch.from_numpy(drawn.astype(np.float32)).to(self.codes.device)
        return self._lift

    def prefix(self) -> Float[Tensor, "depth prompt hidden"]:
        return (self.codes @ self.lift().to(self.codes)) * self.scale.unsqueeze(1) + self.shift.unsqueeze(1)

    @torch.no_grad()
    def start_from(
        self, vectors: Float[Tensor, "depth prompt hidden"], generator: torch.Generator | None = None
    ) -> None:
        self.shift.copy_(vectors.mean(1))
        self.scale.fill_(1.0)
        around = (vectors - vectors.mean(1, keepdim=True)).std(
            dim=(1, 2), keepdim=True
        )  # of each site: deep states differ in size
        self.codes.copy_(torch.randn(self.codes.shape, generator=generator) * around.cpu())

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"prompt": [self.codes], "frame": [self.scale, self.shift]}
