"""The head of each input, where inputs have adapters of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional

from .._types import SoftPromptError
from .placing.mixture import BASE


class NarrowHead(nn.Linear):
    """A linear head of few classes beside heads of more: what it says of classes that it has not is minus infinity.

    Softmax and cross entropy of the filled row are those of the row of its own classes, and so are the gradients.

    Args:
        like: the head, whose weights are copied.
        width: scores of a row, with the filling.

    Shapes: [B, H] to [B, width]; weight [C, H] with C <= width.
    """

    def __init__(self, like: nn.Linear, width: int):
        weight = like.weight
        super().__init__(like.in_features, like.out_features, like.bias is not None, weight.device, weight.dtype)
        self.width = width
        self.load_state_dict(like.state_dict())

    def forward(self, states: Tensor) -> Tensor:
        return functional.pad(super().forward(states), (0, self.width - self.out_features), value=-math.inf)


class _ByRow:
    """What stands in for the ``forward`` of a head that adapters have copies of: each input goes through the copy of its own.

    Args:
        names: the adapter of each input. A head may read fewer rows than there are inputs (two texts make one row), or more (beams).
    """

    def __init__(self, wrapper: ModulesToSaveWrapper, names: Sequence[str]):
        self.wrapper, self.names = wrapper, names

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        rows = next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        names = self._names_of(rows)
        made, places = [], []
        for name in dict.fromkeys(names):
            at = [row for row, other in enumerate(names) if other == name]
            head = self.wrapper.original_module if name == BASE else self.wrapper.modules_to_save[name]
            index = torch.tensor(at, device=next(head.parameters()).device)
            made.append(
                head(*(_part(v, index, rows) for v in args), **{k: _part(v, index, rows) for k, v in kwargs.items()})
            )
            places += at
        if len({part.shape[1:] for part in made}) > 1:
            sizes = ", ".join(
                f"{name}: {part.shape[-1]}" for name, part in zip(dict.fromkeys(names), made, strict=True)
            )
            raise SoftPromptError(
                f"adapter_names: the heads of one batch need outputs of one size, got {sizes}; run the rows of each size by themselves."
            )
        return torch.cat(made)[torch.tensor(places, device=made[0].device).argsort()]

    def _names_of(self, rows: int) -> list[str]:
        count = len(self.names)
        if rows >= count:
            return [name for name in self.names for _ in range(rows // count)]
        return list(self.names[:: count // rows])


def _part(value: Any, index: Tensor, rows: int) -> Any:
    return value[index] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value


@contextmanager
def by_row(model: nn.Module, stack: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside, each input of ``model`` goes through the head of the adapter that ``names`` has for it.

    Raises:
        SoftPromptError: an adapter has no copy of a head that others have, or has parts of the stack of its own.
    """
    wrappers = copies(model)
    if inside := copies(stack):
        raise SoftPromptError(
            f"adapter_names: adapters have parts of the backbone of their own ({type(inside[0].original_module).__name__} in modules_to_save), which the rows of one batch share; run each adapter's rows by themselves."
        )
    for wrapper in wrappers:
        if missing := sorted({*names} - {*wrapper.modules_to_save, BASE}):
            others = ", ".join(sorted(wrapper.modules_to_save))
            raise SoftPromptError(
                f"adapter_names: {', '.join(missing)} has no head of its own, {others} has; run rows with and without one by themselves."
            )
    before = [vars(wrapper).get("forward") for wrapper in wrappers]  # what somebody else put there
    for wrapper in wrappers:
        wrapper.forward = _ByRow(wrapper, names)
    try:
        yield
    finally:
        for wrapper, forward in zip(wrappers, before, strict=True):
            del wrapper.forward
            if forward is not None:
                wrapper.forward = forward


def copies(module: nn.Module) -> list[ModulesToSaveWrapper]:
    """The parts of a module that adapters have copies of; PEFT leaves a wrapper behind when the last of them is deleted."""
    return [part for part in module.modules() if isinstance(part, ModulesToSaveWrapper) and len(part.modules_to_save)]
