"""Contract: layers below the prompt's first one are left out where the states that enter it are given, and nothing tells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import softprompt
from house import families as f
from house.families import BERT, DEBERTA, LLAMA, T5
from softprompt import SoftPromptError
from softprompt.tuner import find_backbone

LENGTHS = (9, 3, 6)


LATE: dict[str, dict[str, Any]] = {
    "spt": {"layers": [1, 2]},
    "spt_last": {},  # at layer 2, through the attention pool
    "deep_late": {"tau": 0.5},  # mixes with what layer 1 put out at the prompt
}


def inputs_for(family: f.Family, head: str, side: str = "right") -> dict[str, Tensor]:
    inputs = f.batch(f.tokens(*LENGTHS), side)
    mask = inputs["attention_mask"]
    if head == "seq_cls":
        return {**inputs, "labels": torch.tensor([0, 2, 1])}
    if head == "seq2seq_lm":
        return {**inputs, "labels": torch.arange(f.FIRST, f.FIRST + 12).view(3, 4)}
    # a causal model's source is what stands in front of the first label: two tokens
    scored = (mask != 0) & (mask.cumsum(1) > (2 if head == "causal_lm" else 1))
    return {**inputs, "labels": inputs["input_ids"].masked_fill(~scored, -100)}


def rows_run(model: PeftModel) -> dict[int, list[int]]:
    """Fills with the rows that the sub-modules of each layer are called with."""
    found: dict[int, list[int]] = {}
    for i, layer in enumerate(find_backbone(model.get_base_model()).layers):
        for module in layer.modules():
            if isinstance(module, (nn.Linear, tf.pytorch_utils.Conv1D)):
                module.register_forward_pre_hook(
                    lambda _, args, i=i: found.setdefault(i, []).append(args[0].shape[0])  # type: ignore[misc]
                )
    return found


def passed(model: PeftModel, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(0)  # objectives draw
    out = model(**inputs)
    out.loss.backward()
    grads = {k: p.grad.clone() for k, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return out.loss.detach(), out.logits.detach(), grads


def compare(model: PeftModel, inputs: dict[str, Any], tolerance: float = 1e-5) -> dict[int, list[int]]:
    """A pass with the column equals the one without; returns the rows that each layer ran on."""
    state = model.base_model.state
    (loss, logits, grads), below = passed(model, inputs), state.states_below(inputs)
    assert below.shape == (*inputs["input_ids"].shape, f.HIDDEN) and not below.requires_grad
    real = inputs["attention_mask"] != 0
    below = below.masked_fill(~real.unsqueeze(-1), 0.0)  # padding is not read
    first = state.entry_layer()
    count = rows_run(model)
    fast_loss, fast_logits, fast_grads = passed(model, {**inputs, "below": below})
    f.close(fast_loss, loss, tolerance)
    if logits.shape[:2] == real.shape:
        logits, fast_logits = logits[real], fast_logits[real]
    f.close(fast_logits, logits, tolerance)
    assert grads.keys() == fast_grads.keys() and len(grads) > 0
    for key, grad in grads.items():
        scale = grad.abs().max().clamp(min=1e-3)
        f.close(fast_grads[key] / scale, grad / scale, 2 * tolerance)
    assert all(len(real) in count[i] for i in range(first, f.LAYERS))
    return {i: count.get(i, []) for i in range(first)}


CASES = [(family, head) for family, head in f.cases(methods=False) if head in ("seq_cls", family.lm)]


# ---------------------------------------------------------------------- exactness


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", LATE)
@pytest.mark.parametrize(("family", "head"), CASES, ids=lambda x: str(x))
def test_loss_logits_and_gradients_equal_the_pass_that_runs_all_layers(family, head, method, side):
    if head == "seq_cls" and family.kind == "encoder_decoder":
        pytest.skip("its classifier makes the decoder's ids of the encoder's, which the language model's case covers")
    if head == "seq_cls" and side == "left" and family.kind == "encoder" and family is not BERT:
        pytest.skip("its stock head reads index 0, which is padding then")
    model = f.prompted(family, head, method, **LATE[method]).train()
    if family.name == "gemma4" and method == "spt_last":  # its last layer reads keys and values of one below
        with pytest.raises(SoftPromptError, match="read more of those below than their states"):
            compare(model, inputs_for(family, head, side))
        return
    left_out = compare(model, inputs_for(family, head, side))
    for i, rows in left_out.items():
        # T5's first layer makes the bias of positions for all of them, of one row
        assert set(rows) == ({1} if family is T5 and i == 0 else set()), (i, rows)


def test_a_convolution_between_the_layers_and_other_states():
    """DeBERTa's convolution follows layer 0; and the given states are what is read."""
    torch.manual_seed(0)
    base = tf.AutoModelForMaskedLM.from_config(DEBERTA.config(conv_kernel_size=3, initializer_range=0.2)).eval()
    model = f.stir(get_peft_model(base, f.config("spt", layers=[1]))).train()
    inputs = inputs_for(DEBERTA, "masked_lm", "left")
    compare(model, inputs)
    below = model.base_model.state.states_below(inputs)
    assert (model(**inputs, below=below + 1).logits - model(**inputs).logits).abs().max() > 0.1


@pytest.mark.parametrize("family", [BERT, LLAMA, T5], ids=str)
def test_in_bfloat16_they_are_equal_to_its_rounding(family):
    model = f.prompted(family, family.lm, "spt", layers=[2]).to(torch.bfloat16).eval()
    inputs = inputs_for(family, family.lm)
    below = model.base_model.state.states_below(inputs)
    assert below.dtype == torch.bfloat16
    with torch.no_grad():
        slow, fast = model(**inputs).logits, model(**inputs, below=below).logits
    real = slice(None) if family is T5 else inputs["attention_mask"] != 0
    assert (fast - slow)[real].float().abs().mean() < 0.02 * slow[real].float().abs().mean()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", [BERT, T5], ids=str)
def test_gradient_checkpointing_changes_nothing(family, reentrant):
    model = f.prompted(family, family.lm, "spt", layers=[1]).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    compare(model, inputs_for(family, family.lm))


@pytest.mark.parametrize("family", [BERT, LLAMA, T5], ids=str)
def test_objectives_see_the_same(family):
    terms = [softprompt.objective("ts_loss"), softprompt.objective("head_information")]
    inputs = inputs_for(family, family.lm, "left")
    model = f.prompted(family, family.lm, "spt", layers=[1, 2], objectives=terms).train()
    compare(model, inputs)
    state = model.base_model.state
    needs, below = frozenset({"unprompted", "head_rows"}), state.states_below(inputs)
    slow, fast = (state.observe(model.get_base_model(), needs, **inputs, **more) for more in ({}, {"below": below}))
    real = inputs["attention_mask"] != 0
    f.close(fast.tokens[real], slow.tokens[real])
    assert fast.virtual.keys() == slow.virtual.keys() == {1, 2}
    for name in ("representation", "unprompted", "head_rows"):
        f.close(getattr(fast, name), getattr(slow, name))
    for layer in (1, 2):
        f.close(fast.virtual[layer], slow.virtual[layer])


def test_a_prompt_of_the_unprompted_state_gets_both_columns():
    model = f.prompted(BERT, "seq_cls", "instance", layers=[1, 2]).train()
    inputs = inputs_for(BERT, "seq_cls")
    # here the pass makes the unprompted state: all layers run for that, and are left out afterwards
    assert set(compare(model, inputs)[0]) == {3}
    given = {**inputs, "unprompted": model.base_model.state.bare_states(inputs)}
    assert compare(model, given) == {0: []}


def test_a_gated_prompt_above_layer_0_searches_as_before():
    """Some sub-networks enter above the layer that the states are given for; the layers between run."""
    config = softprompt.SoftPromptConfig(
        num_virtual_tokens=f.P, prompt="generated", placement="gated", layers=[1, 2], bottleneck=6, consistency=0.0
    )
    model = f.stir(get_peft_model(f.backbone(BERT, "masked_lm"), config)).eval()
    inputs = inputs_for(BERT, "masked_lm")
    below, prompt = model.base_model.state.states_below(inputs), model.base_model.state.active_prompt()
    real = inputs["attention_mask"] != 0
    for sites in ((0, 1), (1,), (0,)):
        with prompt.subnetwork(sites):
            f.close(model(**inputs, below=below).logits[real], model(**inputs).logits[real])
    compare(model.train(), inputs)


def test_a_pass_in_evaluation_returns_no_cache_of_layers_that_did_not_run():
    model = f.prompted(LLAMA, "causal_lm", "spt", layers=[1])
    inputs = f.batch(f.tokens(*LENGTHS), "left")
    below = model.base_model.state.states_below(inputs)
    with torch.no_grad():
        slow, fast = model(**inputs), model(**inputs, below=below)
    assert slow.past_key_values is not None and fast.past_key_values is None
    f.close(fast.logits[inputs["attention_mask"] != 0], slow.logits[inputs["attention_mask"] != 0])


def test_layers_run_again_after_the_pass_and_after_an_error():
    model = f.prompted(BERT, "masked_lm", "spt", layers=[1])
    layer, inputs = find_backbone(model.get_base_model()).layers[0], inputs_for(BERT, "masked_lm")
    own = layer.forward
    vars(layer)["forward"] = lambda *args, **kwargs: own(*args, **kwargs)  # as accelerate does
    placed = layer.forward
    below = model.base_model.state.states_below(inputs)
    expected = model(**inputs).logits
    model(**inputs, below=below)
    assert layer.forward is placed
    top = find_backbone(model.get_base_model()).layers[2]
    hook = top.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**inputs, below=below)
    hook.remove()
    assert layer.forward is placed
    count = rows_run(model)
    assert torch.equal(model(**inputs).logits, expected) and set(count[0]) == {3}
    with model.disable_adapter():  # the bare backbone runs whole
        assert torch.equal(model(**inputs, below=below).logits, model(**inputs).logits)


# ---------------------------------------------------------------------- refusals


def test_calls_that_cannot_leave_layers_out_are_refused():
    inputs = f.batch(f.tokens(*LENGTHS))
    wide = torch.zeros(3, 9, f.HIDDEN)

    def refused(match: str, method: str = "spt", family: f.Family = LLAMA, change: Any = None, **call: Any) -> None:
        options = {"layers": [1]} if method == "spt" else {}
        model = f.prompted(family, family.lm, method, **options)
        if change is not None:
            change(model)
        with pytest.raises(SoftPromptError, match=match):
            model(**inputs, **{"below": wide, **call})

    refused("below: expected a prompt whose first layer is above 0, got one that enters at layer 0", "deep_prompts")
    refused(
        r"tokens at layer 1, \[3, 9, 32\], got \[3, 8, 32\]; make them of the same rows, padded alike",
        below=wide[:, 1:],
    )
    refused(
        "below leaves layers out, so there is nothing of theirs to return: expected a call without output_hidden_states",
        output_hidden_states=True,
    )
    refused("expected a call without use_cache", use_cache=True)
    own = find_backbone(f.backbone(LLAMA, LLAMA.lm)).cache_name
    refused(f"expected a call without {own}", past_key_values=tf.DynamicCache())
    refused(
        "below: expected frozen embeddings and layers below layer 1",
        change=lambda model: find_backbone(model.get_base_model()).layers[0].requires_grad_(True),
    )
    model = f.prompted(LLAMA, "causal_lm", "deep_prompts", layers=[1], max_positions=8)
    with pytest.raises(
        SoftPromptError, match="below: expected a prompt that leaves the embeddings alone, got one with max_positions"
    ):
        model.base_model.state.states_below(inputs)


def test_a_family_whose_layers_share_more_than_states_is_refused():
    model = f.prompted(BERT, "masked_lm", "spt", layers=[2])
    layers, inputs, kept = find_backbone(model.get_base_model()).layers, inputs_for(BERT, "masked_lm"), []
    inner = layers[0].output  # does not run where the layer is left out
    inner.register_forward_hook(lambda _, args, out: kept.append(out))
    layers[2].register_forward_hook(lambda _, args, out: out + (kept.pop().mean() if kept else 0.0))
    model(**inputs)
    with pytest.raises(
        SoftPromptError, match="the layers of bert from 2 on read more of those below than their states"
    ):
        model.base_model.state.states_below(inputs)
    assert type(layers[1].forward).__name__ == "method"  # nothing stays left out


@pytest.mark.parametrize("read", [False, True])
def test_what_a_layer_returns_beside_its_states_must_not_be_read(read):
    """Attention weights, say."""
    model = f.prompted(BERT, "masked_lm", "spt", layers=[2])
    layers, inputs = find_backbone(model.get_base_model()).layers, inputs_for(BERT, "masked_lm")
    forward = layers[1].forward
    layers[1].forward = lambda hidden, *args, **kwargs: (forward(hidden, *args, **kwargs), hidden.mean(-1))  # type: ignore[method-assign]

    def unpack(_: nn.Module, args: tuple) -> tuple:
        return (args[0][0] + args[0][1].mean() if read else args[0][0], *args[1:])

    layers[2].register_forward_pre_hook(unpack, prepend=True)
    if read:
        with pytest.raises(SoftPromptError, match="leave 'below' out of the call") as refusal:
            model.base_model.state.states_below(inputs)
        assert isinstance(refusal.value.__cause__, AttributeError)  # None has no mean
    else:
        assert compare(model, inputs) == {0: [], 1: []}
