"""What every prompt offers to the code that places it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from .._types import SoftPromptError


@dataclass(frozen=True)
class PromptParts:
    """What a prompt makes without reading the input.

    Attributes:
        prefix: [D, P, H], the virtual tokens of D sites. A prompt that reads the input adds to them in `Prompt.rows`.
        open: indices of the sites that the prompt enters in this pass, ascending.
        weights: [D], or None for 1 everywhere. A site with weight w gets ``w new + (1 - w) propagated``, where
            propagated is the output of the layer below at the prompt positions.
        soft: whether the weights come from gates that are being learned. Nothing is propagated to the first open site:
            soft weights mix its virtual tokens with the mean of the input's tokens, which says nothing new; hard ones
            leave them as they are.
        input_delta: [S_max, H] or None. Its t-th vector is added to the embedding of the token at place t; the first
            real token of an input stands at place 0.
    """

    prefix: Float[Tensor, "depth prompt hidden"]
    open: tuple[int, ...]
    weights: Float[Tensor, " depth"] | None = None
    input_delta: Float[Tensor, "positions hidden"] | None = None
    soft: bool = False


class Prompt(nn.Module, ABC):
    """A learned prompt: it makes `PromptParts` from its parameters.

    Parameters are flat attributes of the module (no sub-modules), so that saved keys stay one word long. A new module
    holds zeros and draws nothing, so loading one costs no random numbers; `start_from` gives it its first values.
    ``depends_on_input`` tells code that caches or serves a prompt whether its virtual tokens differ from input to
    input.

    A prompt may carry gates over its sites, to learn where it is worth entering (SPT, arXiv 2310.20127)::

        a_i = sigmoid(alpha_i),  g_i = a_i / sg(a_i) * sg(v_i),  w_i = tau g_i

    with v_i = a_i (the soft gate of DARTS) or v_i = 1 (decoupled: the pass runs with open gates, the gradient is the
    gate's), sg the stop-gradient, alpha_i = 0 at the start. Without gates, or inside `subnetwork`, g_i is 1 at open
    sites. Differs from the paper: it describes the decoupling in words; the formula is chosen.
    """

    form: ClassVar[str]  # what a config calls this form of prompt
    fields: ClassVar[Mapping[str, str]] = {}  # config field -> keyword of the constructor, beside depth, P and H
    starts_at_vectors: ClassVar[bool] = True  # whether `start_from` reaches the vectors it is given
    depends_on_input: bool = False
    reads_unprompted: bool = False  # whether `rows` takes the state of the unprompted pass [B, 1, H] for tokens
    awaits_values: bool = False  # see `await_values`
    rate_factors: Mapping[str, float] = {}  # default learning rate of a parameter group, as a share of the prompt's own

    def __init__(self, depth: int):
        super().__init__()
        self.layers = tuple(range(depth))  # which layer each of the D sites stands at
        self.tau, self.decoupled = 1.0, True
        self.marker: int | None = None  # the token id that the prompt stands in front of; None: the first real token
        self.gate_logits: nn.Parameter | None = None
        self._open: tuple[int, ...] | None = None

    @classmethod
    def check(cls, **options: Any) -> None:
        """Refuse options that no prompt of this form can have, before one is made."""

    # ------------------------------------------------------------------ what each kind of prompt defines

    @property
    @abstractmethod
    def num_virtual_tokens(self) -> int:
        """P, the number of virtual tokens."""

    @abstractmethod
    def prefix(self) -> Float[Tensor, "depth prompt hidden"]:
        """Make the virtual tokens of all sites from the parameters; differentiable, nothing is cached."""

    def input_delta(self) -> Float[Tensor, "positions hidden"] | None:
        """Make the delta of the input embeddings [S_max, H], for a prompt that has one; differentiable, nothing is cached."""
        return None

    @abstractmethod
    def start_from(
        self, vectors: Float[Tensor, "depth prompt hidden"], generator: torch.Generator | None = None
    ) -> None:
        """Set the parameters so that the virtual tokens equal ``vectors`` [D, P, H]; draw those that are random."""

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the groups of `parameter_groups` without the gates."""

    def mechanism(self) -> dict[str, Any]:
        """Return, by name, figures that tell whether the parts of the prompt act, as plain values for JSON."""
        return {}

    def keys_and_values(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values [L, heads, P, d], for a prompt that holds what a backbone's layers make of it."""
        return None

    def read(
        self, prefix: Float[Tensor, "prompt hidden"], site: int, tokens: Tensor, real: Tensor | None
    ) -> Float[Tensor, "batch prompt hidden"]:
        """Make the virtual tokens of one site from the tokens [B, S, H] that stand there.

        Only prompts that depend on the input define it.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ what the code that places it calls

    def forward(self) -> PromptParts:
        """Make what does not depend on the input.

        Raises:
            SoftPromptError: no file has brought the values that `await_values` waits for.
        """
        if self.awaits_values:
            self._check_arrival()
        return PromptParts(self.prefix(), self.open_sites(), self._weights(), self.input_delta(), self.is_soft())

    def virtual(
        self,
        parts: PromptParts,
        site: int,
        tokens: Float[Tensor, "batch seq hidden"],
        real: Bool[Tensor, "batch seq"] | None,
    ) -> Float[Tensor, "inputs prompt hidden"]:
        """Return the virtual tokens of a site, [1, P, H], or [B, P, H] where they depend on the input.

        ``real`` marks the tokens that may be read; None allows all.
        """
        if self.depends_on_input:
            return self.read(parts.prefix[site], site, tokens, real)
        return parts.prefix[site : site + 1]

    def is_late(self) -> bool:
        """Whether layer 0 comes before the first open site, so that tokens there must not see the prompt."""
        sites = self.open_sites()
        return bool(sites) and self.layers[sites[0]] > 0

    def is_soft(self) -> bool:
        """Whether gates that are being learned mix the prompt with what stands at its positions."""
        return self.gate_logits is not None and self._open is None

    def mixes(self) -> bool:
        """Whether what enters above the first site is mixed with what stood at the prompt's positions."""
        return self._weights() is not None

    def open_sites(self) -> tuple[int, ...]:
        """Indices of the sites at which something enters in a pass, in order."""
        return tuple(range(len(self.layers))) if self._open is None else self._open

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return, by name, the groups of parameters that may have their own learning rate; together they are all."""
        return self.groups() | ({} if self.gate_logits is None else {"gates": [self.gate_logits]})

    # ------------------------------------------------------------------ values from a file

    @torch.no_grad()
    def await_values(self) -> None:
        """Fill all parameters with NaN until a file's values are loaded; a pass that lacks one of them is refused."""
        for parameter in self.parameters():
            parameter.fill_(float("nan"))
        self.awaits_values = True

    def _check_arrival(self) -> None:
        missing = [name for name, value in self.named_parameters() if value.isnan().any()]
        if missing:
            raise SoftPromptError(
                f"missing tensors: {', '.join(missing)}; this prompt's config comes from a saved adapter, "
                "and no weights were loaded for them. Load the adapter's weights, "
                "or set initialized=False in the config to train from a new start."
            )
        self.awaits_values = False

    # ------------------------------------------------------------------ gates

    def add_gates(self, decoupled: bool = True) -> None:
        """Put a learned gate on every site, with alpha = 0, so a = 1/2."""
        self.gate_logits, self.decoupled = nn.Parameter(torch.zeros(len(self.layers))), decoupled

    def layer_gates(self) -> Float[Tensor, " depth"] | None:
        """Return the gates a = sigmoid(alpha) [D]; None where there are none."""
        return None if self.gate_logits is None else torch.sigmoid(self.gate_logits)

    @contextmanager
    def subnetwork(self, open_sites: Sequence[int]) -> Iterator[None]:
        """Open exactly these sites, with hard gates, inside the context: the sparse prompt that keeps only them."""
        before, self._open = self._open, tuple(sorted(open_sites))
        try:
            yield
        finally:
            self._open = before

    @torch.no_grad()
    def draw_subnetwork(self, generator: torch.Generator | None = None) -> tuple[int, ...]:
        """Draw sites from Bernoulli(a_i); when none is drawn, draw one site in proportion to a."""
        gates = self.layer_gates()
        assert gates is not None
        probabilities = gates.float().cpu()
        drawn = torch.bernoulli(probabilities, generator=generator).nonzero().flatten()
        if not len(drawn):
            drawn = torch.multinomial(probabilities, 1, generator=generator)
        return tuple(drawn.tolist())

    def _weights(self) -> Float[Tensor, " depth"] | None:
        gates = self.layer_gates()
        if gates is None or self._open is not None:
            if self.tau == 1:
                return None
            return torch.full((len(self.layers),), self.tau, device=next(self.parameters()).device)
        if not self.decoupled:
            return self.tau * gates
        assert self.gate_logits is not None
        # a / sg(a), which is 1 with the gradient 1 - a, by logarithms: a gate that ran far down is 0 in float32
        logs = F.logsigmoid(self.gate_logits)
        return self.tau * (logs - logs.detach()).exp()
