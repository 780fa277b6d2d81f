"""How gates step: ranked by the sizes of gradients, and, on random encoders, by how much a prompt helps at a layer."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from peft import get_peft_model

import softprompt
from house.families import BERT, FIRST, HIDDEN, VOCAB, P, close
from house.models import gated, prompt_of
from softprompt import LayerSearch


def on_slopes(monkeypatch, optimizer, slopes, steps, noise=0.0):
    """Search on a loss that falls by ``slopes`` [D] with alpha, whose gradients so never change sign; return alpha."""
    model, draw = gated(BERT, "seq_cls", gate_optimizer=optimizer), torch.Generator().manual_seed(0)
    search = LayerSearch(model)
    search.logits.zero_()

    def loss(**batch):
        drawn = slopes * (1 + noise * torch.randn(slopes.shape, generator=draw))
        return SimpleNamespace(loss=-(drawn * search.logits).sum())

    monkeypatch.setattr(model, "forward", loss)
    for _ in range(steps):
        search.search_step({})
    return search.logits.detach()


SLOPES = torch.tensor([0.01, 1.0, 0.1])


def test_shared_gates_end_in_the_order_of_their_gradients(monkeypatch):
    alpha = on_slopes(monkeypatch, "shared", SLOPES, 30)
    assert alpha.argsort().tolist() == SLOPES.argsort().tolist()
    assert alpha.sum().abs() < 1e-4  # they compete
    apart = SLOPES - SLOPES.mean()
    close(alpha, 30 * 0.1 * apart / apart.square().mean().sqrt(), 1e-3)  # and on one scale
    assert alpha.sigmoid().max() - alpha.sigmoid().min() > 0.5  # 30 steps are a small run, and suffice
    close(on_slopes(monkeypatch, "shared", 1000 * SLOPES, 30), alpha, 1e-4)  # whatever the size of the loss


def test_noise_that_leaves_the_means_leaves_the_order_of_shared_gates(monkeypatch):
    alpha = on_slopes(monkeypatch, "shared", SLOPES, 100, noise=3.0)
    assert alpha.argsort().tolist() == SLOPES.argsort().tolist()


def test_adam_gates_saturate_at_one_rate_a_step(monkeypatch):
    """The flaw that "shared" is there for: gradients of 1 and 0.01 end at the same gate."""
    close(on_slopes(monkeypatch, "adam", SLOPES, 30), torch.full((3,), 30 * 0.01), 1e-4)


DEPTH, LENGTH = 4, 6


def planted(seed, worth, **options):
    """A random frozen encoder, its head included, in which a prompt can help at the layers of ``worth`` only.

    ``worth`` is the share of attention's weights with which the tokens see the prompt positions there. In the other
    layers they do not see them; instead they are disturbed by what stands there, in a direction drawn anew in every pass,
    so that these gates have gradients too. What layers put out at the prompt positions is dropped. The prompt starts at
    zero, as what propagates. The head cannot learn, and its threshold is three standard deviations off, so that at the
    start half of the rows are right.
    """
    draw = torch.Generator().manual_seed(seed)
    base = tf.BertForSequenceClassification(BERT.config(num_hidden_layers=DEPTH, num_labels=2))
    with torch.no_grad():
        for key, parameter in base.named_parameters():
            noise, wide = torch.randn(parameter.shape, generator=draw), parameter.dim() > 1
            parameter.copy_((0.5 if "embed" in key else 0.2) * noise if wide else parameter + 0.1 * noise)
    # not SEQ_CLS, which would train the head
    given = {"bottleneck": 4, "consistency": 0.1, "task_type": "FEATURE_EXTRACTION", "init_seed": seed, **options}
    model = get_peft_model(base.eval(), softprompt.spt(P, **given))
    prompt, layers = prompt_of(model), base.bert.encoder.layer

    def prompt_positions(hidden):
        position = torch.arange(hidden.shape[1])
        return position >= LENGTH if prompt.is_late() else position < hidden.shape[1] - LENGTH

    shut = torch.finfo(torch.float32).min

    def seen(share, hidden):
        """What is added to scores: the prompt positions see everything, the tokens see them with a share."""
        own = prompt_positions(hidden)
        added = math.log(share) if share else shut
        return torch.zeros(len(own), len(own)).masked_fill(own & ~own[:, None], added)[None, None]

    def dim(share):
        def before(layer, args):
            hidden, mask, *rest = args
            if share and mask is not None:  # the library's, which shuts the prompt out below its first layer
                closed = torch.zeros(mask.shape).masked_fill(~mask, shut) if mask.dtype == torch.bool else mask
                return (hidden, (closed + seen(share, hidden)).clamp(min=shut), *rest)
            return (hidden, seen(share, hidden), *rest)

        return before

    def disturb(layer, args, out):
        own = prompt_positions(out)
        read, write = torch.randn(2, HIDDEN, generator=draw)
        push = (args[0][:, own].mean(1) @ read / HIDDEN**0.5)[:, None, None] * write
        return out + 0.3 * push * (~own)[:, None]

    for i, layer in enumerate(layers):
        if worth.get(i) != 1:
            layer.register_forward_pre_hook(dim(worth.get(i, 0)))
        if i not in worth:
            layer.register_forward_hook(disturb)
        layer.register_forward_hook(lambda _, args, out: out.masked_fill(prompt_positions(out)[:, None], 0))
    rows = torch.randint(FIRST, VOCAB, (256, LENGTH), generator=draw)
    with torch.no_grad():
        prompt.embedding.zero_()
        logits = base(input_ids=rows).logits
        margin = logits[:, 1] - logits[:, 0]
        base.classifier.weight /= margin.std()
        base.classifier.bias /= margin.std()
        base.classifier.bias[1] -= margin.median() / margin.std() + 3
    return model, rows, (margin > margin.median()).long(), draw


def search_planted(seed, worth, steps, **options):
    """The search after its last step."""
    model, rows, labels, draw = planted(seed, worth, **options)
    search = LayerSearch(model.train())
    optimizer = torch.optim.AdamW(softprompt.parameter_groups(model, 0.02), weight_decay=0.0)
    torch.manual_seed(seed)  # sub-networks

    def drawn(first, last):
        picked = torch.randint(first, last, (32,), generator=draw)
        return {"input_ids": rows[picked], "labels": labels[picked]}

    for _ in range(steps):
        optimizer.zero_grad()
        model(**drawn(0, 128)).loss.backward()
        optimizer.step()
        search.search_step(drawn(128, 256))
    return search


def found_layer(seed, steps, **options):
    """The layer that the search finds by its gates, and the one that was planted."""
    at = seed % DEPTH
    return search_planted(seed, {at: 1.0}, steps, **options).select(1).layers[0], at


@pytest.mark.parametrize("decoupled", [True, False], ids=["decoupled", "soft"])
def test_the_search_finds_the_layer_where_a_prompt_helps(decoupled):
    found = [found_layer(seed, 12, decoupled_gates=decoupled) for seed in range(10)]
    assert sum(layer == at for layer, at in found) >= 9, found


def test_without_a_search_the_layer_is_not_found():
    """Negative control: equal gates give the lowest layer, wherever the planted one is."""
    assert [found_layer(seed, 0) for seed in range(4)] == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_gates_tell_two_useful_layers_from_others_and_the_better_from_the_worse():
    """Eight tasks, which differ in the layers that help; one of the two is seen with a tenth of the weights."""
    pairs = [(0, 1), (1, 2), (2, 3), (3, 0), (1, 0), (2, 1), (3, 2), (0, 3)]
    useful, first, apart = [], [], []
    for seed, (better, worse) in enumerate(pairs):
        search = search_planted(seed, {better: 1.0, worse: 0.1}, 12)
        gates = search.gates
        useful.append(search.select(2).layers == sorted((better, worse)))
        first.append(search.select(1).layers == [better])
        apart.append(gates[better] - min(gates))
    assert sum(useful) >= 7 and sum(first) >= 6, (useful, first)
    assert min(apart) > 0.25, apart  # twelve steps of AdamW at 0.01 could not move a gate by more than 0.03
