"""Mechanisms act, on the real encoder with a probe and on the real masked language model with label words: what they add is there after
training, and gone when it is switched off."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModel, AutoModelForMaskedLM

import softprompt
from softprompt import objective
from softprompt.cli.demo.arms import LANGUAGE_MODEL
from softprompt.data import Verbalizer, batches, encode_classification, load_task
from softprompt.models import PooledClassifier, VerbalizedClassifier, embedded_backbone
from softprompt.models.places import load_tokenizer
from softprompt.models.probe import start_from_probe
from softprompt.objectives import HeadInformation, TSLoss, info_nce
from softprompt.tuner import evaluating, prompts_of

P, STEPS, RATE = 8, 16, 0.01


ASKED = LANGUAGE_MODEL.options["queue"]  # the template and the label words of the demo


def probed(task):
    """Rows, and a maker of a model whose head starts from a probe."""
    tokenizer = load_tokenizer("minilm")
    train, held = (encode_classification(tokenizer, rows, max_length=16) for rows in (task.train, task.test))

    def start():
        base = PooledClassifier(AutoModel.from_pretrained(embedded_backbone()), task.label_names, "mean").eval()
        start_from_probe(base, {"train": train}, tokenizer)
        return base

    return tokenizer, train, held, start


def worded(task):
    """Rows in a template, and a maker of a model that reads label words."""
    tokenizer = load_tokenizer("masked-lm")
    verbalizer = Verbalizer(tokenizer, ASKED["template"], ASKED["label_words"], task.label_names)
    train, held = (verbalizer.encode(rows, max_length=20) for rows in (task.train, task.test))

    def start():
        model = AutoModelForMaskedLM.from_pretrained(embedded_backbone("masked-lm"))
        return VerbalizedClassifier(model, verbalizer).eval()

    return tokenizer, train, held, start


@pytest.fixture(scope="module", params=[probed, worded], ids=["probe", "label words"])
def place(request):
    """Rows of the shipped messages: eight of each class for training, others held out."""
    task = load_task("messages", shots=8, seed=0)
    task = replace(task, test=task.test.select(range(48)))
    tokenizer, train, held, start = request.param(task)
    return SimpleNamespace(tokenizer=tokenizer, train=train, held=held, start=start)


def fitted(place, config, steps=STEPS):
    """A model after ``steps`` of training on batches of 8."""
    torch.manual_seed(0)
    model = get_peft_model(place.start(), config)
    state, order = prompts_of(model), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(softprompt.parameter_groups(model, RATE, head_learning_rate=1e-3))
    next(model.train().get_base_model().children()).eval()  # the backbone: no dropout
    objectives = state.active_objectives()
    for step in range(steps):
        chosen = torch.randperm(len(place.train), generator=order)[:8].tolist()
        (batch,) = batches(place.train.select(chosen), place.tokenizer, "classification", 8)
        if objectives is not None:
            objectives.progress, objectives.step = step / steps, step
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def config(method, *args, **options):
    return getattr(softprompt, method)(*args, task_type="SEQ_CLS", init_seed=0, **options)


@pytest.fixture(scope="module")
def plain(place):
    return fitted(place, config("prompt_tuning", P))


def virtual(model):
    return prompts_of(model).active_prompt().prefix()[0].detach()


# ---------------------------------------------------------------------- EPT


@pytest.fixture(scope="module")
def fused(place):
    return fitted(place, config("ept", P, rank=4, max_positions=16))


def test_the_fusion_attends(fused):
    """The attention tells rows of the memory apart, and virtual tokens from each other; what it adds is no rounding."""
    prompt = prompts_of(fused).active_prompt()
    acted = prompt.mechanism()
    assert acted["fusion_entropy"] < 0.98
    assert acted["fusion_norm"] > 0.02 * acted["short_norm"]
    added = (prompt._fused() - prompt.short)[0].detach()
    assert (added - added.mean(0)).norm() > 0.2 * added.norm()


def test_products_of_small_vectors_do_not(place, fused):
    """The old form on the same trained values: uniform to four digits, one vector for all virtual tokens."""
    old = get_peft_model(
        place.start(),
        config("ept", P, rank=4, max_positions=16, fusion_scores="dot"),
    )
    prompt = prompts_of(old).active_prompt()
    prompt.load_state_dict(prompts_of(fused).active_prompt().state_dict())
    assert prompt.mechanism()["fusion_entropy"] > 0.9999
    added = (prompt._fused() - prompt.short)[0].detach()
    assert (added - added.mean(0)).norm() < 0.02 * added.norm()


def test_projection_and_gate_act_beside_the_short_prompt(fused):
    acted = prompts_of(fused).active_prompt().mechanism()
    assert 0.005 * acted["short_norm"] < acted["projection_norm"] < acted["short_norm"]
    assert max(acted["gates"]) - min(acted["gates"]) > 0.01


@torch.no_grad()
def test_each_part_of_ept_changes_what_is_predicted(place, fused):
    """The trained values without a part of the construction give other logits, beyond rounding."""
    (batch,) = batches(place.held.select(range(16)), place.tokenizer, "classification", 16)
    prompt, whole = prompts_of(fused).active_prompt(), fused(**batch).logits
    kept = {name: value.clone() for name, value in prompt.state_dict().items()}
    prompt.fusion_memory = "none"
    moved = {"fusion": (fused(**batch).logits - whole).abs().max()}
    prompt.fusion_memory = "product"
    for part, name in (("projection", "space_up"), ("gate", "gate_weight"), ("low-rank pair", "lowrank_b")):
        getattr(prompt, name).zero_()
        moved[part] = (fused(**batch).logits - whole).abs().max()
        prompt.load_state_dict(kept)
    assert torch.equal(fused(**batch).logits, whole)
    assert all(size > 5e-4 for size in moved.values()), moved


# ---------------------------------------------------------------------- InfoPrompt


@torch.no_grad()
def head_bound(model, place):
    """log(1 + K) - L of the head term on held-out rows, in nats."""
    batch = next(iter(batches(place.held, place.tokenizer, "classification", len(place.held))))
    with evaluating(model):
        seen = prompts_of(model).observe(model.get_base_model(), frozenset({"head_rows"}), **batch)
    positive, negative, valid = HeadInformation().compared(seen)
    return ((1 + valid.sum(1)).log() - info_nce(positive, negative, valid)).mean().item()


def test_the_head_term_moves_its_bound_on_rows_it_has_not_seen(place, plain):
    """Beside the task's loss and on a head from a probe, where the paper's own form has no gradient."""
    informed = fitted(place, config("infoprompt", P, share=0.3))
    assert head_bound(informed, place) > head_bound(plain, place) + 0.3
    exact = fitted(place, config("infoprompt", P, exact=True), steps=1)
    objectives = prompts_of(exact).active_objectives()
    shares = {name: share.item() for name, share in objectives.measured.items()}
    assert shares["head_information"] < 1e-3 and shares["representation_information"] < 0.05
    assert shares["latent_divergence"] > max(
        0.02, 20 * shares["head_information"]
    )  # what the paper's code follows here is its regulariser


# ---------------------------------------------------------------------- shapes


def value(model, term):
    seen = SimpleNamespace(virtual={0: virtual(model)[None]})
    return term(seen, torch.nn.ModuleDict()).item()


def test_ts_loss_moves_what_it_names(place, plain):
    """Beside the task's loss; without it the shape goes its own way."""
    shaped = fitted(place, config("tsloss", P))
    for part, left in (({"l2": 0.0, "l1": 1.0}, 0.5), ({"l1": 0.0, "l2": 1.0}, 0.9)):
        assert value(shaped, TSLoss(**part)) < left * value(plain, TSLoss(**part))
    assert torch.pdist(virtual(shaped)).mean() > 0.5 * torch.pdist(virtual(plain)).mean()


def test_persistence_moves_its_statistic_and_keeps_the_prompt_apart(place, plain):
    even = fitted(place, config("prompt_tuning", P, objectives=[objective("persistence", share=0.3)]))
    term = objective_of(even)
    assert value(even, term) < 0.8 * value(plain, term)
    assert torch.pdist(virtual(even)).mean() > 0.5 * torch.pdist(virtual(plain)).mean()


def objective_of(model):
    return prompts_of(model).active_objectives().objectives[0]
