"""Each input of a batch with a prompt of its own, or with none.

Shapes: B inputs of S tokens; input r has P_r virtual tokens at the end of P = max P_r positions, behind P - P_r of filler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._types import SoftPromptError
from ...prompts import Prompt
from .entrant import Entrant, Reading
from .layout import Layout

BASE = "__base__"  # PEFT's name of no adapter


def checked(names: Any) -> list[str]:
    """The names that a call gives for its inputs.

    Raises:
        SoftPromptError: what is given is no list of names.
    """
    given = names.tolist() if isinstance(names, np.ndarray) else names
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise SoftPromptError(f"adapter_names: expected a list of names, one for each input, got {names!r}.")
    return list(given)


def spread(names: Sequence[str], rows: int, generating: bool = False) -> list[str]:
    """The names of ``rows`` inputs: inside ``generate`` each is repeated for its beams and returned sequences, side by side.

    Raises:
        SoftPromptError: another number of names than of inputs.
    """
    times = rows // len(names) if generating and names else 1
    if len(names) * times != rows:
        raise SoftPromptError(
            f"adapter_names: expected one name for each of {rows} inputs, got {len(names)}; give {BASE!r} for an input without prompt."
        )
    return [name for name in names for _ in range(times)]


@dataclass(frozen=True)
class Group:
    """Inputs with one prompt: which they are, [n]."""

    entrant: Entrant
    rows: Tensor


class Mixture:
    """The prompts of one pass in which inputs have different ones. It is asked what an `Entrant` is asked.

    Each group of inputs gets what its own `Entrant` makes of these inputs alone.

    Attributes:
        rows: B.
        length: P.
        filler: [B, P], True where an input has no virtual token; None where all have P.
        late: whether layer 0 must not see an input's prompt; [B, 1] where they differ.
    """

    def __init__(self, groups: Sequence[Group], rows: int, device: torch.device):
        length, first = (torch.zeros(rows, 1, dtype=torch.long, device=device) for _ in range(2))
        for group in groups:
            length[group.rows], first[group.rows] = group.entrant.length, group.entrant.first
        self.groups, self.rows = list(groups), rows
        self.length = max((group.entrant.length for group in groups), default=0)
        empty = torch.arange(self.length, device=device) < self.length - length
        self.filler = empty if bool(empty.any()) else None
        late = first[length > 0] > 0  # inputs without virtual tokens go with either
        self.late: bool | Tensor = bool(late.all()) if len(late.unique()) < 2 else first > 0
        self._first = first

    @classmethod
    def of(cls, prompts: Sequence[Prompt | None], device: torch.device) -> Entrant | Mixture:
        """What enters inputs with these prompts; an `Entrant` where all have the same.

        Inputs without any are a mixture, too: as beside others, their padding is no position.
        """
        distinct = {id(prompt): prompt for prompt in prompts}
        if len(distinct) == 1 and (one := Entrant.of(prompts[0])) is not None:
            return one
        groups = []
        for key, prompt in distinct.items():
            if (entrant := Entrant.of(prompt)) is not None:
                rows = [row for row, own in enumerate(prompts) if id(own) == key]
                groups.append(Group(entrant, torch.tensor(rows, device=device)))
        return cls(groups, len(prompts), device)

    @classmethod
    def distinct(cls, groups: Sequence[Group]) -> Mixture:
        """The prompts of these groups in their order, one input for each."""
        device = groups[0].rows.device
        alone = [Group(group.entrant, torch.tensor([row], device=device)) for row, group in enumerate(groups)]
        return cls(alone, len(alone), device)

    def make(self) -> None:
        """Make all parts of each prompt."""
        for group in self.groups:
            group.entrant.make()

    @property
    def reads(self) -> bool:
        return any(group.entrant.reads for group in self.groups)

    @property
    def generated(self) -> bool:
        return any(group.entrant.generated for group in self.groups)

    @property
    def reads_unprompted(self) -> bool:
        return any(group.entrant.reads_unprompted for group in self.groups)

    @property
    def marked(self) -> bool:
        return any(group.entrant.marked for group in self.groups)

    def start(self, ids: Tensor | None, mask: Tensor) -> Tensor:
        """How many tokens [B, 1] stand in front of each input's prompt."""
        ahead = mask.new_zeros(len(mask), 1, dtype=torch.long)
        for group in self.groups:
            own = group.entrant.start(None if ids is None else ids[group.rows], mask[group.rows])
            ahead = ahead.index_copy(0, group.rows, own)
        return ahead

    def enters(self, layer: int) -> bool:
        return any(group.entrant.enters(layer) for group in self.groups)

    def keeps(self, layer: int) -> bool:
        return True  # inputs whose prompt does not enter here, and filler

    def hidden_at(self, layer: int, columns: Tensor) -> Tensor | None:
        """The columns [B, T] of those inputs whose prompt has not entered yet."""
        not_yet = layer < self._first
        return columns & not_yet if bool(not_yet.any()) else None

    def changed(self, tokens: Tensor, mask: Tensor | None, layout: Layout, seen: int) -> Tensor:
        """The embeddings [B, S, H] of the tokens, each with the input delta of its own prompt."""
        for group in self.groups:
            rows = group.rows
            own = Layout(self.length, None if layout.first is None else layout.first[rows])
            part = group.entrant.changed(tokens[rows], None if mask is None else mask[rows], own, seen)
            tokens = tokens.index_copy(0, rows, part)
        return tokens

    def virtual(self, layer: int, tokens: Tensor, reading: Reading, propagated: Tensor | None = None) -> Tensor:
        """What stands at the prompt positions from ``layer`` on, [B, P, H]: what enters, and elsewhere what stood there."""
        batch, width = len(tokens), tokens.shape[-1]
        placed = tokens.new_zeros(batch, self.length, width) if propagated is None else propagated
        for group in self.groups:
            if not group.entrant.enters(layer):
                continue
            rows, length = group.rows, group.entrant.length
            before, stood = placed[rows].split([self.length - length, length], 1)
            new = group.entrant.virtual(
                layer, tokens[rows], _reading(group, reading), None if propagated is None else stood
            ).to(placed)
            placed = placed.index_copy(0, rows, torch.cat([before, new.expand(len(rows), -1, -1)], 1))
        return placed


def _reading(group: Group, reading: Reading) -> Reading:
    """What the prompt of a group may read of its own inputs."""
    real, state = (None if part is None else part[group.rows] for part in (reading.real, reading.state))
    return Reading(real, state if group.entrant.reads_unprompted else None)


Entering = Entrant | Mixture
