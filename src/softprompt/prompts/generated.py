"""A prompt that reads the input: at each site a small network makes virtual tokens from the tokens that stand there."""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .._types import SoftPromptError
from ._base import Prompt
from .decomposed import ACTIVATIONS

GENERATOR_POOLINGS = ("average", "max", "attention")


class GeneratedPrompt(Prompt):
    """Generate P virtual tokens per input and site from the hidden states h [B, S, H] that enter the site's layer.

    ::

        z_t = W_down^T h_t + d                              every real token t
        c_j = pool_j(z)                                     j = 1..P
        p_j = W_up^T phi(c_j) + u_j                         the site's j-th virtual token

    ``pool_j`` is the mean ("average") or maximum ("max") over the j-th of P adaptive segments of the real tokens
    (segment j of n tokens spans floor(j n / P) to ceil((j+1) n / P), so every token is read and no segment is empty),
    or attention with a learned query, ``softmax_t(<q_j, z_t> / sqrt(b))`` ("attention"). An input without real tokens
    gets ``p_j = u_j + W_up^T phi(0)``. W_up starts at zero and u at the prompt's initial vectors, so training starts
    where a deep prompt starts.

    With ``phm_factor`` n both matrices are sums of Kronecker products, ``W = sum_i A_i (x) B_i`` with A_i [n, n].

    Args:
        depth: D, number of sites.
        num_virtual_tokens: P.
        hidden_size: H.
        bottleneck: b.
        pooling: "average", "max" or "attention".
        activation: phi, one of "gelu", "relu", "tanh", "identity".
        shared: whether all sites share one generator; each keeps its own u.
        phm_factor: n, or 0 for free matrices; divides H and b.

    Shapes, G = D or 1 generators: embedding (u) [D, P, H]; down [G, H, b] or [G, n, H/n, b/n]; up [G, b, H] or
    [G, n, b/n, H/n]; down_rule, up_rule [G, n, n, n]; down_bias (d) [G, b]; slot_query (q) [G, P, b].
    Parameters: D P H + G (2 H b + b), plus G P b with attention; with PHM 2 H b becomes 2 (n^3 + H b / n).

    Raises:
        SoftPromptError: n does not divide H and b.

    Source: the generator of late prompt tuning (arXiv 2210.11292) at every candidate layer (SPT, arXiv 2310.20127).
    Differs from the paper: one output bias u_j per virtual token instead of one for all, which gives the prompt a start
    (chosen); the generator learns at a tenth of the prompt's rate by default (chosen).
    """

    form = "generated"
    fields = MappingProxyType(
        {
            "bottleneck": "bottleneck",
            "generator_pooling": "pooling",
            "generator_activation": "activation",
            "shared_generator": "shared",
            "phm_factor": "phm_factor",
        }
    )
    depends_on_input = True
    rate_factors = MappingProxyType({"generator": 0.1})

    def __init__(
        self,
        depth: int,
        num_virtual_tokens: int,
        hidden_size: int,
        bottleneck: int,
        pooling: str = "average",
        activation: str = "gelu",
        shared: bool = False,
        phm_factor: int = 0,
    ):
        super().__init__(depth)
        if phm_factor and (hidden_size % phm_factor or bottleneck % phm_factor):
            raise SoftPromptError(
                f"phm_factor={phm_factor} must divide hidden_size={hidden_size} and bottleneck={bottleneck}."
            )
        self.pooling, self.activation, self.shared = pooling, activation, shared
        count, n = 1 if shared else depth, max(phm_factor, 1)
        wide, narrow = hidden_size // n, bottleneck // n
        leading = (count, n) if phm_factor else (count,)
        self.embedding = nn.Parameter(torch.zeros(depth, num_virtual_tokens, hidden_size))
        self.down = nn.Parameter(torch.zeros(*leading, wide, narrow))
        self.up = nn.Parameter(torch.zeros(*leading, narrow, wide))
        self.down_bias = nn.Parameter(torch.zeros(count, bottleneck))
        self.down_rule = self.up_rule = self.slot_query = None
        if phm_factor:
            self.down_rule = nn.Parameter(torch.zeros(count, n, n, n))
            self.up_rule = nn.Parameter(torch.zeros(count, n, n, n))
        if pooling == "attention":
            self.slot_query = nn.Parameter(torch.zeros(count, num_virtual_tokens, bottleneck))

    @property
    def num_virtual_tokens(self) -> int:
        return self.embedding.shape[1]

    def prefix(self) -> Float[Tensor, "depth prompt hidden"]:
        return self.embedding

    def read(
        self, prefix: Float[Tensor, "prompt hidden"], site: int, tokens: Tensor, real: Tensor | None
    ) -> Float[Tensor, "batch prompt hidden"]:
        g = 0 if self.shared else site
        down, up = _matrix(self.down[g], self.down_rule, g), _matrix(self.up[g], self.up_rule, g)
        real = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if real is None else real
        tokens, bias = tokens.to(down), self.down_bias[g]
        if self.pooling == "average":  # pooling and a linear map commute, and P is less than S
            share = self._segments(real).to(tokens)
            share = share / share.sum(-1, keepdim=True).clamp(min=1)
            pooled = share @ tokens @ down + bias * real.any(1).view(-1, 1, 1)
        else:
            narrow = tokens @ down + bias
            pooled = self._attend(narrow, real, g) if self.slot_query is not None else self._maximum(narrow, real)
        return prefix + ACTIVATIONS[self.activation](pooled) @ up

    def _segments(self, real: Tensor) -> Tensor:
        """[B, P, S]: whether the t-th position belongs to the j-th segment of its input's real tokens."""
        slots = self.num_virtual_tokens
        count = real.sum(1).view(-1, 1, 1)
        j = torch.arange(slots, device=real.device).view(1, -1, 1)
        order = (real.long().cumsum(1) - 1).unsqueeze(1)
        inside = (order >= j * count // slots) & (order < -(-(j + 1) * count // slots))
        return inside & real.unsqueeze(1)

    def _maximum(self, narrow: Tensor, real: Tensor) -> Tensor:
        segments = self._segments(real)
        slots = [
            narrow.masked_fill(~segments[:, j].unsqueeze(-1), -torch.inf).amax(1)
            for j in range(self.num_virtual_tokens)
        ]
        maxima = torch.stack(slots, 1)
        return maxima.masked_fill(torch.isneginf(maxima), 0)  # inputs without tokens

    def _attend(self, narrow: Tensor, real: Tensor, g: int) -> Tensor:
        assert self.slot_query is not None
        scores = self.slot_query[g] @ narrow.mT / math.sqrt(narrow.shape[-1])
        hidden = ~real.unsqueeze(1)
        weights = F.softmax(scores.masked_fill(hidden, torch.finfo(scores.dtype).min), dim=-1)
        return weights.masked_fill(hidden, 0) @ narrow

    @torch.no_grad()
    def start_from(
        self, vectors: Float[Tensor, "depth prompt hidden"], generator: torch.Generator | None = None
    ) -> None:
        self.embedding.copy_(vectors)
        self.down.normal_(std=1 / math.sqrt(vectors.shape[-1]), generator=generator)
        self.down_bias.zero_()
        self.up.zero_()
        for rule in (self.down_rule, self.up_rule):
            if rule is not None:
                rule.normal_(std=1 / math.sqrt(rule.shape[-1]), generator=generator)
        if self.slot_query is not None:
            self.slot_query.normal_(generator=generator)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        optional = (self.down_rule, self.up_rule, self.slot_query)
        made = [self.down, self.up, self.down_bias, *(p for p in optional if p is not None)]
        return {"prompt": [self.embedding], "generator": made}


def _matrix(weight: Tensor, rule: Tensor | None, g: int) -> Tensor:
    """The matrix itself, or sum_i kron(A_i, B_i) of its PHM factors."""
    if rule is None:
        return weight
    n, height, width = weight.shape
    return torch.einsum("nij,nab->iajb", rule[g], weight).reshape(n * height, n * width)
