"""Nested calls leave the outer pass as it was; after an error in any part of any call nothing is left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor, nn

from house import families as f
from softprompt import SoftPromptError
from softprompt.tuner import find_state
from softprompt.tuner.calls.call import Mode
from softprompt.tuner.hooks import StackHooks
from softprompt.tuner.passes.kinds import BARE
from softprompt.tuner.state import PromptState

NEEDS = frozenset({"unprompted", "head_rows"})


LENGTHS = (9, 3, 6)


@dataclass(frozen=True)
class Model:
    """A model with a prompt, and the names of the calls that it takes."""

    family: str
    head: str
    method: str
    calls: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.family}-{self.head}-{self.method}"

    def make(self) -> PeftModel:
        return copy.deepcopy(_made(str(self)))

    def inputs(self) -> dict[str, Tensor]:
        inputs = f.batch(f.tokens(*LENGTHS), "left" if self.family == "llama" else "right")
        if self.head == "base":
            return inputs
        if self.head == "seq_cls":
            return {**inputs, "labels": torch.tensor([0, 2, 1])}
        if self.head == "seq2seq_lm":
            return {**inputs, "labels": torch.arange(f.FIRST, f.FIRST + 12).view(3, 4)}
        mask = inputs["attention_mask"]
        answers = (mask != 0) & (mask.cumsum(1) > 2)  # the source is two tokens
        return {**inputs, "labels": inputs["input_ids"].masked_fill(~answers, -100)}


LATE = {"layers": [1, 2]}


MODELS = {
    str(model): model
    for model in (
        Model("bert", "seq_cls", "instance", ("train", "eval", "observe", "bare")),  # the bare backbone, inside
        Model("bert", "base", "instance", ("eval", "bare")),  # the model is the stack
        Model("bert", "seq_cls", "deep_late", ("train", "eval", "below", "states below"), LATE),
        Model("llama", "causal_lm", "infoprompt", ("train", "loss only", "eval", "observe", "generate")),  # a prefix
        Model("llama", "causal_lm", "spt", ("train", "loss only", "below", "states below", "generate"), LATE),
        Model("llama", "causal_lm", "spt_gated", ("train", "eval")),  # consistency: the model inside itself
        Model("t5", "seq2seq_lm", "deep_prompts", ("train", "loss only", "eval", "generate")),
        Model(
            "t5", "seq2seq_lm", "instance", ("train", "eval", "bare", "generate")
        ),  # generate calls its encoder by itself
        Model("t5", "seq2seq_lm", "deep_late", ("below", "states below", "generate"), LATE),
    )
}


@cache
def _made(name: str) -> PeftModel:
    model = MODELS[name]
    return f.prompted(f.FAMILIES[model.family], model.head, model.method, **model.options)


def state_of(model: nn.Module) -> PromptState:
    state = find_state(model)
    assert state is not None
    return state


def call(model: PeftModel, kind: str, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Make one call of a kind; returns all that it gives."""
    state = state_of(model)
    torch.manual_seed(0)  # objectives and sub-networks draw
    model.train(kind in ("train", "loss only", "below"))
    model.zero_grad()
    if kind == "bare":
        return [state.bare_states(inputs)]
    if kind == "states below":
        return [state.states_below(inputs)]
    if kind == "observe":
        seen = state.observe(model.get_base_model(), NEEDS, **inputs)
        return [seen.representation, seen.unprompted, seen.head_rows]
    if kind == "generate":
        text = {name: value for name, value in inputs.items() if name != "labels"}
        return [model.generate(**text, min_new_tokens=3, max_new_tokens=3, do_sample=False, pad_token_id=f.PAD)]
    given = {**inputs, "below": below_of(model, inputs)} if kind == "below" else inputs
    with model.base_model.loss_only() if kind == "loss only" else nullcontext():
        out = model(**given)
    if kind == "eval":
        return [f.output(model, **given)] if "logits" not in out else [out.logits]
    out.loss.backward()
    return [out.loss, *(p.grad for p in f.prompt_parameters(model).values() if p.grad is not None)]


@cache
def _below(name: str) -> Tensor:
    model = MODELS[name].make()
    return state_of(model).states_below(MODELS[name].inputs())


def below_of(model: PeftModel, inputs: dict[str, Tensor]) -> Tensor:
    return _below(model.name_for_test)


class Broken(Exception):
    """Raised by a part of a model."""


@contextmanager
def breaking(part: nn.Module, time: int, error: type[BaseException]) -> Iterator[Callable[[], bool]]:
    """Inside, ``part`` raises when it is called for the ``time``-th time."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == time:
            raise error

    hook = part.register_forward_pre_hook(count)
    try:
        yield lambda: calls >= time
    finally:
        hook.remove()


def traces(model: nn.Module) -> list[tuple[Any, ...]]:
    """What a call could leave in the modules of a model."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (name, "forward" in vars(module), *(tuple(getattr(module, kind)) for kind in hooks))
        for name, module in model.named_modules()
    ]


def check_clean(model: PeftModel) -> None:
    state = state_of(model)
    assert state._call is None and state._mode == Mode()
    assert state.passes.now is BARE and state.passes.inner is None
    assert state.active_prompt() is not None and state.active_prompt()._open is None
    assert torch.is_grad_enabled()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_after_an_error_in_any_part_of_any_call_nothing_is_left_behind(data):
    kind_of_model = data.draw(st.sampled_from(list(MODELS.values())))
    model, inputs = kind_of_model.make(), kind_of_model.inputs()
    model.name_for_test = str(kind_of_model)
    first, then = (data.draw(st.sampled_from(kind_of_model.calls)) for _ in range(2))
    names = [name for name, _ in model.named_modules() if "softprompt" not in name]
    part, time = model.get_submodule(data.draw(st.sampled_from(names))), data.draw(st.integers(1, 3))
    error = data.draw(st.sampled_from([Broken, KeyboardInterrupt]))
    before = traces(model)
    with breaking(part, time, error) as broke:
        with suppress(error, SoftPromptError):
            call(model, first, inputs)
        broken = broke()
    if error is Broken or not broken:  # an interrupt calls no hook, so the next call clears up
        check_clean(model)
        assert traces(model) == before
    fresh = kind_of_model.make()
    fresh.name_for_test = str(kind_of_model)
    for one, other in zip(call(model, then, inputs), call(fresh, then, inputs), strict=True):
        assert torch.equal(one, other)
    check_clean(model)
    assert traces(model) == before


@pytest.mark.parametrize("name", MODELS)
def test_every_part_that_breaks_in_training_leaves_nothing(name):
    """The drawn law on each part in turn, for the calls that swap, hang and nest most."""
    kind_of_model = MODELS[name]
    model, inputs = kind_of_model.make(), kind_of_model.inputs()
    model.name_for_test = name
    kind = next(k for k in ("below", "loss only", "train", "eval") if k in kind_of_model.calls)
    before, expected = traces(model), call(kind_of_model_copy(model), kind, inputs)
    broken = 0
    for part_name, part in list(model.named_modules()):
        if "softprompt" in part_name:
            continue
        with breaking(part, 1, Broken) as broke:
            with suppress(Broken, SoftPromptError):
                call(model, kind, inputs)
            broken += broke()
        check_clean(model)
        assert traces(model) == before, part_name
    assert broken > 10
    for one, other in zip(call(model, kind, inputs), expected, strict=True):
        assert torch.equal(one, other)


def kind_of_model_copy(model: PeftModel) -> PeftModel:
    other = copy.deepcopy(model)
    other.name_for_test = model.name_for_test
    return other


NESTED = {  # model -> the call, and the passes that run inside it
    "bert-seq_cls-instance": ("train", {"Pass"}),
    "bert-base-instance": ("eval", {"Pass"}),
    "bert-seq_cls-deep_late": ("below", {"Pass"}),
    "llama-causal_lm-infoprompt": ("train", {"Pass", "Alone"}),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_calls_leave_the_outer_pass_as_it_was(name, monkeypatch):
    model, inputs = MODELS[name].make(), MODELS[name].inputs()
    model.name_for_test = name
    state, ran = state_of(model), set()
    inside = StackHooks.inside

    @contextmanager
    def watched(hooks: StackHooks, inner: Any) -> Iterator[None]:
        outer = (hooks.now, hooks.inner, state._call, state._mode)
        held = {} if state._call is None else copy.copy(vars(state._call))  # None: of objectives, after the model
        with inside(hooks, inner):
            ran.add(type(inner).__name__)
            yield
            assert hooks.inner is inner
        assert all(a is b for a, b in zip((hooks.now, hooks.inner, state._call, state._mode), outer, strict=True))
        assert all(value is vars(state._call)[key] for key, value in held.items())

    monkeypatch.setattr(StackHooks, "inside", watched)
    kind, expected = NESTED[name]
    call(model, kind, inputs)
    assert ran == expected
    check_clean(model)


@pytest.mark.parametrize("name", ["bert-seq_cls-instance", "bert-base-instance"])
def test_a_state_made_inside_a_call_is_the_state_that_is_given(name):
    """The bare pass inside changes nothing of the call around it, also where the model is the stack."""
    model, inputs = MODELS[name].make(), MODELS[name].inputs()
    with torch.no_grad():
        given = model(**inputs, unprompted=state_of(model).bare_states(inputs))
        made = model(**inputs)
    for key, value in given.items():
        assert torch.equal(made[key], value)


def test_hooks_run_in_the_order_of_the_parts_also_where_the_model_is_the_stack(monkeypatch):
    order: list[str] = []
    for owner, names in ((PromptState, ("begin", "finish")), (StackHooks, ("enter", "leave"))):
        for name in names:
            method = getattr(owner, name)
            monkeypatch.setattr(
                owner,
                name,
                lambda *a, _m=method, _n=name: (order.append(_n), _m(*a))[1],  # type: ignore[misc]
            )
    for head in ("base", "seq_cls"):
        order.clear()
        f.prompted(f.FAMILIES["bert"], head, "prompt_tuning")(**f.batch(f.tokens(5, 3)))
        assert order == ["begin", "enter", "leave", "finish"]


def test_unloading_after_an_interrupt_gives_the_layers_back():
    name = "bert-seq_cls-deep_late"
    model, inputs = MODELS[name].make(), MODELS[name].inputs()
    model.name_for_test = name
    with breaking(state_of(model).backbone.layers[2], 1, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        call(model, "below", inputs)
    bare = model.unload()
    assert not any("forward" in vars(module) for module in bare.modules())


def test_a_disabled_adapter_has_no_pass_to_observe():
    model = MODELS["bert-seq_cls-instance"].make()
    with (
        model.disable_adapter(),
        pytest.raises(SoftPromptError, match="expected a prompt whose passes can be observed"),
    ):
        state_of(model).observe(model.get_base_model(), NEEDS, **MODELS["bert-seq_cls-instance"].inputs())


@pytest.mark.parametrize("name", ["bert-seq_cls-instance", "llama-causal_lm-infoprompt", "t5-seq2seq_lm-deep_prompts"])
def test_a_model_called_inside_its_own_call_is_refused(name):
    """By a hook of the user, also where that hangs in a pass of our own; the next call is as ever."""
    model, inputs = MODELS[name].make(), MODELS[name].inputs()
    model.name_for_test = name
    expected = call(kind_of_model_copy(model), "train", inputs)
    hook = state_of(model).backbone.layers[0].register_forward_hook(lambda *_: model(**inputs) and None)
    with pytest.raises(SoftPromptError, match="was called inside its own call"):
        call(model, "train", inputs)
    hook.remove()
    check_clean(model)
    for one, other in zip(call(model, "train", inputs), expected, strict=True):
        assert torch.equal(one, other)


def test_an_interrupt_leaves_nothing_where_the_adapter_is_called():
    """PEFT's wrapper sees it, so nothing waits for the next call: a copy, or another prompt, finds the layers as they are."""
    name = "bert-seq_cls-deep_late"
    model, inputs = MODELS[name].make(), MODELS[name].inputs()
    model.name_for_test, before = name, traces(MODELS[name].make())
    with breaking(state_of(model).backbone.layers[2], 1, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        call(model, "below", inputs)
    check_clean(model)
    assert traces(model) == before


def test_an_adapter_that_is_switched_inside_a_call_acts_on_the_next_one():
    name = "llama-causal_lm-infoprompt"
    model, inputs = MODELS[name].make(), MODELS[name].inputs()
    model.name_for_test = name
    model.add_adapter("other", f.config("tsloss", "causal_lm"))
    model.train()
    hook = state_of(model).backbone.layers[-1].register_forward_hook(lambda *_: model.set_adapter("other"))
    torch.manual_seed(0)
    terms = model(**inputs).objectives
    hook.remove()
    assert {*terms} == {"head_information", "representation_information", "latent_divergence"}
    assert list(model(**inputs).objectives) == ["ts_loss"]
