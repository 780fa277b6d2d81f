"""The one mechanism: hooks on the backbone stack that let a prompt in, deepen it, and take it out again."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .._types import IGNORED, SoftPromptError, announce
from ..objectives import ObjectiveSet, PromptedOutput
from ..prompts import Prompt, PromptParts
from .backbone import Backbone
from .generation import Generation
from .hiding import hide
from .labelled import LabelledPass, labelled_pass, tell
from .layout import Layout
from .pooling import pool
from .prefix import expand, new_cache, suits, why_not, without_cache
from .record import add_terms, run_bare, show, unprompted
from .request import (
    PER_LAYER,
    add_delta,
    asked_for,
    check_cache,
    check_checkpointing,
    check_late,
    check_length,
    check_packing,
    must_tell,
    per_layer_inputs,
    virtual_per_layer,
    with_positions,
)
from .skipping import Form, LeftOut, check_given, first_layer, learn_forms


@dataclass(frozen=True)
class _Pass:
    """One forward pass: what is placed and where. Lives from `enter` to `leave`.

    Attributes:
        readable: [B, S] or None; the tokens that a generated prompt may read.
        state: [B, 1, H] or None; what an instance prompt reads instead.
        columns: [B, T] or None; the prompt positions, where layers before the first site must not see them.
        decoding: whether the KV cache holds the prompt already, so that this pass places nothing.
        shared: layer -> the virtual tokens [1, P, H] that entered there in a pass of their own, whose keys and values
            this pass reads; None where the rows hold the prompt.
        drops_cache: whether the cache is only this pass's own means, which nobody asked for.
        below: [B, S, H] or None; the tokens' states at the prompt's first layer, under which nothing runs.
    """

    prompt: Prompt
    parts: PromptParts
    layout: Layout
    readable: Tensor | None
    state: Tensor | None
    columns: Tensor | None
    cache: Any
    decoding: bool
    shared: dict[int, Tensor] | None = None
    drops_cache: bool = False
    below: Tensor | None = None

    def entering(self, layer: int) -> int | None:
        """The site at ``layer``, when something enters there in this pass."""
        if self.decoding or layer not in self.prompt.layers:
            return None
        site = self.prompt.layers.index(layer)
        return site if site in self.parts.open else None

    def new_rows(self, site: int, tokens: Tensor, propagated: Tensor | None = None) -> Tensor:
        """What stands at the prompt positions from this site on, [1 or B, P, H].

        Args:
            tokens: [B, S, H], what stands at the tokens.
            propagated: [B, P, H], what the layer below put out at the prompt positions.
        """
        source, where = (tokens, self.readable) if self.state is None else (self.state, None)
        new, weights = self.prompt.rows(self.parts, site, source, where), self.parts.weights
        if weights is None:
            return new
        if propagated is None or site == self.parts.open[0]:
            if not self.parts.soft:
                return new
            propagated = pool(tokens, self.readable, "mean").unsqueeze(1)
        return weights[site] * new + (1 - weights[site]) * propagated


@dataclass
class Record:
    """What the hooks see of one pass, for objectives.

    Attributes:
        call: the stack's inputs as the caller gave them.
        rows: layer -> the virtual tokens that entered there.
        tokens, real: [B, S, H] and [B, S], what stood at the tokens of the first of these layers, and which count.
        hidden: [B, S, H], the stack's last hidden states at the tokens.
    """

    call: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None
    real: Tensor | None = None
    hidden: Tensor | None = None

    def enter(self, layer: int, rows: Tensor, tokens: Tensor) -> None:
        self.rows[layer] = rows
        if self.tokens is None:
            self.tokens = tokens


@dataclass(frozen=True)
class Settings:
    """What the state needs of an adapter's config: the representation that is read, the weight of consistency, and whether
    rows may share a pass of the prompt, and logits be left out where no label is."""

    representation: str
    consistency: float
    shared_prefix: bool = True
    label_only_logits: bool = True


class _Hook:
    """A hook on a part of the stack.

    Copied alone, as PEFT copies what ``modules_to_save`` names, it stays with its state; copied with the whole model, it
    goes with the state's copy. A bound method would drag a second state and backbone along.
    """

    def __init__(self, state: PromptState, method: str, *first: Any, whole: bool = False):
        self.state, self.method, self.first, self.whole = state, method, first, whole

    def __call__(self, *args: Any) -> Any:
        return getattr(self.state, self.method)(*self.first, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        # a hook on the whole model is only copied with it, and before its state
        state = copy.deepcopy(self.state, memo) if self.whole else memo.get(id(self.state), self.state)
        return _Hook(state, self.method, *self.first, whole=self.whole)


class PromptState(nn.Module, BaseTunerLayer):
    """Owns the prompts of all adapters and every hook; attached to the model as its child ``softprompt``.

    - `begin` and `finish`, around the whole model: labels in; objectives on top of a training loss.
    - `enter`, before the stack: ids become embeddings, the input delta is added at real positions, the prompt stands in
      front of the first real token; mask, positions and token types follow. On a decode step (the KV cache holds the
      prompt) only mask, positions and delta do.
    - `layer`, before layer i: a deep prompt replaces the prompt positions, or mixes new rows with what stands there.
      Layers below its first one are kept from seeing these positions.
    - `leave`, after the stack: the prompt positions are cut off, so heads, labels, pooling and logits see the input's
      own length. An encoder-decoder's encoder keeps them, because the decoder attends to the prompt (`cross` extends
      the decoder's mask of the encoder).

    A generated prompt reads the tokens that stand at its layers. In a causal language model these are only the source: what
    comes before the first label in training, and the text that `generate` was given.
    """

    adapter_layer_names = ("softprompt_prompts",)
    active_adapters: list[str]
    _disable_adapters: bool

    def __init__(self, backbone: Backbone, model: nn.Module):
        super().__init__()
        self.softprompt_prompts = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.backbone = backbone  # a plain dataclass: its modules do not become children
        self._pass: _Pass | None = None
        self._labels: Tensor | None = None
        self._plain = False
        self._told: set[str] = set()  # automatic choices are announced once
        self._prefix: dict[int, Tensor] | None = None  # in the prompt's own pass: layer -> what entered
        self._observing: frozenset[str] = frozenset()
        self.observed: PromptedOutput | None = None
        self._given: int | None = None  # inside generate: tokens of the source
        self._entered = False  # whether the model that runs has called the stack
        self._unprompted: Tensor | None = None
        self._below: Tensor | None = None
        self._left_out: LeftOut | None = None
        self._forms: dict[int, list[Form]] = {}  # first layer that runs -> what those below it return
        self._record: Record | None = None
        self._loss_only = False
        self._labelled: LabelledPass | None = None
        # not under PEFT's prefix: they are trained, and left out of the saved adapter
        self.objectives = nn.ModuleDict()
        self.settings: dict[str, Settings] = {}
        self.terms: dict[str, Tensor] = {}  # of the last training pass, unweighted and detached
        self.mask_token_id: int | None = getattr(model, "mask_token_id", None)
        self._generation = Generation.around(model, self) if backbone.generates else None
        stack = backbone.stack
        names = tuple(inspect.signature(model.forward).parameters)
        self._hooks = [
            model.register_forward_pre_hook(_Hook(self, "begin", names, whole=True), with_kwargs=True),
            model.register_forward_hook(_Hook(self, "finish", names, whole=True), with_kwargs=True, always_call=True),
            stack.register_forward_pre_hook(self.enter, with_kwargs=True),
            stack.register_forward_hook(self.leave),
        ]
        for index, layer in enumerate(backbone.layers):
            self._hooks += [layer.register_forward_pre_hook(_Hook(self, "layer", index), with_kwargs=True)]
        if backbone.decoder is not None:
            self._hooks += [backbone.decoder.register_forward_pre_hook(_Hook(self, "cross"), with_kwargs=True)]
        if isinstance(getattr(stack, "pooler", None), nn.Module):  # inside the stack, so before `leave`
            self._hooks += [stack.pooler.register_forward_pre_hook(_Hook(self, "pool"))]

    def get_base_layer(self) -> nn.Module:
        return self.backbone.embed

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        # PEFT moves a loaded adapter to these: the backbone's own bfloat16 would round the prompt
        return self.backbone.embed.weight.device, torch.float32

    def detach_hooks(self) -> None:
        """Take every hook off the model again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._generation is not None:
            self._generation.remove()

    def active_prompt(self) -> Prompt | None:
        """The prompt that the next pass will place; None when adapters are disabled.

        Raises:
            SoftPromptError: several adapters are active at once.
        """
        active = [name for name in self.active_adapters if name in self.softprompt_prompts]
        if self.disable_adapters or not active:
            return None
        if len(active) > 1:
            raise SoftPromptError(f"expected one active prompt, got {active}; choose one with set_adapter.")
        prompt = self.softprompt_prompts[active[0]]
        assert isinstance(prompt, Prompt)
        return prompt

    def active_objectives(self) -> ObjectiveSet | None:
        """What is minimised beside the loss of the next pass."""
        active = [name for name in self.active_adapters if name in self.objectives]
        found = self.objectives[active[0]] if active and not self.disable_adapters else None
        return found if isinstance(found, ObjectiveSet) else None

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Inside, the loss is the task's alone."""
        before, self._plain = self._plain, True
        try:
            yield
        finally:
            self._plain = before

    @contextmanager
    def loss_only(self, wanted: bool = True) -> Iterator[None]:
        """Inside, only the loss of a pass is read; see `SoftPromptModel.loss_only`."""
        before, self._loss_only = self._loss_only, wanted
        try:
            yield
        finally:
            self._loss_only = before

    def observe(self, model: nn.Module, needs: frozenset[str], **call: Any) -> PromptedOutput:
        """Run ``model`` on a batch and show what objectives with these ``needs`` would see of it; no term is added."""
        self._observing = needs | {"observed"}
        try:
            model(**call)
            assert self.observed is not None
            return self.observed
        finally:
            self._observing, self.observed = frozenset(), None

    def bare_states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The states [B, H] of the unprompted pass on a batch of a data set, as objectives and instance prompts read them."""
        mask, prompt = batch.get("attention_mask"), self.active_prompt()
        self._labels = batch.get("labels")
        try:
            real = self._readable(batch["input_ids"], mask, prompt is not None and prompt.depends_on_input)
        finally:
            self._labels = None
        return unprompted(self, dict(batch), real, self.settings[self.active_adapters[0]].representation)

    def entry_layer(self) -> int:
        """The first layer of the active prompt, below which layers can be left out.

        Raises:
            SoftPromptError: a prompt that enters at layer 0, or changes the embeddings; layers below it that are trained, or
                of which more is read than the states.
        """
        prompt = self.active_prompt()
        return self._learned(first_layer(self.backbone, prompt, None if prompt is None else prompt()))

    def _learned(self, first: int) -> int:
        """The same layer, once what the layers below it return is known."""
        if first not in self._forms:
            self._forms[first] = learn_forms(self, first)
        return first

    def states_below(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The states [B, S, H] of a batch's tokens at `entry_layer`, which a call takes as ``below``."""
        return run_bare(self, batch, self.entry_layer())

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Run the bare backbone inside; trainability stays as it is."""
        before, self._disable_adapters = self._disable_adapters, True
        try:
            yield
        finally:
            self._disable_adapters = before

    @contextmanager
    def generating(self, given: int) -> Iterator[None]:
        """Around `generate`: the first ``given`` tokens of a row are the source, all others are answers or guesses at them."""
        before, self._given = self._given, given
        try:
            yield
        finally:
            self._given = before

    def tell(self, choice: str, reason: str, once: str | None = None) -> None:
        """Announce an automatic choice once for each reason, or once in all under the name ``once``."""
        if (key := once or f"{choice}: {reason}") not in self._told:
            self._told.add(key)
            announce(choice, reason)

    # ------------------------------------------------------------------ hooks

    def begin(
        self, names: tuple[str, ...], model: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """Before the model: note the labels, and the state of the bare backbone, if it is given."""
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        self._labels = call.get("labels")
        kwargs, self._entered = dict(kwargs), False
        self._unprompted = kwargs.pop("unprompted", None)
        self._below = kwargs.pop("below", None)
        prompt = None if self._plain or not self.training else self.active_prompt()
        wanted = prompt is not None and (prompt.gate_logits is not None or self.active_objectives() is not None)
        self._record = Record() if wanted or self._observing else None
        if self._labelled is not None:  # left by a pass that was interrupted
            self._labelled.close()
            self._labelled = None
        if self._loss_only and not self._observing and self.active_prompt() is not None:
            self._labelled = labelled_pass(self, model, call, self._reader() if wanted else None)
        if self._labelled is not None:
            args, kwargs = self._labelled.into(names, args, kwargs, self._labelled.labels)
        return args, kwargs

    def _reader(self) -> str | None:
        """What, of all that is added to the loss of this pass, reads logits; None for nothing."""
        prompt, objectives = self.active_prompt(), self.active_objectives()
        weight = self.settings[self.active_adapters[0]].consistency
        if prompt is not None and prompt.gate_logits is not None and weight:
            return "the consistency of a gated prompt compares logits"
        return "an objective reads logits" if objectives is not None and "logits" in objectives.needs else None

    def bare(self, call: dict[str, Any], real: Tensor) -> Tensor:
        """The unprompted states [B, H] of a pass whose data set has no column of them; says so once."""
        self.tell("unprompted states", "the data has no column 'unprompted', so every pass runs a second one for them")
        return unprompted(self, call, real, self.settings[self.active_adapters[0]].representation)

    def finish(self, names: tuple[str, ...], model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """After the model: add objectives and the consistency of a gated prompt to a training loss."""
        record, bare, self._record, self._labels, self._unprompted = self._record, self._unprompted, None, None, None
        self._below = None
        self._run_again()  # where the stack raised
        if output is not None:
            self._check_entered(model, {**dict(zip(names, args, strict=False)), **kwargs})
        labelled, self._labelled = self._labelled, None
        if labelled is not None:
            labelled.close()
            if output is not None:
                tell(self, labelled)
                output = labelled.without_logits(output)
                args, kwargs = labelled.into(names, args, kwargs, labelled.given)
        if record is None or output is None:  # None: the model raised
            return output
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        if self._observing:
            self.observed = show(self, record, model, output, call.get("labels"), bare, self._observing)
            return output
        with self.plainly(), self.loss_only(False):
            return add_terms(self, record, model, call, output, bare)

    def _check_entered(self, model: nn.Module, call: dict[str, Any]) -> None:
        """Refuse a model that has run without the stack that holds the prompt; an encoder's states may be given instead."""
        if not self._entered and call.get("encoder_outputs") is None and self.active_prompt() is not None:
            raise SoftPromptError(
                f"{type(model).__name__} has run without calling {type(self.backbone.stack).__name__}, where the prompt is placed, so the prompt would change nothing; use another head of this family."
            )

    def enter(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        self._entered = True
        if self._prefix is not None:  # the prompt's own pass
            return None
        self._pass = None
        prompt = self.active_prompt()
        if prompt is None:
            return None
        call = {**dict(zip(self.backbone.argument_names, args, strict=False)), **kwargs}
        parts, mask = prompt(), call.get("attention_mask")
        if not parts.open and parts.input_delta is None:
            return None
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            got = f"{mask.dim()}-D" if isinstance(mask, Tensor) else type(mask).__name__
            raise SoftPromptError(
                f"soft prompts need a 2-D attention_mask [batch, tokens], got {got}; use the dynamic KV cache and leave masking to the model."
            )
        asked = dict(call)
        ids, rows = call.pop("input_ids", None), call.get("inputs_embeds")
        if rows is None:
            if ids is None:
                raise SoftPromptError("expected input_ids or inputs_embeds, got neither.")
            rows = self.backbone.embed(ids)
        cache = call.get("past_key_values")
        if getattr(cache, "is_compileable", False):
            raise SoftPromptError(
                f"soft prompts need the dynamic KV cache, got {type(cache).__name__}, which has no room for the prompt; drop cache_implementation."
            )
        cached = 0 if cache is None else int(cache.get_seq_length())
        decoding, tokens = cached > 0, rows.shape[1]
        length = prompt.num_virtual_tokens if parts.open else 0
        seen = cached - length if decoding else 0
        if decoding:
            check_cache(cached, tokens, length, mask, call.get("position_ids"))
        else:
            check_packing(call.get("position_ids"), mask)
        if self._given is not None and call.get("position_ids") is not None:
            # `generate` counts from 0, whatever the table; training, which leaves counting to the stack, from its first row
            call["position_ids"] = call["position_ids"] + self.backbone.first_position
        if late := prompt.is_late():
            check_late(self.backbone)
            mask = rows.new_ones(len(rows), seen + tokens, dtype=torch.long) if mask is None else mask.long()
        check_length(self.backbone, seen + tokens, length)
        check_checkpointing(self.backbone)
        if (below := self._below) is not None:
            check_given(self.backbone, below, self._learned(first_layer(self.backbone, prompt, parts)), call, rows)
        call |= per_layer_inputs(self.backbone, call, ids, rows)
        if not decoding and self._shares(prompt, parts, call, mask, rows):
            return (), self._enter_shared(prompt, parts, asked, call, mask, rows)
        layout = Layout.of(length, mask, self.backbone.causal, late and self.backbone.hidden_behind)
        rows = add_delta(rows, parts.input_delta, mask, layout, seen)
        if mask is not None:
            call["attention_mask"] = layout.place(mask.new_ones(1, length), mask)
        call = with_positions(self.backbone, call, mask, layout, tokens, seen, decoding, late)
        readable: Tensor | None = None
        state: Tensor | None = None
        if not decoding and (prompt.depends_on_input or parts.soft or self._record is not None):
            readable = self._readable(rows, mask, prompt.depends_on_input)
        if readable is not None and prompt.reads_unprompted:
            state = self.bare(asked, readable) if self._unprompted is None else self._unprompted
            self._unprompted, state = state, state.unsqueeze(1)
        if self._record is not None:
            self._record.call, self._record.real = asked, readable
        columns = layout.columns(mask) if late and mask is not None else None
        self._pass = _Pass(prompt, parts, layout, readable, state, columns, cache, decoding, below=below)
        if not decoding:
            if (types := call.get("token_type_ids")) is not None:
                call["token_type_ids"] = layout.place(types.new_zeros(1, length), types.expand(len(rows), -1))
            for name, zeros in virtual_per_layer(self.backbone, length).items():
                call |= {name: layout.place(zeros, call[name])} if call.get(name) is not None else {}
            site = self._pass.entering(0)  # if none, a placeholder: nobody sees it before the first site replaces it
            new = rows.new_zeros(1, length, rows.shape[-1]) if site is None else self._pass.new_rows(site, rows)
            if self._record is not None and site is not None:
                self._record.enter(0, new, rows)
            rows = layout.place(new, rows)
        if below is not None:
            self._left_out = LeftOut(self.backbone, self._forms[prompt.layers[0]])
            if "use_cache" in self.backbone.argument_names:
                call["use_cache"] = False
        return (), {**call, "inputs_embeds": rows}

    def _run_again(self) -> None:
        """Let the layers that this pass left out run again."""
        if self._left_out is not None:
            self._left_out.restore()
            self._left_out = None

    def _shares(
        self, prompt: Prompt, parts: PromptParts, call: dict[str, Any], mask: Tensor | None, rows: Tensor
    ) -> bool:
        """Whether the rows of this pass read the prompt from a pass of its own."""
        if not self.settings[self.active_adapters[0]].shared_prefix:
            against: str | None = "switched off"
        else:
            against = why_not(self.backbone, prompt, parts)
        if self.training and self.backbone.causal:
            self.tell(
                *(
                    ("shared prefix", "the rows of a batch share the prompt's keys and values, computed once")
                    if against is None
                    else ("no shared prefix", against)
                )
            )
        return against is None and suits(self.backbone, call, mask, rows, prompt.num_virtual_tokens)

    def _enter_shared(
        self,
        prompt: Prompt,
        parts: PromptParts,
        asked: dict[str, Any],
        call: dict[str, Any],
        mask: Tensor | None,
        rows: Tensor,
    ) -> dict[str, Any]:
        """Run the stack on the prompt alone, and return a call on the rows that reads its keys and values.

        Padding on the left goes behind the tokens, so that it does not stand between prompt and text.
        """
        length, cache = prompt.num_virtual_tokens, new_cache(self.backbone)
        self._pass = _Pass(prompt, parts, Layout(length), None, None, None, cache, False)
        site = self._pass.entering(0)
        assert site is not None  # a late prompt is not shared
        first = self._pass.new_rows(site, rows[:1, :0])
        own = {"inputs_embeds": first.to(rows), "past_key_values": cache, "use_cache": True}
        if (types := call.get("token_type_ids")) is not None:
            own["token_type_ids"] = types.new_zeros(1, length)
        own |= virtual_per_layer(self.backbone, length)
        self._prefix = made = {0: first}
        try:
            self.backbone.stack(**own)
        finally:
            self._prefix = None
        expand(cache, len(rows))
        layout = Layout.of(0, mask, causal=False)
        readable = None if self._record is None else self._readable(rows, mask, False)
        drops = layout.order is not None or not asked_for(call, self.backbone, "use_cache")
        self._pass = _Pass(prompt, parts, layout, readable, None, None, cache, False, made, drops)
        rows = add_delta(rows, parts.input_delta, mask, layout, 0)
        if self._record is not None:
            self._record.call, self._record.real = asked, readable
            self._record.enter(0, first, rows)
        for name in ("token_type_ids", "position_ids", PER_LAYER):
            if (value := call.get(name)) is not None:
                call[name] = layout.place(value[:, :0], value.expand(len(rows), *value.shape[1:]))
        if call.get("position_ids") is not None:
            call["position_ids"] = call["position_ids"] + length
        elif must_tell(self.backbone, mask, Layout(0), cached=True):
            at = torch.arange(rows.shape[1], device=rows.device) + length + self.backbone.first_position
            call["position_ids"] = at.unsqueeze(0)
        if mask is not None:
            placed = layout.place(mask[:, :0], mask)
            call["attention_mask"] = torch.cat([mask.new_ones(len(rows), length), placed], 1)
        return {**call, "inputs_embeds": layout.place(rows[:, :0], rows), "past_key_values": cache}

    def layer(
        self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        now, hidden = self._pass, args[0]  # hidden states come first in every family
        if now is None:
            return None
        if now.below is not None and index <= now.prompt.layers[0]:
            if index < now.prompt.layers[0]:
                return None  # its stand-in needs nothing
            hidden = now.layout.place(now.layout.prompt(hidden), now.below.to(hidden))
            args = (hidden, *args[1:])
        if now.columns is not None and index < now.prompt.layers[now.parts.open[0]]:
            keys = (hidden.shape[1], 0)
            if now.cache is not None:
                keys = now.cache.get_mask_sizes(hidden.shape[1], index)
            return hide(args, kwargs, now.columns, keys, self.backbone)
        site = now.entering(index) if index else None  # layer 0 was entered in front of the embeddings
        if site is None:
            return None
        tokens = now.layout.remove(hidden)
        if now.shared is not None:
            if self._record is not None:
                self._record.enter(index, now.shared[index], tokens)
            return None
        new = now.new_rows(site, tokens, None if now.parts.weights is None else now.layout.prompt(hidden))
        if self._prefix is not None:
            self._prefix[index] = new
        elif self._record is not None:
            self._record.enter(index, new, tokens)
        return (now.layout.place(new, tokens), *args[1:]), kwargs

    def pool(self, pooler: nn.Module, args: tuple) -> tuple | None:
        # the prompt is cut off by index: a bidirectional row then starts with its first real token ([CLS]), also when
        # the caller padded on the left
        if self._pass is None or self._pass.layout.behind:
            return None
        return (args[0][:, self._pass.layout.prompt_length :], *args[1:])

    def leave(self, stack: nn.Module, args: tuple, output: Any) -> Any:
        if self._prefix is not None:
            return output
        self._run_again()
        current, self._pass = self._pass, None
        if current is not None and not current.decoding and self._record is not None:
            self._record.hidden = current.layout.remove(output[0])  # the first of a tuple, and of a ModelOutput
        if current is None or current.decoding or self.backbone.decoder is not None:
            return output
        remove = current.layout.remove
        if current.drops_cache:
            output = without_cache(output)
        if isinstance(output, tuple):  # return_dict=False
            return (
                remove(output[0]),
                *(tuple(map(remove, part)) if _is_states(part, output[0]) else part for part in output[1:]),
            )
        output.last_hidden_state = remove(output.last_hidden_state).contiguous()  # some heads take a view of it
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(map(remove, output.hidden_states))
        return output

    def cross(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        mask, states = kwargs.get("encoder_attention_mask"), kwargs.get("encoder_hidden_states")
        if mask is None or states is None or mask.dim() != 2 or mask.shape[1] >= states.shape[1]:
            return None
        # beam search repeats rows after the encoder ran, so the layout is read off this mask again
        length, prompt = states.shape[1] - mask.shape[1], self.active_prompt()
        behind = prompt is not None and prompt.is_late() and self.backbone.hidden_behind
        layout = Layout.of(length, mask, self.backbone.causal, behind)
        return args, {**kwargs, "encoder_attention_mask": layout.place(mask.new_ones(1, length), mask)}

    def _readable(self, rows: Tensor, mask: Tensor | None, strict: bool) -> Tensor:
        """The tokens [B, S] that a generated prompt may read; never an answer. ``strict`` refuses to guess what is one."""
        real = rows.new_ones(rows.shape[:2], dtype=torch.bool) if mask is None else mask != 0
        if not self.backbone.generates:
            return real
        if self._given is not None:  # inside generate
            return real & (torch.arange(rows.shape[1], device=rows.device) < self._given)
        if self._labels is not None:
            source = real & ((self._labels != IGNORED).cumsum(1) == 0)
            # what only looks on, and makes no prompt, may look at all of a row that has no source
            return source if strict else torch.where(source.any(1, keepdim=True), source, real)
        if self.training and strict:
            raise SoftPromptError(
                "a generated prompt reads the source of a causal language model and needs labels to know it: expected labels with -100 on the source, got none; pass labels to the model."
            )
        return real


def find_state(model: nn.Module) -> PromptState | None:
    """The state of the prompts in a model, however they were attached; None where there are none."""
    return next((module for module in model.modules() if isinstance(module, PromptState)), None)


def _is_states(part: Any, last: Tensor) -> bool:
    return (
        isinstance(part, tuple)
        and bool(part)
        and all(isinstance(t, Tensor) and t.shape[:2] == last.shape[:2] for t in part)
    )
