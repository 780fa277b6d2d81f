"""The one mechanism: it owns the prompts, and chooses for each call of the stack how the active one is placed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .._types import AnnounceOnce, SoftPromptError
from ..objectives import ObjectiveSet, PromptedOutput
from ..prompts import Prompt
from .adapter import Adapter, Settings, check_trained_together
from .backbone import Backbone
from .bare import represent, run_bare
from .cache import cache_of
from .calls.call import Arguments, Mode, ModelCall
from .calls.labelled import labelled_pass
from .calls.record import Record
from .calls.request import Request, rows_of
from .hooks import StackHooks, attach
from .passes.kinds import BARE, Alone, Behind, Decoding, DecodingBehind, Held, HeldAbove, Pass
from .passes.prefix import is_in_front, shares
from .passes.skipping import Form, check_given, first_layer, learn_forms
from .placing.entrant import Entrant, Reading, readable
from .placing.generation import Generation
from .placing.hiding import mask_of_encoder
from .placing.mixture import BASE, Entering, Mixture, spread
from .terms import View, add_terms, show


class PromptState(nn.Module, BaseTunerLayer):
    """Owns the prompts and objectives of all adapters; attached to the model as its child ``softprompt``.

    `begin` and `finish` stand around the whole model: labels in; objectives on top of a training loss. `choose` makes a `Pass`
    of each call of the stack, which the hooks of the stack ask. What the model's call carries is a `ModelCall`; what calls
    have in common for a while is a `Mode`. A pass of our own (the bare backbone, the prompt alone) runs `inside` a call.
    """

    adapter_layer_names = ("softprompt_prompts",)
    active_adapters: list[str]

    def __init__(self, backbone: Backbone, model: nn.Module):
        super().__init__()
        self.softprompt_prompts = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.backbone = backbone  # a plain dataclass: its modules do not become children
        # not under PEFT's prefix: they are trained, and left out of the saved adapter
        self.objectives = nn.ModuleDict()
        self.settings: dict[str, Settings] = {}
        self.mask_token_id: int | None = getattr(model, "mask_token_id", None)
        self.tell = AnnounceOnce()
        self._forms: dict[int, list[Form]] = {}  # first layer that runs -> what those below it return
        self._mode, self.passes = Mode(), StackHooks(self.choose)
        self._call: ModelCall | None = None
        self.terms: dict[str, Tensor] = {}  # of the last training call, unweighted and detached
        writes = backbone.generates or (backbone.decoder is not None and getattr(model, "can_generate", bool)())
        self._generation = Generation.around(model, self) if writes else None
        self._hooks = attach(self, self.passes, model, backbone)

    def get_base_layer(self) -> nn.Module:
        return self.backbone.embed

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        # PEFT moves a loaded adapter to these: the backbone's own bfloat16 would round the prompt
        return self.backbone.embed.weight.device, torch.float32

    def detach_hooks(self) -> None:
        """Take every hook off the model again."""
        self.end()  # what a call that was interrupted left in the layers
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._generation is not None:
            self._generation.remove()

    # ------------------------------------------------------------------ what is active

    def active(self) -> Adapter | None:
        """The adapter whose prompt the next pass will place; None when adapters are disabled.

        Raises:
            SoftPromptError: several adapters are active at once.
        """
        active = [name for name in self.active_adapters if name in self.softprompt_prompts]
        if self.disable_adapters or not active:
            return None
        if len(active) > 1:
            raise SoftPromptError(f"expected one active prompt, got {active}; choose one with set_adapter.")
        return self._adapter(active[0])

    def _adapters(self, names: Sequence[str]) -> list[Adapter]:
        return [self._adapter(name) for name in dict.fromkeys(names) if name != BASE]

    def _adapter(self, name: str) -> Adapter:
        prompt: Any = self.softprompt_prompts[name]
        objectives: Any = dict(self.objectives.items()).get(name)
        return Adapter(name, prompt, objectives, self.settings[name])

    def active_prompt(self) -> Prompt | None:
        """The prompt of `active`."""
        adapter = self.active()
        return None if adapter is None else adapter.prompt

    def placed(self) -> list[Prompt]:
        """The prompts that the next pass will place."""
        if self._mode.names is None or self.disable_adapters:
            return [prompt for prompt in (self.active_prompt(),) if prompt is not None]
        return [prompt for prompt in map(self._prompt_called, dict.fromkeys(self._mode.names)) if prompt is not None]

    def _prompt_called(self, name: str) -> Prompt | None:
        return None if name == BASE else cast(Prompt, self.softprompt_prompts[name])

    def active_objectives(self) -> ObjectiveSet | None:
        """What is minimised beside the loss of the next pass."""
        adapter = self.active()
        return None if adapter is None else adapter.objectives

    # ------------------------------------------------------------------ for a while

    @contextmanager
    def within(self, **changes: Any) -> Iterator[None]:
        """Inside, calls are made in a `Mode` with these changes."""
        before, self._mode = self._mode, replace(self._mode, **changes)
        try:
            yield
        finally:
            self._mode = before

    def plainly(self) -> AbstractContextManager[None]:
        """Inside, the loss is the task's alone."""
        return self.within(terms=False)

    def loss_only(self, wanted: bool = True) -> AbstractContextManager[None]:
        """Inside, only the loss of a call is read; see `SoftPromptModel.loss_only`."""
        return self.within(loss_only=wanted)

    def by_row(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Inside, each input has the adapter that ``names`` has for it.

        Raises:
            SoftPromptError: names that are none of the adapters', or of adapters whose objectives training would leave out.
        """
        known = {*self.softprompt_prompts, BASE}
        if unknown := sorted({*names} - known):
            raise SoftPromptError(
                f"adapter_names: no adapter is called {', '.join(unknown)}; expected names of {', '.join(sorted(known))}."
            )
        if self.training and self._mode.terms:
            check_trained_together(self._adapters(names), self.tell)
        return self.within(names=tuple(names))

    def generating(self, given: int, rows: int) -> AbstractContextManager[None]:
        """Around ``generate``, which was given the first ``given`` tokens of each of ``rows`` inputs."""
        if self._mode.names is not None:
            spread(self._mode.names, rows)  # passes inside have more rows, and could not tell
        return self.within(source=given)

    def silenced(self) -> AbstractContextManager[None]:
        """Run the bare backbone inside."""
        return self.passes.inside(BARE)

    # ------------------------------------------------------------------ questions

    def observe(self, model: nn.Module, needs: frozenset[str], **call: Any) -> PromptedOutput:
        """Run ``model`` on a batch and show what objectives with these ``needs`` would see of it; no term is added."""
        seen: list[PromptedOutput] = []
        with self.within(watched=(needs, seen)):
            model(**call)
        if not seen:
            raise SoftPromptError(
                "expected a prompt whose passes can be observed, got a model whose adapter is disabled."
            )
        return seen[0]

    def bare_states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The states [B, H] of the unprompted pass on a batch of a data set, as objectives and instance prompts read them."""
        self.end()  # of a call that was interrupted
        ids, mask, prompt = batch["input_ids"], batch.get("attention_mask"), self.active_prompt()
        strict = prompt is not None and prompt.depends_on_input
        return self._bare(batch, self._readable(ids, mask, batch.get("labels"), strict))

    def entry_layer(self) -> int:
        """The first layer of the active prompt, below which layers can be left out.

        Raises:
            SoftPromptError: a prompt that enters at layer 0, or changes the embeddings; layers below it that are trained, or
                of which more is read than the states.
        """
        first = first_layer(self.backbone, self.active_prompt())
        if first not in self._forms:
            with self.silenced():
                self._forms[first] = learn_forms(self.backbone, first)
        return first

    def states_below(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The states [B, S, H] of a batch's tokens at `entry_layer`, which a call takes as ``below``."""
        self.end()  # of a call that was interrupted: layers may be left out
        first = self.entry_layer()
        with self.silenced():
            return run_bare(self.backbone, batch, first)

    # ------------------------------------------------------------------ hooks around the model

    def begin(
        self, names: tuple[str, ...], model: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Before the model: note what its call brings for the pass, and whether objectives want to see it."""
        ours = self.passes.inner is not None
        if ours and model is self.backbone.stack:  # a pass of our own calls it
            return None
        nested = ours or (self._call is not None and self._call.runs)
        self.end()  # of a call that was interrupted: Ctrl-C calls no hook
        if nested:
            raise SoftPromptError(
                f"{type(model).__name__} was called inside its own call (by a hook?), where the prompt of the outer call stands; call it after that one, or a copy of it."
            )
        if kwargs.get("adapter_names") is not None:
            raise SoftPromptError(
                f"adapter_names has reached {type(model).__name__} itself, where nobody reads it: expected a call of the PeftModel around it (peft's special case for MPT does not hand it over); call that, or set_adapter and each adapter's rows by themselves."
            )
        named, given, mode = _named(names, args, kwargs), Arguments(kwargs), self._mode
        of_rows = None if self.disable_adapters else mode.names
        adapter = self.active() if of_rows is None else None
        trained = adapter if self.training and mode.terms else None
        wanted = trained is not None and trained.adds_terms
        self._call = call = ModelCall(
            adapter=adapter,
            names=of_rows,
            labels=named.get("labels"),
            unprompted=given.pop("unprompted", None),
            below=given.pop("below", None),
            record=Record() if wanted or mode.watched else None,
            arguments=None if torch.compiler.is_compiling() else weakref.ref(given),
        )
        if of_rows is not None and (call.below is not None or mode.watched):
            raise SoftPromptError(
                "adapter_names: states below one prompt's first layer, and what objectives see of it, belong to one adapter; run each adapter's rows by themselves."
            )
        if adapter is None or not mode.loss_only or mode.watched or not adapter.settings.label_only_logits:
            return args, given
        reads = adapter.reads_logits if wanted else None
        call.labelled = labelled_pass(model, named, reads, self.backbone.generates, self.tell)
        return (args, given) if call.labelled is None else call.labelled.into(names, args, given)

    def finish(self, names: tuple[str, ...], model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """After the model: add objectives and the consistency of a gated prompt to a training loss."""
        if self.passes.inner is not None:
            return output
        call = self.end()
        if output is None or call is None:  # the model raised
            return output
        named = _named(names, args, kwargs)
        if call.labelled is not None:
            call.labelled.report(self.tell)
            output = call.labelled.without_logits(output)
            named["labels"] = call.labelled.given
        if call.adapter is not None or call.names is not None:
            _check_entered(call, model, self.backbone, named)
        if call.names is not None and isinstance(output, Mapping) and (cache := cache_of(output)) is not None:
            setattr(cache, OF_ROWS, call.names)
        if (adapter := call.adapter) is None or call.record is None:
            return output
        view = View(
            model,
            self.backbone,
            call.record,
            named,
            output,
            call.unprompted,
            adapter,
            self.mask_token_id,
            self._bare_told,
        )
        if self._mode.watched is not None:
            needs, seen = self._mode.watched
            seen.append(show(view, needs))
            return output
        with self.within(terms=False, loss_only=False):  # of the calls inside
            output, self.terms = add_terms(view, self.terms)
        return output

    def end(self) -> ModelCall | None:
        """End the call, and the pass where the stack raised; nothing of them is left behind."""
        call, self._call = self._call, None
        self.passes.end().close()
        if call is not None and call.labelled is not None:
            call.labelled.close()
        return call

    def cross(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before a decoder: its mask of the encoder follows the prompt, to which it attends."""
        mask = mask_of_encoder(self.backbone, kwargs, lambda rows: self._entering(self._call_now(), rows))
        return None if mask is None else (args, {**kwargs, "encoder_attention_mask": mask})

    # ------------------------------------------------------------------ which pass

    def choose(self, args: tuple, kwargs: dict[str, Any]) -> Pass:
        """The pass that the active prompt makes of a call of the stack."""
        call = self._call_now()
        call.entered, adapter, backbone = True, call.adapter, self.backbone
        if adapter is None and call.names is None:
            return BARE
        entering = self._entering(call, rows_of(backbone, args, kwargs))
        if entering is None:
            return BARE
        asked = Request.read(backbone, args, kwargs, entering.length, from_zero=self._mode.source is not None)
        lowest = None if call.below is None else self.entry_layer()
        if call.below is not None and lowest is not None:
            check_given(backbone, call.below, lowest, asked)
        if asked.decoding:
            _check_rows(asked.cache, call.names)
            return (DecodingBehind if is_in_front(asked.cache) else Decoding)(backbone, entering, asked)
        entering.make()
        adapters = [adapter] if adapter is not None else self._adapters(call.names or ())
        if shares(backbone, adapters, entering, asked, self.training, self.tell):
            real = None if call.record is None else self._readable(asked.tokens, asked.mask, call.labels, strict=False)
            return Behind.of(backbone, entering, asked, real, call.record, self._run)
        reading = self._reading(call, entering, asked)
        if call.below is None or lowest is None or isinstance(entering, Mixture):
            return Held(backbone, entering, asked, reading, call.record)
        return HeldAbove(backbone, entering, asked, reading, call.record, call.below, self._forms[lowest])

    def _call_now(self) -> ModelCall:
        if self._call is not None:
            return self._call
        names = None if self.disable_adapters else self._mode.names  # an encoder may be called by itself
        return ModelCall(adapter=self.active() if names is None else None, names=names)

    def _entering(self, call: ModelCall, rows: int) -> Entering | None:
        """What enters ``rows`` inputs of a call."""
        if call.names is None:
            return None if call.adapter is None else Entrant.of(call.adapter.prompt)
        names = spread(call.names, rows, self._mode.source is not None)
        return Mixture.of([self._prompt_called(name) for name in names], self.backbone.embed.weight.device)

    def _run(self, alone: Alone) -> None:
        with self.passes.inside(alone):
            self.backbone.stack(**alone.call)

    def _reading(self, call: ModelCall, entering: Entering, asked: Request) -> Reading:
        """What the prompts of this call may read; an instance prompt reads the unprompted state, which is made if it is not given."""
        if not entering.reads and call.record is None:
            return Reading()
        real = self._readable(asked.tokens, asked.mask, call.labels, entering.generated)
        if not entering.reads_unprompted:
            return Reading(real)
        if call.unprompted is None:
            call.unprompted = self._bare_told(asked.given, real, call.names)  # objectives read it again, in `finish`
        return Reading(real, call.unprompted.unsqueeze(1))

    def _bare(self, given: Mapping[str, Any], real: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """The unprompted states [B, H] of the stack's inputs, each as the adapter that ``names`` has for it reads them."""
        with self.silenced():
            states = run_bare(self.backbone, given)
        active = next(name for name in self.active_adapters if name in self.settings)
        owners = [active] if names is None else spread(names, len(real), self._mode.source is not None)
        hows = [self.settings[active if name == BASE else name].representation for name in owners]
        made = {how: represent(states, given.get("input_ids"), real, how, self.mask_token_id) for how in {*hows}}
        return made[hows[0]] if len(made) == 1 else torch.stack([made[how][row] for row, how in enumerate(hows)])

    def _bare_told(self, given: Mapping[str, Any], real: Tensor, names: Sequence[str] | None = None) -> Tensor:
        self.tell("unprompted states", "the data has no column 'unprompted', so every pass runs a second one for them")
        return self._bare(given, real, names)

    def _readable(self, tokens: Tensor, mask: Tensor | None, labels: Tensor | None, strict: bool) -> Tensor:
        real = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask != 0
        return readable(self.backbone, real, labels, self._mode.source, strict, self.training)


def _named(names: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


OF_ROWS = "prompt_names"  # on a cache: whose prompts it holds


def _check_rows(cache: Any, names: Sequence[str] | None) -> None:
    """Refuse a cache that holds the prompts of other rows: its positions would be counted as those of today's."""
    if (held := getattr(cache, OF_ROWS, None)) != names:
        raise SoftPromptError(
            f"adapter_names: the KV cache was made for {held or 'one adapter'}, and the call names {names or 'none'}; go on with the same rows and names, or start with a fresh cache."
        )


def _check_entered(call: ModelCall, model: nn.Module, backbone: Backbone, named: Mapping[str, Any]) -> None:
    """Refuse a model that has run without the stack that holds the prompt; an encoder's states may be given instead."""
    if not call.entered and named.get("encoder_outputs") is None:
        raise SoftPromptError(
            f"{type(model).__name__} has run without calling {type(backbone.stack).__name__}, where the prompt is placed, so the prompt would change nothing; use another head of this family."
        )


def find_state(model: nn.Module) -> PromptState | None:
    """The state of the prompts in a model, however they were attached; None where there are none."""
    return next((module for module in model.modules() if isinstance(module, PromptState)), None)


def prompts_of(model: nn.Module) -> PromptState:
    """Return the state that owns the prompts of a model, however they were attached.

    Raises:
        SoftPromptError: the model has no soft prompt.
    """
    state = find_state(model)
    if state is None:
        raise SoftPromptError(
            f"expected a model with a soft prompt, got {type(model).__name__}; attach one with peft.get_peft_model and a config of softprompt, such as softprompt.prompt_tuning()."
        )
    return state
