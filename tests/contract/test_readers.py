"""Contract: a prompt that reads its input reads what it is given and never the answer."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

import softprompt
from house.batches import training_inputs
from house.families import BERT, DECODERS, FAMILIES, FIRST, LLAMA, PAD, VOCAB, P, batch, close, output, prompted, tokens
from softprompt import SoftPromptError
from softprompt.tuner.placing.layout import Layout


@contextmanager
def entered(model, inputs):
    """Inside, note what stands at the prompt positions as it enters each layer; a list of [B, P, H] per pass."""
    found, seen = softprompt.tuner.find_backbone(model.get_base_model()), []

    def note(layer, args):
        if layer is found.layers[0]:
            seen.append([])
        mask, length = inputs["attention_mask"], args[0].shape[1] - P
        mask = F.pad(mask, (0, length - mask.shape[1]), value=1)  # generate without a cache reads its own words again
        seen[-1].append(Layout.of(P, mask, found.causal).prompt(args[0]))

    hooks = [layer.register_forward_pre_hook(note) for layer in found.layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def pass_of(model, inputs):
    """Prompt rows by layer [L, B, P, H], and logits, of one pass."""
    with entered(model, inputs) as passes:
        logits = output(model, **inputs)
    (rows,) = passes
    return torch.stack(rows), logits


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", ["spt_all", "spt_last", "spt_gated"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_a_prompt_in_a_causal_model_does_not_read_the_answer(name, method, side):
    model, inputs = prompted(FAMILIES[name], "causal_lm", method, consistency=0.0).train(), batch(tokens(12, 9), side)
    mask = inputs["attention_mask"]
    order = mask.cumsum(1) * mask  # the t-th real token
    source = (order > 0) & (order <= 5)
    labels = inputs["input_ids"].masked_fill(source | (mask == 0), -100)
    rows, logits = pass_of(model, {**inputs, "labels": labels})

    answer = torch.where(labels == -100, inputs["input_ids"], (inputs["input_ids"] + 7) % (VOCAB - FIRST) + FIRST)
    assert not torch.equal(answer, inputs["input_ids"])
    changed = {**inputs, "input_ids": answer, "labels": torch.where(labels == -100, labels, answer)}
    same_rows, same_logits = pass_of(model, changed)
    assert torch.equal(same_rows, rows)
    close(same_logits[source], logits[source], 1e-6)
    assert (same_logits - logits)[~source & mask.bool()].abs().max() > 1e-2

    asked = torch.where(order == 3, (inputs["input_ids"] + 7) % (VOCAB - FIRST) + FIRST, inputs["input_ids"])
    other_rows, other_logits = pass_of(model, {**inputs, "input_ids": asked, "labels": labels})
    assert (other_rows[-1] - rows[-1]).abs().amax((1, 2)).min() > 1e-3
    assert (other_logits - logits)[order == 2].abs().max() > 1e-3  # through the prompt: attention is causal


@torch.no_grad()
def test_every_row_gets_its_own_prompt():
    """Not every row's prompt from the first row; and equal rows get equal prompts, wherever they stand."""
    row, other = tokens(9, 9)
    rows, _ = pass_of(prompted(BERT, "seq_cls", "spt_all"), batch([row, other, row]))
    close(rows[:, 0], rows[:, 2], 1e-6)
    assert (rows[:, 0] - rows[:, 1]).abs().amax((1, 2)).min() > 1e-2


def test_training_a_causal_model_needs_labels():
    model = prompted(LLAMA, "causal_lm", "spt").train()
    with pytest.raises(SoftPromptError) as caught:
        model(**batch(tokens(5)))
    assert str(caught.value) == (
        "a generated prompt reads the source of a causal language model and needs labels to know it: "
        "expected labels with -100 on the source, got none; pass labels to the model."
    )
    model(**training_inputs(LLAMA, "causal_lm")).loss.backward()


@pytest.mark.parametrize("method", ["spt_all", "spt_last"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_generate_reads_only_the_given_text(name, method):
    """Without a cache the prompt is made anew for every word, from the same text; with one it is made once."""
    model, inputs = prompted(FAMILIES[name], "causal_lm", method), batch(tokens(13, 4), "left")
    options = {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5, "pad_token_id": PAD}
    with entered(model, inputs) as passes:
        words = model.generate(**inputs, use_cache=False, **options)
    rows = [layers[-1] for layers in passes]
    assert len(rows) == 5
    for later in rows[1:]:
        close(later, rows[0])
    assert torch.equal(model.generate(**inputs, **options), words)
    # scoring the same words with labels gives what was generated
    mask = F.pad(inputs["attention_mask"], (0, 5), value=1)
    labels = words.index_fill(1, torch.arange(inputs["input_ids"].shape[1]), -100)
    scored = output(model, input_ids=words, attention_mask=mask, labels=labels)
    assert torch.equal(scored.argmax(-1)[:, -6:-1], words[:, -5:])


@pytest.mark.parametrize("family", [f for f in DECODERS if "seq_cls" in f.heads], ids=str)
@torch.no_grad()
def test_a_classifier_on_a_causal_stack_reads_all_tokens(family):
    model, inputs = prompted(family, "seq_cls", "spt_all").train(), batch(tokens(9, 9))
    rows, _ = pass_of(model, {**inputs, "labels": torch.tensor([0, 1])})
    for at in (0, 5, 8):
        changed = inputs["input_ids"].clone()
        changed[:, at] = (changed[:, at] + 7) % (VOCAB - FIRST) + FIRST
        other, _ = pass_of(model, {**inputs, "input_ids": changed})
        assert (other[0] - rows[0]).abs().amax((1, 2)).min() > 1e-4
