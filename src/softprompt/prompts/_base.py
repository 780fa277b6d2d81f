"""What every prompt promises to whoever places it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class PromptParts:
    """What a prompt hands over to be placed.

    Attributes:
        prefix: [D, P, H], the virtual tokens; row 0 enters in front of the input embeddings, row i replaces the
            prompt positions at the input of layer i. D = 1 for prompts that only enter at the input.
        input_delta: [S_max, H] or None, added to the embedding of the t-th real token (t counts real tokens only).
    """

    prefix: Float[Tensor, "depth prompt hidden"]
    input_delta: Float[Tensor, "positions hidden"] | None = None


class Prompt(nn.Module, ABC):
    """A learned prompt: parameters in, `PromptParts` out.

    Parameters are flat attributes of the module (no sub-modules), so that saved keys stay one word long. A new module
    holds zeros and draws nothing, so loading one costs no random numbers; `start_from` gives it its first values.
    ``depends_on_input`` tells whoever caches or serves a prompt whether its parts differ from row to row.
    """

    depends_on_input: bool = False
    rate_factors: Mapping[str, float] = {}  # default learning rate of a parameter group, as a share of the prompt's own

    @property
    @abstractmethod
    def num_virtual_tokens(self) -> int:
        """P, the number of virtual tokens."""

    @abstractmethod
    def forward(self) -> PromptParts:
        """Make the prompt from its parameters; differentiable, nothing is cached."""

    @abstractmethod
    def start_from(self, rows: Float[Tensor, "depth prompt hidden"], generator: torch.Generator | None = None) -> None:
        """Set the parameters so that the prompt's prefix equals ``rows`` [D, P, H]; draw what else is random."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Name the groups of parameters that may want their own learning rate; together they are all parameters."""
