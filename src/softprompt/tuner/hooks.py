"""The hooks on a model: around the whole of it, around its stack, before each layer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from .backbone import Backbone
from .passes.kinds import BARE, Pass


class Hook:
    """A method of ``owner`` as a hook on a part of a model.

    Copied alone, as PEFT copies what ``modules_to_save`` names, it stays with its owner; copied with the whole model, it
    goes with the owner's copy. A bound method would drag a second owner and backbone along.
    """

    def __init__(self, owner: Any, method: str, *first: Any, whole: bool = False):
        self.owner, self.method, self.first, self.whole = owner, method, first, whole

    def __call__(self, *args: Any) -> Any:
        return getattr(self.owner, self.method)(*self.first, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        # a hook on the whole model is only copied with it, and before its owner
        owner = copy.deepcopy(self.owner, memo) if self.whole else memo.get(id(self.owner), self.owner)
        return Hook(owner, self.method, *self.first, whole=self.whole)


class StackHooks:
    """What hangs on the stack. It decides nothing but which pass is asked: the one that `enter` has chosen, or one of our own.

    Args:
        choose: makes the pass of a call of the stack, from its arguments.

    Attributes:
        now: the pass that runs; `BARE` between calls.
        inner: a pass of our own inside a call (the bare backbone, the prompt alone); None where there is none.
    """

    def __init__(self, choose: Callable[[tuple, dict[str, Any]], Pass]):
        self._choose = choose
        self.now: Pass = BARE
        self.inner: Pass | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> StackHooks:
        memo[id(self)] = own = StackHooks(copy.deepcopy(self._choose, memo))  # a copy of a model runs no pass
        return own

    @contextmanager
    def inside(self, inner: Pass) -> Iterator[None]:
        """Inside, the stack is called by ourselves, for this pass; the pass outside stays as it is."""
        before, self.inner = self.inner, inner
        try:
            yield
        finally:
            self.inner = before

    def end(self) -> Pass:
        """Leave the pass, and hand it over."""
        now, self.now = self.now, BARE
        return now

    def enter(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before the stack: choose the pass, and call the stack as it says."""
        if self.inner is not None:  # its call is ready
            return None
        self.end().close()  # of a call that was interrupted: Ctrl-C calls no hook
        self.now = self._choose(args, kwargs)
        return None if self.now.call is None else ((), self.now.call)

    def layer(
        self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Before a layer: a deep prompt replaces what stands at the prompt positions; layers below it must not see them."""
        return (self.inner or self.now).layer(index, args, kwargs)

    def pool(self, pooler: nn.Module, args: tuple) -> tuple:
        """Before a pooler inside the stack: it reads the input's own positions."""
        return ((self.inner or self.now).pool(args[0]), *args[1:])

    def leave(self, stack: nn.Module, args: tuple, output: Any) -> Any:
        """After the stack: heads, labels, pooling and logits see the input's own length."""
        ended = self.end() if self.inner is None else self.inner
        if output is None:  # the stack raised
            return ended.close()
        return ended.leave(output)


def attach(owner: nn.Module, inside: StackHooks, model: nn.Module, backbone: Backbone) -> list[RemovableHandle]:
    """Hang ``begin``, ``finish`` and ``cross`` of ``owner`` and the methods of ``inside`` on a model.

    ``leave`` and ``finish`` are called where something raised, too, with None for the output.
    """
    stack, names = backbone.stack, tuple(inspect.signature(model.forward).parameters)
    hooks = [
        # Where the model is the stack (AutoModel), all four hang on one module, and torch calls hooks in the order in which
        # they were hung. So begin comes before enter, and leave before finish, as where the stack is inside the model.
        model.register_forward_pre_hook(Hook(owner, "begin", names, whole=True), with_kwargs=True),
        stack.register_forward_pre_hook(Hook(inside, "enter", whole=True), with_kwargs=True),
        stack.register_forward_hook(Hook(inside, "leave", whole=True), always_call=True),
        model.register_forward_hook(Hook(owner, "finish", names, whole=True), with_kwargs=True, always_call=True),
    ]
    for index, layer in enumerate(backbone.layers):
        hooks += [layer.register_forward_pre_hook(Hook(inside, "layer", index), with_kwargs=True)]
    if backbone.decoder is not None:
        hooks += [backbone.decoder.register_forward_pre_hook(Hook(owner, "cross"), with_kwargs=True)]
    if isinstance(getattr(stack, "pooler", None), nn.Module):  # inside the stack, so before `leave`
        hooks += [stack.pooler.register_forward_pre_hook(Hook(inside, "pool"))]
    return hooks
