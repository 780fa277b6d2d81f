"""A short prompt plus two low-rank matrices, optionally fused by attention and projected into several subspaces."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .._types import SoftPromptError
from ._base import Prompt

FUSION_MEMORIES = ("none", "product", "factor")
FUSION_SCORES = ("cosine", "dot")
GATES = ("prompt", "token", "none")
EPS = 1e-6  # beside the norms of a cosine: the memory is 0 at the start
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class DecomposedPrompt(Prompt):
    """A short prompt, fused and projected, and a low-rank change of the input embeddings.

    ::

        delta  = s A B,  s = alpha / sqrt(R)                          decomposition    exact    (DePT, arXiv 2309.05173)
        P_f    = P_s + softmax(cos(P_s, M) / T) M                     fusion           chosen   (EPT, arXiv 2405.11464)
        P^(k)  = phi(P_s D_k) U_k,  g = softmax(W_g mean(P_s))        projection, gate chosen
        prefix = P_f + sum_k g_k P^(k)                                reconstruction   chosen

    with M = s A B (``fusion_memory="product"``), M = s B (``"factor"``) or no fusion (``"none"``); the gate is one weight
    per subspace (``gate="prompt"``), one per subspace and virtual token (``"token"``, W_g applied to each), or 1 / K
    (``"none"``).
    Start: A Kaiming-uniform(a = sqrt 5), D_k normal / sqrt(H), the rest zero: ``prefix = P_s`` and ``delta = 0``.

    ``fusion_scores="dot"`` is ``softmax(P_s M^T / sqrt(H)) M`` with M = A B or B. Where embeddings have norm 1 its scores are about
    5e-4, so the attention is uniform and adds one small vector to all virtual tokens; cosines do not depend on the norms.

    Args:
        depth: D, number of sites; each has its own P_s, all share A, B, D_k, U_k and W_g.
        num_virtual_tokens: m, virtual tokens of the short prompt.
        hidden_size: H.
        max_positions: S_max, input positions that get a delta.
        rank: R.
        alpha: numerator of the scale s.
        fusion_memory: "none", "product" or "factor".
        fusion_scores: "cosine" or "dot".
        fusion_temperature: T of the cosines.
        num_spaces: K; 0 switches the projection and its gate off.
        space_bottleneck: b, width of each subspace.
        gate: "prompt", "token" or "none".
        activation: phi, one of "gelu", "relu", "tanh", "identity".

    Shapes: short [D, m, H]; lowrank_a [S_max, R]; lowrank_b [R, H]; space_down [K, H, b]; space_up [K, b, H];
    gate_weight [K, H].

    The low-rank pair moves every input embedding at once, and the subspaces move every virtual token, so by default both learn
    at a tenth of the prompt's rate (chosen; DePT uses 5e-4 beside 0.3 on T5). The gate learns at the whole rate.

    Differs from the paper: the EPT paper describes fusion, projection, gate and reconstruction in words; their formulas
    here are this library's choice (status *chosen* above). The decomposition is DePT's.
    """

    form = "decomposed"
    fields = MappingProxyType(
        {
            "max_positions": "max_positions",
            "rank": "rank",
            "alpha": "alpha",
            "fusion_memory": "fusion_memory",
            "fusion_scores": "fusion_scores",
            "fusion_temperature": "fusion_temperature",
            "num_spaces": "num_spaces",
            "space_bottleneck": "space_bottleneck",
            "gate": "gate",
            "space_activation": "activation",
        }
    )
    rate_factors = MappingProxyType({"low_rank": 0.1, "spaces": 0.1})

    def __init__(
        self,
        depth: int,
        num_virtual_tokens: int,
        hidden_size: int,
        max_positions: int,
        rank: int,
        alpha: float = 8.0,
        fusion_memory: str = "none",
        fusion_scores: str = "dot",
        fusion_temperature: float = 0.1,
        num_spaces: int = 0,
        space_bottleneck: int = 16,
        gate: str = "prompt",
        activation: str = "gelu",
    ):
        super().__init__(depth)
        self.scale, self.activation = alpha / math.sqrt(rank), activation
        self.fusion_memory, self.fusion_scores, self.fusion_temperature = (
            fusion_memory,
            fusion_scores,
            fusion_temperature,
        )
        self.gate = gate
        self.short = nn.Parameter(torch.zeros(depth, num_virtual_tokens, hidden_size))
        self.lowrank_a = nn.Parameter(torch.zeros(max_positions, rank))
        self.lowrank_b = nn.Parameter(torch.zeros(rank, hidden_size))
        self.space_down = self.space_up = self.gate_weight = None
        if num_spaces:
            self.space_down = nn.Parameter(torch.zeros(num_spaces, hidden_size, space_bottleneck))
            self.space_up = nn.Parameter(torch.zeros(num_spaces, space_bottleneck, hidden_size))
            if gate != "none":
                self.gate_weight = nn.Parameter(torch.zeros(num_spaces, hidden_size))

    @classmethod
    def check(cls, **options: Any) -> None:
        rank, positions = options["rank"], options["max_positions"]
        if rank < 1 or positions < 1:
            raise SoftPromptError(
                f"a decomposed prompt needs rank >= 1 and max_positions >= 1, got rank={rank}, max_positions={positions}."
            )
        if not options["fusion_temperature"] > 0:
            raise SoftPromptError(
                f"fusion_temperature: expected a number above 0, got {options['fusion_temperature']!r}."
            )

    @property
    def num_virtual_tokens(self) -> int:
        return self.short.shape[1]

    def prefix(self) -> Float[Tensor, "depth prompt hidden"]:
        return self._fused() + self._projected()

    def input_delta(self) -> Float[Tensor, "positions hidden"]:
        return self.scale * (self.lowrank_a @ self.lowrank_b)

    def gates(self) -> Float[Tensor, "depth gated spaces"] | None:
        """Return the weights of the subspaces, softmax over the last axis: [D, 1, K] or [D, m, K]; None without any."""
        if self.gate_weight is None:
            return None
        gated = self.short if self.gate == "token" else self.short.mean(1, keepdim=True)
        return torch.softmax(gated @ self.gate_weight.T, dim=-1)

    def attention(self) -> Float[Tensor, "depth prompt memory"] | None:
        """Return what each virtual token of the short prompt attends to, softmax over the last axis; None without fusion.

        The memory has S_max rows ("product") or R ("factor").
        """
        if self.fusion_memory == "none":
            return None
        scores = self.short @ self.lowrank_b.T  # [D, m, R]; M is never formed: A is applied on the R side
        if self.fusion_memory == "product":
            scores = scores @ self.lowrank_a.T  # [D, m, S_max]
        if self.fusion_scores == "dot":
            return torch.softmax(scores / math.sqrt(self.short.shape[-1]), dim=-1)
        squares = (self.short.square().sum(-1, keepdim=True) + EPS**2) * (self._memory_squares() + EPS**2)
        return torch.softmax(scores / (squares.sqrt() * self.fusion_temperature), dim=-1)

    @torch.no_grad()
    def mechanism(self) -> dict[str, Any]:
        """Return how the fusion attends and the gate weighs, the means over sites and virtual tokens.

        ``fusion_entropy`` is that of the attention in units of a uniform one (1: it tells nothing apart), ``fusion_norm`` and
        ``projection_norm`` the norms of what the two add, beside ``short_norm``; ``gates`` the weights of the K subspaces, which
        start at 1 / K.
        """
        found: dict[str, Any] = {"short_norm": _mean_norm(self.short)}
        attention = self.attention()
        if attention is not None:
            if attention.shape[-1] > 1:
                entropy = torch.special.entr(attention.double()).sum(-1).mean() / math.log(attention.shape[-1])
                found["fusion_entropy"] = entropy.item()
            found["fusion_norm"] = _mean_norm(self._fused() - self.short)
        projected, gates = self._projected(), self.gates()
        if isinstance(projected, Tensor):
            found["projection_norm"] = _mean_norm(projected)
        if gates is not None:
            found["gates"] = gates.mean((0, 1)).tolist()
        return found

    def _memory_squares(self) -> Float[Tensor, " memory"]:
        """The squared norms of the rows of A B, or of B; the scale s has no part in a cosine."""
        if self.fusion_memory == "factor":
            return self.lowrank_b.square().sum(-1)
        gram = self.lowrank_b @ self.lowrank_b.T
        return ((self.lowrank_a @ gram) * self.lowrank_a).sum(-1).clamp(min=0)

    def _fused(self) -> Float[Tensor, "depth prompt hidden"]:
        weights = self.attention()
        if weights is None:
            return self.short
        if self.fusion_memory == "product":
            weights = weights @ self.lowrank_a
        scale = self.scale if self.fusion_scores == "cosine" else 1.0
        return self.short + scale * (weights @ self.lowrank_b)

    def _projected(self) -> Float[Tensor, "depth prompt hidden"] | float:
        if self.space_down is None or self.space_up is None:
            return 0.0
        gates = self.gates()
        inner = ACTIVATIONS[self.activation](torch.einsum("dmh,khb->dmkb", self.short, self.space_down))
        weights = 1 / len(self.space_down) if gates is None else gates.unsqueeze(-1)
        return torch.einsum("dmkb,kbh->dmh", inner * weights, self.space_up)

    @torch.no_grad()
    def start_from(
        self, vectors: Float[Tensor, "depth prompt hidden"], generator: torch.Generator | None = None
    ) -> None:
        self.short.copy_(vectors)
        nn.init.kaiming_uniform_(self.lowrank_a, a=math.sqrt(5), generator=generator)
        self.lowrank_b.zero_()
        if self.space_down is not None and self.space_up is not None:
            self.space_down.normal_(std=1 / math.sqrt(self.space_down.shape[1]), generator=generator)
            self.space_up.zero_()
        if self.gate_weight is not None:
            self.gate_weight.zero_()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"prompt": [self.short], "low_rank": [self.lowrank_a, self.lowrank_b]}
        if self.space_down is not None and self.space_up is not None:
            groups["spaces"] = [self.space_down, self.space_up]
        if self.gate_weight is not None:
            groups["space_gate"] = [self.gate_weight]
        return groups


def _mean_norm(vectors: Tensor) -> float:
    return vectors.norm(dim=-1).mean().item()
