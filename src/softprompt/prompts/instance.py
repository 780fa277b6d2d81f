"""A prompt that is made from one state of the input, as the bare backbone gives it."""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ._base import Prompt


class InstancePrompt(Prompt):
    """Generate all virtual tokens of an input from its state s [B, H] in the **unprompted** pass.

    ::

        P_i = reshape(W_2i GELU(W_1 sg(s))) + u_i           [P, H] at each of the D sites

    W_2 starts at zero and u at the prompt's initial vectors. s is the state that the head would read of the bare
    backbone. A data-set column ``unprompted`` may hold it; without this column it costs a second pass without gradients.

    Args:
        depth: D, number of sites.
        num_virtual_tokens: P.
        hidden_size: H.
        bottleneck: b, width of the hidden layer.

    Shapes: embedding (u) [D, P, H]; down (W_1) [H, b]; down_bias [b]; up (W_2) [D, b, P, H].

    Source: the generator of InfoPrompt (arXiv 2306.04933). Differs from the paper: the bias u per virtual token is the
    prompt's start (chosen), and each input gets the prompt of its own state.
    """

    form = "instance"
    fields = MappingProxyType({"bottleneck": "bottleneck"})
    depends_on_input = True
    reads_unprompted = True
    rate_factors = MappingProxyType({"generator": 0.1})

    def __init__(self, depth: int, num_virtual_tokens: int, hidden_size: int, bottleneck: int):
        super().__init__(depth)
        self.embedding = nn.Parameter(torch.zeros(depth, num_virtual_tokens, hidden_size))
        self.down = nn.Parameter(torch.zeros(hidden_size, bottleneck))
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up = nn.Parameter(torch.zeros(depth, bottleneck, num_virtual_tokens, hidden_size))

    @property
    def num_virtual_tokens(self) -> int:
        return self.embedding.shape[1]

    def prefix(self) -> Float[Tensor, "depth prompt hidden"]:
        return self.embedding

    def read(
        self, prefix: Float[Tensor, "prompt hidden"], site: int, tokens: Tensor, real: Tensor | None
    ) -> Float[Tensor, "batch prompt hidden"]:
        inner = F.gelu(tokens[:, 0].detach().to(self.down) @ self.down + self.down_bias)
        return prefix + torch.einsum("bn,nph->bph", inner, self.up[site])

    @torch.no_grad()
    def start_from(
        self, vectors: Float[Tensor, "depth prompt hidden"], generator: torch.Generator | None = None
    ) -> None:
        self.embedding.copy_(vectors)
        self.down.normal_(std=1 / math.sqrt(vectors.shape[-1]), generator=generator)
        self.down_bias.zero_()
        self.up.zero_()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"prompt": [self.embedding], "generator": [self.down, self.down_bias, self.up]}
