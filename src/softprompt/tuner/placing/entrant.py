"""What enters in one pass: a prompt, its parts made once, and what it may read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..._types import IGNORED, SoftPromptError
from ...prompts import CompiledPrompt, Prompt, PromptParts
from ..backbone import Backbone
from ..pooling import pool
from .layout import Layout
from .marker import tokens_ahead
from .positions import add_delta


@dataclass(frozen=True)
class Reading:
    """What a prompt may read: the tokens marked ``real`` [B, S] that stand at its layers (None: all), or a ``state`` [B, 1, H]
    in their place."""

    real: Tensor | None = None
    state: Tensor | None = None


class Entrant:
    """The prompt of one pass, the same for all its inputs; `mixture.Mixture` is asked the same where each input has its own.

    A step of decoding asks for `changed` alone. Other passes `make` all parts first, once.
    """

    filler: Tensor | None = None  # [B, P], see `Mixture`
    rows = 1  # inputs that its own pass has

    def __init__(self, prompt: Prompt):
        self.prompt = prompt
        self._parts: PromptParts | None = None
        open_sites = prompt.open_sites()
        self.length = prompt.num_virtual_tokens if open_sites else 0
        # the first layer at which something enters in this pass; tokens below it must not see the prompt. A sub-network may
        # enter first above the prompt's own first layer, which is prompt.layers[0].
        self.first = prompt.layers[open_sites[0]] if open_sites else 0

    @classmethod
    def of(cls, prompt: Prompt | None) -> Entrant | None:
        """The entrant of a prompt; None where nothing enters and no embedding changes."""
        if prompt is None or not (prompt.open_sites() or prompt.input_delta() is not None):
            return None
        return cls(prompt)

    def make(self) -> None:
        """Make all parts of the prompt, the delta among them; of a compiled one all is made."""
        if not self.compiled:
            self._parts = self.prompt()

    @property
    def compiled(self) -> bool:
        """Whether the prompt is keys and values, which no pass can place otherwise."""
        return isinstance(self.prompt, CompiledPrompt)

    @property
    def parts(self) -> PromptParts:
        assert self._parts is not None  # a step of decoding, which makes none, lets nothing in
        return self._parts

    @property
    def late(self) -> bool | Tensor:
        """Whether layer 0 must not see the prompt; [B, 1] where inputs differ."""
        return self.first > 0

    @property
    def marked(self) -> bool:
        """Whether the prompt stands at a marker inside the text."""
        return self.prompt.marker is not None

    def start(self, ids: Tensor | None, mask: Tensor) -> Tensor:
        """How many tokens [B, 1] of inputs with this mask stand in front of the prompt."""
        return tokens_ahead(self.prompt.marker, ids, mask)

    def hidden_at(self, layer: int, columns: Tensor) -> Tensor | None:
        """The ``columns`` [B, T] of prompt positions that tokens must not see at ``layer``; None for no input."""
        return columns if layer < self.first else None

    def changed(self, tokens: Tensor, mask: Tensor | None, layout: Layout, seen: int) -> Tensor:
        """The embeddings [B, S, H] of the tokens with the prompt's input delta."""
        delta = self.prompt.input_delta() if self._parts is None else self._parts.input_delta
        return add_delta(tokens, delta, mask, layout, seen)

    @property
    def reads(self) -> bool:
        """Whether it matters which tokens are text: the prompt is made from them, or gates mix it with their mean."""
        return self.prompt.depends_on_input or self.prompt.is_soft()

    @property
    def generated(self) -> bool:
        """Whether the virtual tokens are made from the input."""
        return self.prompt.depends_on_input

    @property
    def reads_unprompted(self) -> bool:
        """Whether they are made from the state of the unprompted pass."""
        return self.prompt.reads_unprompted

    def enters(self, layer: int) -> bool:
        """Whether something enters at ``layer``."""
        return self._site(layer) is not None

    def keeps(self, layer: int) -> bool:
        """Whether some of what stands at the prompt's positions stays when something enters at ``layer``."""
        return self.parts.weights is not None

    def _site(self, layer: int) -> int | None:
        if layer not in self.prompt.layers:
            return None
        site = self.prompt.layers.index(layer)
        return site if site in self.parts.open else None

    def virtual(self, layer: int, tokens: Tensor, reading: Reading, propagated: Tensor | None = None) -> Tensor:
        """What stands at the prompt positions from ``layer`` on, [1 or B, P, H].

        Args:
            tokens: [B, S, H], what stands at the tokens.
            reading: what may be read.
            propagated: [B, P, H], what the layer below put out at the prompt positions; where the prompt `keeps` some of it.
        """
        site, weights = self._site(layer), self.parts.weights
        assert site is not None  # nobody asks where nothing enters
        source, where = (tokens, reading.real) if reading.state is None else (reading.state, None)
        new = self.prompt.virtual(self.parts, site, source, where)
        if weights is None:
            return new
        if propagated is None or site == self.parts.open[0]:
            if not self.parts.soft:
                return new
            propagated = pool(tokens, reading.real, "mean").unsqueeze(1)
        return weights[site] * new + (1 - weights[site]) * propagated


def readable(
    backbone: Backbone, real: Tensor, labels: Tensor | None, source: int | None, strict: bool, training: bool
) -> Tensor:
    """The tokens [B, S] that a generated prompt may read; never an answer.

    Args:
        real: [B, S], the tokens that are no padding.
        labels: [B, S] or None; the source of a causal language model ends at the first of them.
        source: inside ``generate``, the number of tokens that it was given; else None.
        strict: whether a prompt is made of them. What only looks on may look at all of a text that has no source.
        training: whether the model trains: then nobody guesses what the source is.

    Raises:
        SoftPromptError: strict, in training, and no labels.
    """
    if not backbone.generates:
        return real
    if source is not None:
        return real & (torch.arange(real.shape[1], device=real.device) < source)
    if labels is not None:
        before = real & ((labels != IGNORED).cumsum(1) == 0)
        return before if strict else torch.where(before.any(1, keepdim=True), before, real)
    if training and strict:
        raise SoftPromptError(
            "a generated prompt reads the source of a causal language model and needs labels to know it: expected labels with -100 on the source, got none; pass labels to the model."
        )
    return real
