"""Leave out the layers below the prompt's first one, where the states that enter it are given.

There a prompt is hidden from the tokens and the backbone is frozen, so what its tokens compute never changes in training. What
stands at the prompt positions is not read. For such a pass the lower layers get a stand-in for their ``forward``, which hands
on the states that came; masks and positions are still made by the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..._types import SoftPromptError
from ...prompts import Prompt
from ..backbone import Backbone, frozen
from ..calls.request import Request, asked_for


@dataclass(frozen=True)
class Part:
    """Where a part of a layer's output, other than its states, comes from.

    Attributes:
        argument: index or name of the layer's argument that it is.
        made: whether the layer makes it, the same for every input (T5's bias of positions). Neither: None takes its place.
    """

    argument: int | str | None = None
    made: bool = False


Form = tuple[Part, ...] | None  # of a layer's output: None for the states alone, else what follows them in a tuple


class _StandIn:
    """Takes the place of a layer's ``forward``: returns the states that came, in the layer's own form.

    What the layer makes for all inputs alike is made of the first one alone.
    """

    def __init__(self, layer: nn.Module, form: Form, backbone: Backbone):
        self.forward, self.form, self.backbone = layer.forward, form, backbone

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.form is None:
            return hidden
        given = _named((hidden, *args), kwargs)
        made: Sequence[Any] = ()
        if any(part.made for part in self.form):
            one = {key: _first(value, len(hidden)) for key, value in given.items()}
            with frozen(self.backbone):
                made = self.forward(
                    *(value for key, value in one.items() if isinstance(key, int)),
                    **{key: value for key, value in one.items() if isinstance(key, str)},
                )
        return (
            hidden,
            *(
                made[i].detach() if part.made else None if part.argument is None else given[part.argument]
                for i, part in enumerate(self.form, 1)
            ),
        )


def _named(args: tuple, kwargs: dict[str, Any]) -> dict[int | str, Any]:
    """Arguments by their index or name."""
    named: dict[int | str, Any] = dict(enumerate(args))
    named.update(kwargs.items())
    return named


def _first(value: Any, batch: int) -> Any:
    return value[:1] if isinstance(value, Tensor) and value.dim() > 1 and len(value) == batch else value


class LeftOut:
    """These layers do not run, until `restore`."""

    def __init__(self, backbone: Backbone, forms: Sequence[Form]):
        layers = list(backbone.layers)[: len(forms)]
        self._before = [(layer, vars(layer).get("forward")) for layer in layers]  # accelerate puts one of its own there
        for layer, form in zip(layers, forms, strict=True):
            vars(layer)["forward"] = _StandIn(layer, form, backbone)

    def restore(self) -> None:
        for layer, before in self._before:
            if before is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = before
        self._before = []


def learn_forms(backbone: Backbone, first: int) -> list[Form]:
    """What the layers below ``first`` return, learned and tried out in two small passes of the bare stack.

    The caller keeps prompts out of them.

    Raises:
        SoftPromptError: the layers above read more of those below than the states; then these cannot be left out.
    """
    embed = backbone.embed
    # two texts of different lengths, so that a mask, and what is the same for both, can be told from what is not
    ids = torch.arange(8, device=embed.weight.device).view(2, 4) % backbone.vocab_size
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    call: dict[str, Any] = {"attention_mask": mask}
    if "use_cache" in backbone.argument_names:
        call["use_cache"] = False
    seen: list[Form] = []
    entering: list[Tensor] = []

    def note(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        seen.append(_form(args, kwargs, output))

    def put(layer: nn.Module, args: tuple) -> tuple:
        # The first pass runs all layers and notes what enters ``first``. The second leaves the lower ones out and gets the
        # same states there. If its result is the same, layers from ``first`` on read nothing else of those below. One pass
        # could learn the forms, but not that: a family may hand a value on (a bias, a residual) that no stand-in knows.
        if not entering:
            entering.append(args[0])
        return (entering[0], *args[1:])

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in list(backbone.layers)[:first]]
    hooks += [backbone.layers[first].register_forward_pre_hook(put)]
    left_out, cause = None, None
    try:
        with frozen(backbone):
            call["inputs_embeds"] = embed(ids)
            expected = backbone.stack(**call).last_hidden_state.float()
            forms = list(seen)
            left_out = LeftOut(backbone, forms)
            without = backbone.stack(**call).last_hidden_state.float()
    except Exception as error:  # of an unknown family: whatever it misses
        cause = error
    finally:
        for hook in hooks:
            hook.remove()
        if left_out is not None:
            left_out.restore()
    real = mask != 0
    if cause is None and torch.allclose(without[real], expected[real], rtol=1e-3, atol=1e-3, equal_nan=True):
        return forms
    raise SoftPromptError(
        f"the layers of {backbone.model_type} from {first} on read more of those below than their states, so these cannot be left out; leave 'below' out of the call (cache_below='none')."
    ) from cause


def _form(args: tuple, kwargs: dict[str, Any], output: Any) -> Form:
    states = output if isinstance(output, Tensor) else output[0]
    if states.shape != args[0].shape:
        raise ValueError(f"states of shape {tuple(args[0].shape)} became {tuple(states.shape)}")
    if isinstance(output, Tensor):
        return None
    return tuple(_part(value, _named(args, kwargs), len(states)) for value in output[1:])


def _part(value: Any, given: dict[int | str, Any], batch: int) -> Part:
    for key, argument in given.items():
        if value is argument and value is not None:
            return Part(argument=key)
    if isinstance(value, Tensor) and value.dim() > 1 and len(value) == 1 != batch:
        return Part(made=True)
    return Part()  # attention weights, which nobody reads: the pass that tries the forms out would fail else


def check_given(backbone: Backbone, below: Tensor, first: int, asked: Request) -> None:
    """Check the states [B, S, H] that a call gives for its tokens at layer ``first``.

    Raises:
        SoftPromptError: another shape, or a call that asks for what the lower layers would have returned.
    """
    expected = (*asked.tokens.shape[:2], backbone.width)
    if below.shape != expected:
        raise SoftPromptError(
            f"below: expected the states [B, S, H] of the tokens at layer {first}, {list(expected)}, got {list(below.shape)}; make them of the same rows, padded alike."
        )
    call = asked.given
    wanted = [n for n in ("output_hidden_states", "output_attentions") if asked_for(call, backbone, n)]
    wanted += ["use_cache"] if call.get("use_cache") else []
    if asked.cache is not None:  # an empty cache is false
        wanted += backbone.caching(asked.cache)
    if wanted:
        raise SoftPromptError(
            f"below leaves layers out, so there is nothing of theirs to return: expected a call without {', '.join(wanted)}; leave 'below' out of it, or these."
        )


def first_layer(backbone: Backbone, prompt: Prompt | None) -> int:
    """The prompt's first layer, where the layers below it can be left out.

    Raises:
        SoftPromptError: a prompt that enters at layer 0, or changes the embeddings; lower layers that are trained.
    """
    first = prompt.layers[0] if prompt is not None and prompt.layers else 0
    if prompt is None or first == 0:
        raise SoftPromptError(
            "below: expected a prompt whose first layer is above 0, got one that enters at layer 0 or nowhere, so no states below it stay the same; leave it out."
        )
    if prompt.input_delta() is not None:
        raise SoftPromptError(
            "below: expected a prompt that leaves the embeddings alone, got one with max_positions, whose input delta changes all layers; leave it out."
        )
    lower = [backbone.embed, *list(backbone.layers)[:first]]
    if any(p.requires_grad for module in lower for p in module.parameters()):
        raise SoftPromptError(
            f"below: expected frozen embeddings and layers below layer {first}, got trained ones, whose states change; leave it out."
        )
    return first
