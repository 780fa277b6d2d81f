"""The compiled prompt: what the layers of one backbone made of a prompt."""

from __future__ import annotations

from types import MappingProxyType
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import SoftPromptError
from ._base import Prompt


def no_virtual_tokens() -> SoftPromptError:
    """The error of whoever asks a compiled prompt for what it was made of."""
    return SoftPromptError(
        "a compiled prompt holds keys and values, no virtual tokens; take the adapter that it was compiled from."
    )


class CompiledPrompt(Prompt):
    """Keys and values of P virtual tokens in each layer of one backbone, as text reads them; nothing is made in a pass.

    They stand at positions 0 to P - 1: keys are those after the rotation of positions.

    Args:
        depth: L, number of layers.
        num_virtual_tokens: P.
        hidden_size: H.
        kv_heads, head_dim: heads of keys and values, and their width d.
        max_positions: S_max, input positions that get a delta; 0 for no delta.

    Shapes: keys, values [L, heads, P, d]; delta [S_max, H].
    """

    form = "compiled"
    starts_at_vectors = False
    fields = MappingProxyType({"kv_heads": "kv_heads", "head_dim": "head_dim", "max_positions": "max_positions"})

    def __init__(
        self,
        depth: int,
        num_virtual_tokens: int,
        hidden_size: int,
        kv_heads: int = 0,
        head_dim: int = 0,
        max_positions: int = 0,
    ):
        super().__init__(depth)
        shape = (depth, kv_heads, num_virtual_tokens, head_dim)
        self.keys, self.values = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        self.delta = nn.Parameter(torch.zeros(max_positions, hidden_size)) if max_positions else None

    @classmethod
    def check(cls, kv_heads: int = 0, head_dim: int = 0, **options: int) -> None:
        if not kv_heads or not head_dim:
            raise SoftPromptError(
                f"prompt='compiled' needs kv_heads and head_dim above 0, got {kv_heads} and {head_dim}; softprompt.compile makes such a config."
            )

    @property
    def num_virtual_tokens(self) -> int:
        return self.keys.shape[2]

    def keys_and_values(
        self,
    ) -> tuple[Float[Tensor, "layers heads prompt dim"], Float[Tensor, "layers heads prompt dim"]]:
        if self.awaits_values:
            self._check_arrival()
        return self.keys, self.values

    def prefix(self) -> NoReturn:
        raise no_virtual_tokens()

    def input_delta(self) -> Float[Tensor, "positions hidden"] | None:
        return self.delta

    def start_from(self, vectors: Tensor, generator: torch.Generator | None = None) -> NoReturn:
        raise SoftPromptError("a compiled prompt starts from nothing but a prompt: call softprompt.compile(model).")

    def groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"prompt": [self.keys, self.values]}
        if self.delta is not None:
            groups["low_rank"] = [self.delta]
        return groups
