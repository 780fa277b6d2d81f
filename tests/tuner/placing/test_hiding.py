"""Tokens do not see a prompt before its first layer, and nothing is kept for backward below it."""

from __future__ import annotations

import pytest
import torch

import softprompt
from house.batches import inputs_for
from house.families import (
    BERT,
    FAMILIES,
    LAYERS,
    LLAMA,
    T5,
    P,
    backbone,
    batch,
    close,
    output,
    prompted,
    tokens,
    with_decoder,
)
from softprompt.tuner.placing.layout import Layout

EVERY = tuple(FAMILIES.values())


def token_states(model, inputs, late=None):
    """What each layer of the stack puts out at the input's own positions; ``late`` of a prompted model."""
    found = softprompt.tuner.find_backbone(getattr(model, "get_base_model", lambda: model)())
    outputs = []
    hooks = [
        layer.register_forward_hook(lambda _, args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for layer in found.layers
    ]
    try:
        output(model, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if late is None:
        return outputs
    layout = Layout.of(P, inputs["attention_mask"], found.causal, late and found.hidden_behind)
    return [layout.remove(states) for states in outputs]


def attentions(family):
    return ("eager", "sdpa") if backbone(family, family.lm)._supports_sdpa else ("eager",)


@pytest.mark.parametrize("family, kind", [(f, k) for f in EVERY for k in attentions(f)], ids=str)
@torch.no_grad()
def test_tokens_do_not_see_the_prompt_before_its_first_layer(family, kind):
    """Alone and padded on either side, against each row alone in the bare backbone; from the first layer on they do."""
    head, rows = family.lm, tokens(13, 6)
    bare = backbone(family, head)
    bare.set_attn_implementation(kind)
    expected = [token_states(bare, with_decoder(family, head, batch([row]))) for row in rows]
    for first in (1, 2):
        model = prompted(family, head, "spt", layers=[first])
        model.get_base_model().set_attn_implementation(kind)
        batches = [(batch(rows, side), rows) for side in ("right", "left")] + [(batch([row]), [row]) for row in rows]
        for inputs, own in batches:
            actual = token_states(model, with_decoder(family, head, inputs), late=True)
            for at, row in enumerate(own):
                reference = expected[0 if row is rows[0] else 1]
                real = inputs["attention_mask"][at].bool()
                for i in range(LAYERS):
                    if i < first:
                        close(actual[i][at][real], reference[i][0])
                    else:
                        assert (actual[i][at][real] - reference[i][0]).abs().max() > 1e-3


@pytest.mark.parametrize("family", [BERT, LLAMA, T5], ids=str)
def test_nothing_is_kept_for_backward_below_the_first_layer(family):
    head = family.lm
    inputs = inputs_for(family, head, 9, 5)
    for first in range(LAYERS):
        model = prompted(family, head, "spt", layers=[first]).train()
        kept, running = dict.fromkeys(range(LAYERS), 0), [-1]
        for i, layer in enumerate(softprompt.tuner.find_backbone(model.get_base_model()).layers):
            layer.register_forward_pre_hook(lambda *_, i=i, running=running: running.append(i), prepend=True)
            layer.register_forward_hook(lambda *_, running=running: running.append(-1))

        def count(tensor, kept=kept, running=running):
            if running[-1] >= 0:
                kept[running[-1]] += 1
            return tensor

        if family is LLAMA:
            inputs = {**inputs, "labels": inputs["input_ids"].clone().index_fill(1, torch.arange(5), -100)}
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output(model, **inputs).sum().backward()
        assert [kept[i] > 0 for i in range(LAYERS)] == [i >= first for i in range(LAYERS)], (first, kept)
