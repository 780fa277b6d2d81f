"""The kinds of a pass: what the hooks do at each part of the stack, from `enter` to `leave`.

- `Pass`: of the bare backbone; nothing is placed.
- `Held`: the prompt stands among the tokens. `HeldAbove`: so it does, and the layers below it do not run.
- `Decoding`: the KV cache holds the prompt.
- `Alone`: the prompt without tokens, where these cannot change it; it makes a `Prefix`.
- `Behind`: tokens that read a prefix. `DecodingBehind`: a step of decoding that goes on there, where padding follows the prompt.

Shapes: B inputs of S tokens, P virtual tokens, T = P + S positions (and those of the cache), H.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...prompts import CompiledPrompt, no_virtual_tokens
from ..backbone import Backbone
from ..calls.record import Record
from ..calls.request import PER_LAYER, Request, asked_for, check_late, virtual_per_layer
from ..placing.entrant import Entrant, Reading
from ..placing.hiding import hide
from ..placing.layout import Layout
from ..placing.marker import note_start, start_in
from ..placing.mixture import Entering, Group, Mixture
from ..placing.positions import must_tell, places, with_positions
from .prefix import Prefix, may_pad_between, new_cache, stored, without_cache
from .skipping import Form, LeftOut

Call = tuple[tuple, dict[str, Any]]


class Pass:
    """One call of the stack.

    Attributes:
        call: what the stack is called with; None leaves the call as it is.
    """

    call: dict[str, Any] | None = None

    def layer(self, index: int, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        """What layer ``index`` is called with, in place of this; hidden states come first in every family."""
        return None

    def pool(self, states: Tensor) -> Tensor:
        """What a pooler inside the stack reads of its states."""
        return states

    def leave(self, output: Any) -> Any:
        """What the stack puts out."""
        return output

    def close(self) -> None:
        """Leave nothing behind in the backbone, also where the stack raised."""


BARE = Pass()


class _Placing(Pass):
    """Prompt positions stand among the tokens, or in their cache. Layers before the prompt's first one do not see them."""

    def __init__(self, backbone: Backbone, entrant: Entering, asked: Request):
        self.backbone, self.entrant, self.asked = backbone, entrant, asked
        mask, late, length = asked.mask, entrant.late, entrant.length
        if late is not False:
            check_late(backbone)
        if late is not False or entrant.filler is not None or entrant.marked:
            whole = asked.tokens.new_ones(len(asked.tokens), asked.seen + asked.tokens.shape[1], dtype=torch.long)
            mask = whole if mask is None else mask.long()
        self.mask = mask
        behind = late if backbone.hidden_behind else False
        start = self.start(mask) if entrant.marked and mask is not None else None
        self.layout = Layout.of(length, mask, backbone.causal, behind, entrant.filler, start)
        self.columns = self.layout.columns(mask) if late is not False and mask is not None else None
        self.tokens = entrant.changed(asked.tokens, mask, self.layout, asked.seen)
        call = asked.rest(backbone)
        if mask is not None:
            call["attention_mask"] = self.layout.whole(mask)
        call = with_positions(backbone, asked, call, mask, self.layout, late)
        self.call: dict[str, Any] = {**call, "inputs_embeds": self.tokens}

    def start(self, mask: Tensor) -> Tensor:
        """How many tokens [B, 1] stand in front of the prompts, of which some stand at a marker."""
        return self.entrant.start(self.asked.given.get("input_ids"), mask)

    def layer(self, index: int, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        if self.columns is None or (hidden := self.entrant.hidden_at(index, self.columns)) is None:
            return None
        queries, cache = args[0].shape[1], self.asked.cache
        keys = (queries, 0) if cache is None else cache.get_mask_sizes(queries, index)
        return hide(args, kwargs, hidden, self.columns, keys, self.backbone)


class Decoding(_Placing):
    """A step of decoding: mask, positions and delta follow the prompt that the cache holds; nothing else of it is made."""

    def start(self, mask: Tensor) -> Tensor:
        return start_in(self.asked.cache, len(mask))


class Held(_Placing):
    """The prompt stands among the tokens from `enter` on; each site puts its virtual tokens where the last ones stand."""

    def __init__(self, backbone: Backbone, entrant: Entering, asked: Request, reading: Reading, record: Record | None):
        super().__init__(backbone, entrant, asked)
        self.reading, self.record = reading, record
        if record is not None:
            record.call, record.real = asked.given, reading.real
        length, tokens, call = entrant.length, self.tokens, self.call
        if (types := call.get("token_type_ids")) is not None:
            call["token_type_ids"] = self.layout.place(types.new_zeros(1, length), types.expand(len(tokens), -1))
        for name, zeros in virtual_per_layer(backbone, length).items():
            if call.get(name) is not None:
                call[name] = self.layout.place(zeros, call[name])
        virtual = tokens.new_zeros(1, length, tokens.shape[-1])  # nobody sees these before the first site replaces them
        if entrant.enters(0):
            virtual = entrant.virtual(0, tokens, reading)
            if record is not None:
                record.enter(0, virtual, tokens)
        call["inputs_embeds"] = self.layout.place(virtual, tokens)

    def layer(self, index: int, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        unseen = super().layer(index, args, kwargs)
        if unseen is not None:
            args, kwargs = unseen
        if index == 0 or not self.entrant.enters(index):  # layer 0 was entered in front of the embeddings
            return unseen
        tokens = self.layout.remove(args[0])
        propagated = self.layout.prompt(args[0]) if self.entrant.keeps(index) else None
        virtual = self.entrant.virtual(index, tokens, self.reading, propagated)
        if self.record is not None:
            self.record.enter(index, virtual, tokens)
        return (self.layout.place(virtual, tokens), *args[1:]), kwargs

    def pool(self, states: Tensor) -> Tensor:
        # a bidirectional input then starts with its first real token ([CLS]), also when the caller padded on the left
        return self.layout.tokens_first(states)

    def leave(self, output: Any) -> Any:
        if self.record is not None:
            self.record.leave(output, self.layout.remove)
        if self.layout.start is not None:
            note_start(output, self.layout.start)
        # an encoder keeps the prompt, because its decoder attends to it
        return output if self.backbone.decoder is not None else _without_prompt(self.layout, output)


class HeldAbove(Held):
    """The tokens' states at the prompt's first layer are given, so what is below it does not run.

    Two layers must be told apart. ``lowest`` is the prompt's own first layer, at which the states are given; ``entrant.first``
    is the first one at which something enters in this pass. A sub-network of a gated prompt (`Prompt.subnetwork`, as the ablation
    of a search runs it) may leave the lowest site closed. Then layers run from ``lowest`` on, and those below ``first`` must not see the prompt's positions.
    """

    def __init__(
        self,
        backbone: Backbone,
        entrant: Entrant,
        asked: Request,
        reading: Reading,
        record: Record | None,
        below: Tensor,
        forms: Sequence[Form],
    ):
        self.below, self.lowest = below, entrant.prompt.layers[0]
        super().__init__(backbone, entrant, asked, reading, record)
        if "use_cache" in backbone.argument_names:
            self.call["use_cache"] = False
        self.left_out = LeftOut(backbone, forms)  # last: whatever is refused above leaves every layer as it was

    def layer(self, index: int, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        if index < self.lowest:
            return None  # its stand-in needs nothing
        if index == self.lowest:
            args = (self.layout.place(self.layout.prompt(args[0]), self.below.to(args[0])), *args[1:])
        return super().layer(index, args, kwargs)

    def leave(self, output: Any) -> Any:
        self.close()
        return super().leave(output)

    def close(self) -> None:
        self.left_out.restore()


class Alone(Pass):
    """Prompts without tokens. Nothing that is read at their positions hangs on what stands behind them (see `prefix`).

    Args:
        entering: one prompt, or the different ones of a batch, an input for each.

    Attributes:
        prefix: what the pass makes; complete after it.
    """

    def __init__(self, backbone: Backbone, entering: Entering, asked: Request):
        self.entering, length = entering, entering.length
        rows = entering.rows
        tokens = asked.tokens[:1, :0].expand(rows, -1, -1)
        self._entered = {0: entering.virtual(0, tokens, Reading())}
        self.prefix = Prefix(new_cache(backbone), self._entered)
        self.call: dict[str, Any] = {
            "inputs_embeds": self._entered[0].to(tokens),
            "use_cache": True,
            **backbone.caching(self.prefix.cache),
        }
        if entering.filler is not None:
            mask = (~entering.filler).long()
            self.call |= {"attention_mask": mask, "position_ids": places(mask) + backbone.first_position}
        if (types := asked.given.get("token_type_ids")) is not None:
            self.call["token_type_ids"] = types.new_zeros(1, length).expand(rows, -1)
        self.call |= {
            name: value.expand(rows, *value.shape[1:]) for name, value in virtual_per_layer(backbone, length).items()
        }

    def layer(self, index: int, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        if index == 0 or not self.entering.enters(index):
            return None
        virtual = self.entering.virtual(index, args[0][:, :0], Reading(), args[0])
        self._entered[index] = virtual
        return (virtual.to(args[0]), *args[1:]), kwargs


class Behind(Pass):
    """Tokens that read a prefix.

    Padding on the left goes behind the tokens, so that it does not stand between prompt and text. Only where a cache is kept, which
    grows at the end, it stays, and the cache says so (`is_in_front`).
    """

    def __init__(
        self,
        backbone: Backbone,
        entering: Entering,
        asked: Request,
        prefix: Prefix,
        real: Tensor | None,
        record: Record | None,
    ):
        mask, length, batch = asked.mask, entering.length, len(asked.tokens)
        self.prefix, self.record = prefix, record
        layout = Layout.of(0, mask, causal=False)
        kept = backbone.causal and asked_for(asked.given, backbone, "use_cache")
        between = kept and layout.first is not None and not backbone.stack.training and may_pad_between(backbone)
        self.layout = layout = Layout(0, layout.first) if between else layout
        # a cache that nobody asked for is this pass's own means; one of inputs that were rearranged, or of an encoder, is of no use
        self.drops_cache = layout.order is not None or not kept
        tokens = entering.changed(asked.tokens, mask, layout, 0)
        if record is not None:
            record.call, record.real = asked.given, real
            record.enter(0, prefix.entered[0], tokens)
        call = asked.rest(backbone)
        for name in ("token_type_ids", "position_ids", PER_LAYER):
            if (value := call.get(name)) is not None:
                call[name] = layout.move(value.expand(batch, *value.shape[1:]))
        front = Layout(length, filler=entering.filler)  # of the cache: prompts, whatever follows
        if call.get("position_ids") is not None:
            call["position_ids"] = call["position_ids"] + length - front.empty
        elif (
            between
            or entering.filler is not None
            or not backbone.causal
            or must_tell(backbone, mask, Layout(0), cached=True)
        ):
            at = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
            at = places(mask) if between and mask is not None else at
            call["position_ids"] = at + length - front.empty + backbone.first_position
        if mask is None and entering.filler is not None:
            mask = torch.ones(batch, tokens.shape[1], dtype=torch.long, device=tokens.device)
        if mask is not None:
            call["attention_mask"] = front.whole(layout.move(mask))
        cache = prefix.for_inputs(batch, between, None if self.drops_cache else asked.cache)
        self.call = {**call, "inputs_embeds": layout.move(tokens), **backbone.caching(cache)}

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        entering: Entering,
        asked: Request,
        real: Tensor | None,
        record: Record | None,
        run: Callable[[Alone], None],
    ) -> Behind:
        """The pass behind what compiled prompts hold, and behind what one pass of the others alone makes, which ``run`` runs."""
        mixture = entering if isinstance(entering, Mixture) else None
        groups = [Group(entering, torch.zeros(1))] if isinstance(entering, Entrant) else entering.groups
        made = [group for group in groups if not group.entrant.compiled]
        if record is not None and len(made) < len(groups):
            raise no_virtual_tokens()
        alone = None
        if made:
            alone = Alone(backbone, entering if mixture is None else Mixture.distinct(made), asked)
            run(alone)
        places: list[tuple[Group, Prefix, int]] = []
        for group in groups:
            if isinstance(group.entrant.prompt, CompiledPrompt):
                places.append((group, stored(backbone, group.entrant.prompt), 0))
            elif alone is not None:
                places.append((group, alone.prefix, made.index(group)))
        prefix = places[0][1] if mixture is None else Prefix.of(backbone, mixture, places)
        return cls(backbone, entering, asked, prefix, real, record)

    def layer(self, index: int, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        if self.record is not None and index and index in self.prefix.entered:
            self.record.enter(index, self.prefix.entered[index], self.layout.remove(args[0]))
        return None

    def leave(self, output: Any) -> Any:
        if self.record is not None:
            self.record.leave(output, self.layout.remove)
        return _without_prompt(self.layout, without_cache(output) if self.drops_cache else output)


class DecodingBehind(Pass):
    """A step of decoding where the prompt stands at the first positions of the cache, in front of an input's padding."""

    def __init__(self, backbone: Backbone, entering: Entering, asked: Request):
        mask = asked.mask
        if mask is None:
            mask = torch.ones(
                *asked.tokens.shape[:1], asked.seen + asked.tokens.shape[1], device=asked.tokens.device
            ).long()
        count = asked.tokens.shape[1]
        front = Layout(entering.length, filler=entering.filler)
        at = asked.given.get("position_ids")
        at = places(mask)[:, -count:] + backbone.first_position if at is None else at
        self.call = {
            **asked.rest(backbone),
            "inputs_embeds": entering.changed(asked.tokens, mask, Layout.of(0, mask, causal=True), asked.seen),
            "attention_mask": front.whole(mask),
            "position_ids": at + entering.length - front.empty,
        }


def _without_prompt(layout: Layout, output: Any) -> Any:
    """The stack's output, tuple or not, at the tokens alone."""
    if isinstance(output, tuple):  # return_dict=False
        return (
            layout.remove(output[0]),
            *(tuple(map(layout.remove, part)) if _is_states(part, output[0]) else part for part in output[1:]),
        )
    output.last_hidden_state = layout.remove(output.last_hidden_state).contiguous()  # some heads take a view of it
    if output.get("hidden_states") is not None:
        output.hidden_states = tuple(map(layout.remove, output.hidden_states))
    return output


def _is_states(part: Any, last: Tensor) -> bool:
    return (
        isinstance(part, tuple)
        and bool(part)
        and all(isinstance(t, Tensor) and t.shape[:2] == last.shape[:2] for t in part)
    )
