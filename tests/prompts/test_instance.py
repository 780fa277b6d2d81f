"""A prompt per input: its formula, and that batches, caches and files change nothing."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

import softprompt
from house.by_hand import dot
from house.families import BERT, GPT2, HIDDEN, LAYERS, LLAMA, PAD, T5, P, backbone, batch, close, output, tokens
from house.models import B, H, M, attached, infoprompt, passes, state_of
from house.runs import infoprompt_options
from softprompt import SoftPromptError
from softprompt.prompts import InstancePrompt

SIDES = ("left", "right")


LANGUAGE = [(BERT, "seq_cls"), (LLAMA, "causal_lm"), (T5, "seq2seq_lm")]


# ---------------------------------------------------------------------- a prompt per input


INSTANCE = {"generator": "instance", "placement": "deep"}


LATE = {**INSTANCE, "layers": [1, 2]}


@torch.no_grad()
def test_instance_prompts_differ_from_row_to_row_and_follow_the_formula():
    torch.manual_seed(0)
    prompt = InstancePrompt(2, M, H, 3)
    for parameter in prompt.parameters():
        nn.init.normal_(parameter)
    state = torch.randn(B, 1, H)
    parts = prompt()
    for site in range(2):
        rows = prompt.virtual(parts, site, state, None)
        assert rows.shape == (B, M, H)
        for row in range(B):
            narrow = [dot(state[row, 0].tolist(), column) for column in prompt.down.T.tolist()]
            raw = [x + d for x, d in zip(narrow, prompt.down_bias.tolist(), strict=True)]
            inner = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in raw]
            for j in range(M):
                up = prompt.up[site, :, j].T.tolist()
                expected = [
                    dot(inner, column) + u for column, u in zip(up, prompt.embedding[site, j].tolist(), strict=True)
                ]
                close(rows[row, j], torch.tensor(expected))
        assert (rows[0] - rows[1]).abs().max() > 0.1
    prompt.start_from(torch.randn(2, M, H))
    assert torch.equal(prompt.virtual(prompt(), 1, state, None), prompt.embedding[1].expand(B, -1, -1))


def test_instance_prompts_hold_their_state_fixed():
    prompt = InstancePrompt(1, M, H, 3)
    nn.init.normal_(prompt.up)
    nn.init.normal_(prompt.down)
    state = torch.randn(B, 1, H, requires_grad=True)
    prompt.virtual(prompt(), 0, state, None).sum().backward()
    assert state.grad is None and bool(prompt.down.grad.any())


def test_shapes_are_checked():
    prompt = InstancePrompt(1, M, H, 3)
    with pytest.raises(TypeCheckError):
        prompt.virtual(prompt(), 0, torch.zeros(B, H), None)
    with pytest.raises(TypeCheckError):
        prompt.start_from(torch.zeros(M, H))
    with pytest.raises(TypeCheckError):
        prompt.read(prompt.embedding, 0, torch.zeros(B, 1, H), None)


def test_a_new_instance_prompt_draws_nothing_and_declares_its_groups():
    before = torch.get_rng_state()
    prompt = InstancePrompt(2, M, H, 3)
    assert torch.equal(torch.get_rng_state(), before) and not any(bool(p.any()) for p in prompt.parameters())
    assert {name: len(group) for name, group in prompt.parameter_groups().items()} == {"prompt": 1, "generator": 3}


@pytest.mark.parametrize("where", [INSTANCE, LATE], ids=["everywhere", "late"])
@pytest.mark.parametrize("family, head", LANGUAGE, ids=str)
@torch.no_grad()
def test_an_instance_prompted_row_alone_equals_the_row_in_a_batch(family, head, where):
    model, rows = attached(backbone(family, head), infoprompt(head, **where)).eval(), tokens(9, 5, 2)
    decoder = {"decoder_input_ids": torch.arange(5, 9)[None]} if head == "seq2seq_lm" else {}

    def real_logits(inputs):
        repeated = {k: v.expand(len(inputs["input_ids"]), -1) for k, v in decoder.items()}
        out = output(model, **inputs, **repeated)
        kept = [slice(None)] * len(out) if head != "causal_lm" else inputs["attention_mask"] != 0
        return [row[where] for row, where in zip(out, kept, strict=True)]

    alone = [real_logits(batch([row]))[0] for row in rows]
    for side in SIDES:
        for one, other in zip(real_logits(batch(rows, side)), alone, strict=True):
            close(one, other)
    swapped = state_of(model).bare_states(batch(rows)).roll(1, 0)  # another row's state makes another prompt
    moved = output(model, **batch(rows), unprompted=swapped, **{k: v.expand(3, -1) for k, v in decoder.items()})
    assert (
        moved[0] - output(model, **batch(rows), **{k: v.expand(3, -1) for k, v in decoder.items()})[0]
    ).abs().max() > 1e-3


@pytest.mark.parametrize("where", [INSTANCE, LATE], ids=["everywhere", "late"])
@pytest.mark.parametrize("family", [GPT2, LLAMA, T5], ids=str)
@torch.no_grad()
def test_an_instance_prompt_generates_the_same_with_and_without_cache(family, where):
    model = attached(backbone(family, family.lm), infoprompt(family.lm, **where)).eval()
    options = dict(do_sample=False, min_new_tokens=5, max_new_tokens=5, pad_token_id=PAD)
    inputs, count = batch(tokens(9, 4), "left"), passes(model)
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, use_cache=False, **options), expected)
    count.clear()
    model.generate(**inputs, **options)  # the state is read once, before the first token
    assert len(count) == (2 if family is T5 else 1 + 5)


@pytest.mark.parametrize("family, head", [(BERT, "masked_lm"), (LLAMA, "causal_lm")], ids=str)
@torch.no_grad()
def test_a_saved_instance_prompt_gives_equal_outputs(family, head, tmp_path):
    model = attached(backbone(family, head), infoprompt(head, **INSTANCE)).eval()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {
        key.removeprefix("base_model.model.softprompt.softprompt_prompts."): tuple(v.shape) for key, v in stored.items()
    }
    assert shapes == {
        "embedding": (LAYERS, P, HIDDEN),
        "down": (HIDDEN, 5),
        "down_bias": (5,),
        "up": (LAYERS, 5, P, HIDDEN),
    }
    fresh = PeftModel.from_pretrained(backbone(family, head), tmp_path).eval()
    inputs = batch(tokens(9, 5))
    close(output(fresh, **inputs), output(model, **inputs), 1e-6)
    for key, value in softprompt.read_prompt(tmp_path).named_parameters():
        assert torch.equal(value, stored[f"base_model.model.softprompt.softprompt_prompts.{key}"])
    with pytest.raises(SoftPromptError, match="a prompt that depends on the input has no constant form"):
        softprompt.collapse(model)


# ---------------------------------------------------------------------- runs


def test_an_instance_run_predicts_after_a_reload(encoder, few_animals, tmp_path):
    result = softprompt.train(
        infoprompt_options(encoder, few_animals, tmp_path / "out", generator="instance", bottleneck=6)
    )
    predictor = softprompt.Predictor(tmp_path / "out")
    assert len(state_of(predictor.model).objectives) == 0
    task = softprompt.load_task(few_animals)
    assert predictor.evaluate(task.test)["accuracy"] == pytest.approx(result.metrics["test accuracy"])
    together = predictor.predict([{"text": "red dog runs"}, {"text": "blue cat sits now here"}])
    alone = [predictor.predict([{"text": text}])[0] for text in ("red dog runs", "blue cat sits now here")]
    for one, other in zip(together, alone, strict=True):
        assert one["label"] == other["label"] and one["scores"] == pytest.approx(other["scores"], abs=1e-4)


def test_an_instance_prompt_is_drawn_from_the_generator_and_its_generator_learns_at_a_tenth() -> None:
    drawn = []
    for seed in (1, 1, 2):
        prompt = InstancePrompt(2, M, H, 3)
        torch.nn.init.ones_(prompt.down_bias)
        prompt.start_from(torch.zeros(2, M, H), torch.Generator().manual_seed(seed))
        assert not prompt.down_bias.any()
        drawn.append(prompt.down)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert prompt.rate_factors == {"generator": 0.1}
