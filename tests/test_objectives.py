"""Objectives: values, bounds and gradients, what they add to a loss, critics, states computed once, InfoPrompt."""

import copy
import dataclasses
import json
import logging
import math
import statistics

import pytest
import torch
import transformers as tf
from datasets import Dataset
from jaxtyping import TypeCheckError
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file
from torch import nn

import softprompt
import tiny
from families import FAMILIES, HIDDEN, LAYERS, PAD, TASK, VOCAB, P, backbone, batch, close, output, stir, tokens
from families import config as of_method
from softprompt import SoftPromptError, objective
from softprompt.objectives import OBJECTIVES, PromptedOutput, build_objectives, info_nce
from softprompt.objectives.information import Latent
from softprompt.prompts import InstancePrompt
from softprompt.training.prepare import prepare
from softprompt.tuner.call import Mode
from softprompt.tuner.passes import BARE

BERT, GPT2, LLAMA, T5 = (FAMILIES[name] for name in ("bert", "gpt2", "llama", "t5"))
TERMS = ("head_information", "representation_information", "latent_divergence")
WEIGHTS = dict(zip(TERMS, (0.1, 0.2, 0.1), strict=True))
CRITIC_SHAPES = {"mu": 2, "log_sigma": 2, "out": 1, "context": 2}  # parameters of each linear layer
SIDES = ("left", "right")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unprompted"


# ---------------------------------------------------------------------- values, by hand

B, S, H, C, M, Z, DRAWS = 3, 5, 4, 3, 2, 3, 6  # M virtual tokens, Z latent coordinates
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).bool()  # full, padded right, padded left


def shown(shared=False, dtype=torch.float32, **changed):
    """A pass on three rows as objectives see it."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    made = {
        "virtual": {0: draw(1 if shared else B, M, H), 2: draw(1, M, H)},
        "tokens": draw(B, S, H),
        "real": REAL,
        "representation": draw(B, H),
        "unprompted": draw(B, H),
        "head_rows": draw(C, H),
    }
    return PromptedOutput(**{**made, **changed})


def built(name, **fields):
    """A set with one objective of weight 1, its critic drawn from a seed."""
    return build_objectives([objective(name, **{"weight": 1.0, **fields})], H, seed=0)


def term(made, seen, seed=5):
    torch.manual_seed(seed)
    total, terms = made(seen)
    close(total, *terms.values(), 0)
    return total


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def mean(vectors):
    return [mean_of(values) for values in zip(*vectors, strict=True)]


def mean_of(values):
    return sum(values) / len(values)


def linear(layer, x):
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [dot(row, x) + b for row, b in zip(layer.weight.tolist(), bias, strict=True)]


def nce(positive, candidates):
    return -math.log(math.exp(positive) / sum(math.exp(score) for score in [positive, *candidates]))


def real_tokens(seen, row):
    return [token for token, real in zip(seen.tokens[row].tolist(), seen.real[row].tolist(), strict=True) if real]


def own_tokens(seen, row, prompt):
    return real_tokens(seen, row)


def gaussian(seen, row, prompt):
    torch.manual_seed(5)
    noise = torch.randn(B, DRAWS, H)[row].tolist()
    spread = statistics.stdev(prompt)
    return [[p + spread * e for p, e in zip(prompt, draw, strict=True)] for draw in noise]


def every_row(seen, row, prompt):
    return [mean(found) for found in (real_tokens(seen, other) for other in range(B)) if found]


def head_by_hand(seen, candidates):
    """The loss of each row."""
    head = mean(seen.head_rows.tolist())
    losses = []
    for row in range(B):
        rows = seen.virtual[0]
        prompt = mean(rows[row if len(rows) > 1 else 0].tolist())
        scores = [dot(x, head) / math.sqrt(H) for x in (prompt, *candidates(seen, row, prompt))]
        losses.append(nce(scores[0], scores[1:]))
    return losses


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "negatives, by_hand", [("own_tokens", own_tokens), ("gaussian", gaussian), ("batch", every_row)]
)
def test_head_information_equals_its_formula(negatives, by_hand, shared):
    seen = shown(shared)
    found = term(built("head_information", negatives=negatives, samples=DRAWS), seen)
    assert found.item() == pytest.approx(mean_of(head_by_hand(seen, by_hand)), rel=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_representation_information_equals_its_formula(shared):
    """The candidates are 4 B draws around the same input's own unprompted state."""
    seen, made = shown(shared), built("representation_information", latent=Z)
    critic = made.critics[f"latent{Z}"]
    torch.manual_seed(5)
    noise = {"representation": torch.randn(B, 1, Z), "unprompted": torch.randn(B, 4 * B, Z)}
    losses = []
    for row in range(B):
        rows = seen.virtual[0]
        context = linear(critic.context, mean(rows[row if len(rows) > 1 else 0].tolist()))
        scores = []
        for name, draws in noise.items():
            state = getattr(seen, name)[row].tolist()
            mu, log_sigma = linear(critic.mu, state), linear(critic.log_sigma, state)
            for draw in draws[row].tolist():
                z = [m + math.exp(min(max(s, -2), 10)) * e for m, s, e in zip(mu, log_sigma, draw, strict=True)]
                scores.append(dot(linear(critic.out, z), context) / math.sqrt(H))
        assert len(scores) == 1 + 4 * B
        losses.append(nce(scores[0], scores[1:]))
    assert term(made, seen).item() == pytest.approx(mean_of(losses), rel=1e-5)


def test_latent_divergence_equals_its_closed_form():
    """One coordinate of log sigma lies below its clamp of -2 and one above 10."""
    seen, made = shown(), built("latent_divergence", latent=Z)
    critic = made.critics[f"latent{Z}"]
    with torch.no_grad():
        critic.log_sigma.bias.copy_(torch.tensor([-30.0, 0.0, 30.0]))
    expected = 0.0
    for states in (seen.representation, seen.unprompted):
        for state in states.tolist():
            for mu, raw in zip(linear(critic.mu, state), linear(critic.log_sigma, state), strict=True):
                log_sigma = min(max(raw, -2), 10)
                expected += (0.5 * (mu**2 + math.exp(2 * log_sigma) - 1) - log_sigma) / B
    assert term(made, seen).item() == pytest.approx(expected, rel=1e-5)
    own = torch.distributions.Normal(
        *(f(x) for f, x in zip((lambda m: m, torch.exp), critic.moments(seen.representation), strict=True))
    )
    unit = torch.distributions.Normal(0.0, 1.0)
    alike = shown(unprompted=seen.representation)
    close(term(made, alike), 2 * torch.distributions.kl_divergence(own, unit).sum(-1).mean())


def test_info_nce_counts_valid_candidates_only():
    positive, negative = torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 2.0, 3.0], [0.0, -2.0, 4.0]])
    valid = torch.tensor([[True, False, True], [False, True, False]])
    expected = [nce(0.5, [1.0, 3.0]), nce(-1.0, [-2.0])]
    close(info_nce(positive, negative, valid), torch.tensor(expected))
    close(info_nce(positive, negative), torch.tensor([nce(0.5, [1.0, 2.0, 3.0]), nce(-1.0, [0.0, -2.0, 4.0])]))


def test_a_row_without_a_candidate_gives_zero_and_no_gradient():
    positive = torch.tensor([3.0, -7.0], requires_grad=True)
    loss = info_nce(positive, torch.randn(2, 4), torch.zeros(2, 4, dtype=torch.bool))
    assert torch.equal(loss, torch.zeros(2))
    loss.sum().backward()
    assert torch.equal(positive.grad, torch.zeros(2))
    real = REAL.clone()
    real[1] = False
    seen = shown(real=real)
    losses = head_by_hand(seen, own_tokens)
    assert losses[1] == 0
    assert term(built("head_information"), seen).item() == pytest.approx(mean_of(losses), rel=1e-5)
    expected = mean_of(head_by_hand(seen, every_row))  # and it stands for no candidate of the others
    assert term(built("head_information", negatives="batch"), seen).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("negatives", ["own_tokens", "gaussian", "batch"])
def test_padding_is_no_candidate(negatives):
    seen = shown()
    elsewhere = shown(tokens=torch.where(REAL.unsqueeze(-1), seen.tokens, torch.tensor(1e4)))
    made = built("head_information", negatives=negatives)
    assert torch.equal(term(made, seen), term(made, elsewhere))
    counted = made.objectives[0].scores(seen)[2].sum(1).tolist()
    assert counted == {"own_tokens": [5, 3, 3], "gaussian": [32] * B, "batch": [B] * B}[negatives]


def test_the_prompt_is_no_candidate_of_its_own():
    """A prompt that scores as each of n tokens does is one among n + 1."""
    same = torch.ones(B, M, H)
    seen = shown(virtual={0: same}, tokens=torch.ones(B, S, H))
    assert term(built("head_information"), seen).item() == pytest.approx((math.log(6) + 2 * math.log(4)) / 3, rel=1e-5)


# ---------------------------------------------------------------------- gradients


@pytest.fixture
def in_double(monkeypatch):
    """Objectives compute in float32 whatever the backbone's precision is; here they leave float64 as it is."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("negatives", ["own_tokens", "gaussian", "batch"])
def test_gradients_of_head_information(negatives):
    made = built("head_information", negatives=negatives, samples=DRAWS).double()
    seen = shown(dtype=torch.float64)

    def loss(rows, head_rows):
        return term(made, shown(dtype=torch.float64, virtual={0: rows}, head_rows=head_rows))

    inputs = [x.clone().requires_grad_() for x in (seen.virtual[0], seen.head_rows)]
    if negatives == "gaussian":  # draws stand around the detached prompt: only the head's gradient is the function's
        assert torch.autograd.gradcheck(lambda head_rows: loss(seen.virtual[0], head_rows), inputs[1])
    else:
        assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", TERMS[1:])
def test_gradients_of_representation_and_critic(name):
    made, seen = built(name, latent=Z).double(), shown(dtype=torch.float64)
    names, values = zip(*made.named_parameters(), strict=True)
    used = [k for k in names if name == TERMS[1] or ".mu." in k or ".log_sigma." in k]

    def loss(representation, *parameters):
        torch.manual_seed(5)
        now = shown(dtype=torch.float64, representation=representation)
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (now,))[0]

    inputs = [seen.representation.clone().requires_grad_(), *(v.detach().requires_grad_() for v in values)]
    assert torch.autograd.gradcheck(loss, inputs)
    found = torch.autograd.grad(loss(*inputs), inputs[1:], allow_unused=True)
    # a shift of mu moves every score of a row alike, so mu's bias has no gradient of the bound
    moved = {k for k, g in zip(names, found, strict=True) if g is not None and g.abs().max() > 1e-9}
    assert moved == set(used) - ({k for k in used if k.endswith("mu.bias")} if name == TERMS[1] else set())


def test_representation_information_reaches_the_prompt_through_the_state_alone():
    rows, state = torch.randn(B, M, H, requires_grad=True), torch.randn(B, H, requires_grad=True)
    seen = shown(virtual={0: rows}, representation=state)
    term(built("representation_information", latent=Z), seen).backward()
    assert rows.grad is None and bool(state.grad.any())


@pytest.mark.parametrize("negatives", ["own_tokens", "gaussian", "batch"])
def test_head_information_reaches_prompt_and_head_but_no_draw(negatives):
    rows, head = torch.randn(B, M, H, requires_grad=True), torch.randn(C, H, requires_grad=True)
    made = built("head_information", negatives=negatives)
    seen = shown(virtual={0: rows}, head_rows=head)
    term(made, seen).backward()
    assert bool(rows.grad.any()) and bool(head.grad.any())
    torch.manual_seed(5)
    positive, candidates, _ = made.objectives[0].scores(seen)
    assert torch.autograd.grad(positive.sum(), rows, retain_graph=True)[0].any()
    assert torch.autograd.grad(candidates.sum(), rows, allow_unused=True)[0] is None


def test_what_rounding_leaves_of_a_probes_rows_is_nothing():
    """A probe's rows sum to 0, and those of all-MiniLM-L6-v2 reach 1e30: a rest of 1e23 would be all that the loss sees."""
    first, second = torch.randn(2, H)
    first[1], second[1] = 1e30, -3e29
    rows = torch.stack([first, second, -(first + second)])
    rows[2, 1] *= 1 + 2e-7
    assert rows.mean(0)[1].abs() > 1e22
    prompt, head = torch.randn(B, M, H, requires_grad=True), rows.requires_grad_()
    loss = term(built("head_information"), shown(virtual={0: prompt}, head_rows=head))
    loss.backward()
    close(loss, REAL.sum(1).add(1).log().mean(), 1e-6)  # each row's candidates are as likely as its prompt
    assert not prompt.grad.any()
    assert bool(head.grad.any()) and head.grad.abs().max() < 1  # a head that moves can still leave 0


# ---------------------------------------------------------------------- the bound


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_the_bound_never_exceeds_the_log_of_the_candidates(scale):
    generator = torch.Generator().manual_seed(int(scale))
    scores = scale * torch.randn(200, 1 + 9, generator=generator)
    valid = torch.rand(200, 9, generator=generator) < 0.6
    most = (1 + valid.sum(1)).log()
    bound = most - info_nce(scores[:, 0], scores[:, 1:], valid)
    assert bool((bound <= most + 1e-6).all())
    separable = most - info_nce(scores[:, 0].abs() + 500, -scores[:, 1:].abs(), valid)
    close(separable, most)
    close(most - info_nce(scores[:, 0], scores[:, :1].expand(-1, 9), valid), torch.zeros(200), 1e-4)  # nothing is told


# ---------------------------------------------------------------------- models


def infoprompt(head, **options):
    """InfoPrompt at test size."""
    small = {"num_virtual_tokens": P, "task_type": TASK[head], "init_seed": 0, "latent": 6, "bottleneck": 5}
    return softprompt.infoprompt(**{**small, **options})


def attached(model, chosen):
    """A model in training with a prompt that stands off its start."""
    return stir(get_peft_model(model, chosen)).train()


def state_of(model):
    return model.base_model.state


def labelled(family, head, lengths=(9, 5), side="right", seed=0):
    """A training batch; a causal language model's labels start behind a source of three tokens."""
    inputs = batch(tokens(*lengths, seed=seed), side)
    ids, real = inputs["input_ids"], inputs["attention_mask"] != 0
    if head == "seq_cls":
        labels = torch.arange(len(ids)) % 3
    elif head == "seq2seq_lm":
        labels = torch.stack(tokens(*[6] * len(ids), seed=1))
    elif head == "token_cls":
        labels = (ids % 3).masked_fill(~real, -100)
    else:
        labels = ids.masked_fill(~real | (real.cumsum(1) <= 3 if head == "causal_lm" else ~real), -100)
    return {**inputs, "labels": labels}


def passed(model, inputs, seed=3):
    torch.manual_seed(seed)  # of the critics' noise
    return model(**inputs)


def gradients(model, inputs):
    model.zero_grad()
    loss = passed(model, inputs).loss
    loss.backward()
    return loss.detach(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def passes(model):
    """A list that grows with every pass through the stack."""
    found = []
    state_of(model).backbone.layers[0].register_forward_hook(lambda *_: found.append(1))
    return found


SIX = [FAMILIES[name] for name in ("bert", "roberta", "gpt2", "llama", "t5", "bart")]
TRAINED = [(f, h) for f in SIX for h in ("seq_cls", "token_cls", f.lm) if h in f.heads]
LANGUAGE = [(BERT, "seq_cls"), (LLAMA, "causal_lm"), (T5, "seq2seq_lm")]


@pytest.mark.parametrize("generator", ["free", "instance"])
@pytest.mark.parametrize("family, head", TRAINED, ids=str)
def test_a_training_pass_adds_the_weighted_terms_and_trains_everything(family, head, generator):
    model = attached(backbone(family, head), infoprompt(head, generator=generator))
    state, inputs = state_of(model), labelled(family, head)
    state.objectives["default"].progress = 0.25
    with state.plainly():
        bare = passed(model, inputs)
    out = passed(model, inputs)
    assert "objectives" not in bare and tuple(out.objectives) == TERMS
    assert torch.equal(out.logits, bare.logits)
    added = sum(0.75 * WEIGHTS[name] * value for name, value in out.objectives.items())
    close(out.loss, bare.loss + added, 1e-6)
    assert not any(value.requires_grad for value in out.objectives.values())
    assert all(value > 0 for value in out.objectives.values())

    fresh = get_peft_model(backbone(family, head), infoprompt(head, generator=generator)).train()
    trained = {k: p for k, p in fresh.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        passed(fresh, inputs).loss.backward()
        optimizer.step()
    assert all(bool(p.grad.any()) for p in trained.values())
    assert not any(p.requires_grad or p.grad is not None for k, p in fresh.named_parameters() if k not in trained)
    critics = [k for k in trained if ".objectives.default.critics.latent6." in k]
    assert len(critics) == sum(CRITIC_SHAPES.values())

    model.eval()
    evaluated = model(**inputs)
    assert "objectives" not in evaluated
    with state.plainly():
        assert torch.equal(evaluated.loss, model(**inputs).loss)


COMPOSED = {
    "deep": softprompt.deep_prompts,
    "deep_late": lambda **o: of_method("deep_late", "seq_cls", **o),
    "dept": lambda **o: of_method("dept", "seq_cls", **o),
    "ept": lambda **o: of_method("ept", "seq_cls", **o),
    "spt": lambda **o: of_method("spt", "seq_cls", **o),
    "gated": lambda **o: of_method("spt_gated", "seq_cls", consistency=0.5, **o),
    "gated_instance": lambda **o: softprompt.SoftPromptConfig(
        prompt="instance", placement="gated", consistency=0.5, **o
    ),
}


@pytest.mark.parametrize("family", [BERT, LLAMA], ids=str)
@pytest.mark.parametrize("name", COMPOSED)
def test_objectives_go_with_every_prompt(name, family):
    added = [objective(term, weight=weight) for term, weight in WEIGHTS.items()]
    options = {"num_virtual_tokens": P, "task_type": "SEQ_CLS", "init_seed": 0, "objectives": added}
    model = attached(backbone(family, "seq_cls"), COMPOSED[name](**options))
    inputs, weights = labelled(family, "seq_cls"), WEIGHTS | ({"consistency": 0.5} if "gated" in name else {})
    with state_of(model).plainly():
        bare = model(**inputs).loss
    out = passed(model, inputs)
    assert set(out.objectives) == set(weights)
    close(out.loss, bare + sum(weights[term] * value for term, value in out.objectives.items()))
    out.loss.backward()
    assert all(bool(p.grad.any()) for p in softprompt.active_prompt(model)[0].parameters())
    with model.disable_adapter():
        assert "objectives" not in model(**inputs)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family, head", [*LANGUAGE, (GPT2, "causal_lm")], ids=str)
@torch.no_grad()
def test_what_objectives_see_of_a_pass(family, head, side):
    """Prompt rows, tokens as they entered, the tokens that count, and the state whose logits the head gives."""
    model = attached(backbone(family, head), infoprompt(head))
    inputs, state = labelled(family, head, side=side), state_of(model)
    seen = state.observe(model.get_base_model(), frozenset({"unprompted", "head_rows"}), **inputs)
    prompt = softprompt.active_prompt(model)[0].embedding
    assert list(seen.virtual) == [0] and torch.equal(seen.virtual[0], prompt)
    assert torch.equal(seen.first_virtual, prompt.expand(len(seen.tokens), -1, -1))
    real = inputs["attention_mask"] != 0
    real &= real.cumsum(1) <= 3 if head == "causal_lm" else real
    assert torch.equal(seen.real, real)
    close(seen.tokens[real], state.backbone.embed(inputs["input_ids"])[real])
    assert seen.representation.shape == seen.unprompted.shape == (2, HIDDEN)
    assert torch.equal(seen.labels, inputs["labels"])
    if head == "causal_lm":
        lm_head = model.get_base_model().lm_head
        last = [int(row.nonzero()[-1]) for row in real]
        close(lm_head(seen.representation), torch.stack([seen.logits[i, t] for i, t in enumerate(last)]))
        used = sorted({int(i) for i in inputs["labels"].flatten() if i != -100})
        assert torch.equal(seen.head_rows, lm_head.weight[used])
    elif head == "seq2seq_lm":
        used = sorted({int(i) for i in inputs["labels"].flatten()})
        assert torch.equal(seen.head_rows, model.get_base_model().lm_head.weight[used])
    else:
        assert torch.equal(seen.head_rows, model.get_base_model().classifier.weight)
    assert not state.terms


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@torch.no_grad()
def test_a_pooled_classifiers_state_and_rows(pooling):
    classifier = softprompt.PooledClassifier(backbone(BERT, "base"), ["a", "b", "c"], pooling)
    model = attached(classifier, infoprompt("seq_cls"))
    inputs = labelled(BERT, "seq_cls")
    seen = state_of(model).observe(model.get_base_model(), frozenset({"head_rows"}), **inputs)
    head = model.get_base_model().classifier
    close(head(seen.representation), seen.logits)
    assert torch.equal(seen.head_rows, head.weight) and seen.unprompted is None


def verbalized(words):
    torch.manual_seed(0)
    sizes = dict(tiny.SIZES, vocab_size=40, pad_token_id=0, initializer_range=0.3)
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    masked_lm = tf.BertForMaskedLM(tf.BertConfig(**sizes)).eval()
    verbalizer = softprompt.Verbalizer(tiny.tokenizer(), "{text} . It was {mask} .", words)
    rows = Dataset.from_dict({"text": ["red dog runs", "blue cat"], "label": [0, 1]})
    encoded = verbalizer.encode(rows, max_length=16)
    inputs = batch([torch.tensor(ids) for ids in encoded["input_ids"]])
    return softprompt.VerbalizedClassifier(masked_lm, verbalizer), {**inputs, "labels": torch.tensor([0, 1])}


def test_label_words_are_the_head_of_a_verbalized_classifier():
    """Other words on the same backbone give other head rows and another loss; the state is that at the mask."""
    losses = []
    for words in ({"x": ["good", "warm"], "y": "bad"}, {"x": "dog", "y": ["cat", "bird"]}):
        base, inputs = verbalized(words)
        weight, ids = base.get_input_embeddings().weight, tiny.tokenizer().convert_tokens_to_ids
        model = attached(base, infoprompt("masked_lm"))
        with torch.no_grad():
            seen = state_of(model).observe(base, frozenset({"head_rows", "unprompted"}), **inputs)
        expected = [weight[ids([words[c]] if isinstance(words[c], str) else words[c])].mean(0) for c in words]
        close(seen.head_rows, torch.stack(expected), 1e-7)
        close(base.verbalizer.class_logits(base.masked_lm.cls(seen.representation)), seen.logits)
        out = passed(model, inputs)
        assert tuple(out.objectives) == TERMS
        losses.append(out.objectives["head_information"])
        out.loss.backward()
        assert bool(softprompt.active_prompt(model)[0].embedding.grad.any())
    assert not torch.equal(*losses)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family, head", LANGUAGE, ids=str)
@torch.no_grad()
def test_what_stands_in_padding_changes_no_loss(family, head, side):
    if family is BERT and side == "left":
        head = "token_cls"  # the stock pooler reads the first position
    model = attached(backbone(family, head), infoprompt(head))
    inputs = labelled(family, head, side=side)
    before = passed(model, inputs)
    elsewhere = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 17)}
    after = passed(model, elsewhere)
    for name in TERMS:
        close(after.objectives[name], before.objectives[name], 1e-6)
    close(after.loss, before.loss, 1e-6)


def test_the_frozen_head_and_embeddings_get_no_gradient():
    model = attached(backbone(LLAMA, "causal_lm"), infoprompt("causal_lm"))
    _, found = gradients(model, labelled(LLAMA, "causal_lm"))
    assert {k for k in found if "softprompt" not in k} == set()
    assert not model.get_base_model().lm_head.weight.requires_grad


def test_head_information_moves_all_rows_of_a_trained_head_alike():
    """It reads the mean of the head's rows."""
    chosen = softprompt.prompt_tuning(P, task_type="SEQ_CLS", objectives=[objective("head_information", weight=1.0)])
    model = attached(backbone(BERT, "seq_cls"), chosen)
    inputs, key = labelled(BERT, "seq_cls"), "base_model.model.classifier.modules_to_save.default.weight"
    _, full = gradients(model, inputs)
    with state_of(model).plainly():
        _, plain = gradients(model, inputs)
    added = full[key] - plain[key]
    assert added.abs().max() > 1e-4
    close(added, added[:1].expand_as(added), 1e-6)


def test_an_error_in_the_model_leaves_nothing_behind():
    model = attached(backbone(LLAMA, "causal_lm"), infoprompt("causal_lm", generator="instance"))
    state, inputs = state_of(model), labelled(LLAMA, "causal_lm")
    expected = passed(model, inputs).loss
    with pytest.raises(ValueError, match="batch_size"):
        model(**{**inputs, "labels": inputs["labels"][:1]}, unprompted=torch.zeros(2, HIDDEN))
    assert state._call is None and state.stack.now is BARE and state._mode == Mode()
    assert torch.equal(passed(model, inputs).loss, expected)


def test_a_deep_copy_has_critics_of_its_own():
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls"))
    inputs, twin = labelled(BERT, "seq_cls"), copy.deepcopy(model)
    expected = passed(model, inputs).loss
    assert torch.equal(passed(twin, inputs).loss, expected)
    with torch.no_grad():
        state_of(twin).objectives["default"].critics["latent6"].mu.weight += 1
    assert not torch.equal(passed(twin, inputs).loss, expected)
    assert torch.equal(passed(model, inputs).loss, expected)


def test_a_bfloat16_backbone_has_float32_terms_and_critics():
    base = backbone(LLAMA, "causal_lm").to(torch.bfloat16)
    model = get_peft_model(base, infoprompt("causal_lm", generator="instance")).train()
    out = passed(model, labelled(LLAMA, "causal_lm"))
    assert {value.dtype for value in out.objectives.values()} == {torch.float32}
    out.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(bool(torch.isfinite(p.grad).all()) for p in trained)


# ---------------------------------------------------------------------- states of the unprompted pass


def announced(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("unprompted states:")]


@pytest.mark.parametrize("generator", ["free", "instance"])
@pytest.mark.parametrize("family, head", LANGUAGE, ids=str)
def test_given_states_equal_the_pass_they_stand_for(family, head, generator, caplog):
    caplog.set_level(logging.INFO, logger="softprompt")
    model = attached(backbone(family, head), infoprompt(head, generator=generator))
    inputs = labelled(family, head)
    given = {**inputs, "unprompted": state_of(model).bare_states(inputs)}
    loss, found = gradients(model, given)
    assert announced(caplog) == []
    expected_loss, expected = gradients(model, inputs)
    gradients(model, inputs)
    (said,) = announced(caplog)  # once, not at every step
    assert "the data has no column 'unprompted'" in said
    close(loss, expected_loss, 1e-6)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        close(gradient, expected[key], 1e-6)
    other = passed(model, {**inputs, "unprompted": torch.randn(2, HIDDEN)})  # and they are what is read
    assert (other.loss - loss).abs() > 1e-3
    assert torch.equal(other.logits, passed(model, given).logits) == (generator == "free")


def test_given_states_cost_no_pass_and_their_lack_one():
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls"))
    inputs, count = labelled(BERT, "seq_cls"), passes(model)
    model(**inputs, unprompted=torch.zeros(2, HIDDEN))
    assert len(count) == 1
    model(**inputs)
    assert len(count) == 3


def test_an_instance_prompt_shares_its_states_with_the_objectives():
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls", generator="instance"))
    inputs, count = labelled(BERT, "seq_cls"), passes(model)
    model(**inputs)
    assert len(count) == 2


def test_a_step_without_an_objective_runs_no_second_pass():
    added = [objective("latent_divergence", every=4)]
    model = attached(backbone(BERT, "seq_cls"), softprompt.prompt_tuning(P, task_type="SEQ_CLS", objectives=added))
    inputs, count = labelled(BERT, "seq_cls"), passes(model)
    state_of(model).objectives["default"].step = 1
    assert "objectives" not in model(**inputs)
    assert len(count) == 1


def test_the_unprompted_pass_keeps_no_graph():
    """Gradient checkpointing lets embeddings require gradients; the second pass is detached, so its graph is waste."""
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls"))
    model.enable_input_require_grads()
    found = []
    state_of(model).backbone.layers[0].register_forward_hook(
        lambda _, __, out: found.append(first_of(out).requires_grad)
    )
    model(**labelled(BERT, "seq_cls"))
    assert found == [True, False]


def first_of(out):
    return out[0] if isinstance(out, tuple) else out


def bare_by_hand(family, head, ids, how):
    """The bare stack on one row alone, pooled without a mask."""
    model = backbone(family, head)
    stack = model.get_encoder() if family.kind == "encoder_decoder" else model.base_model
    hidden = stack(input_ids=ids[None]).last_hidden_state[0]
    return {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[how]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("how", ["mean", "cls", "last"])
@pytest.mark.parametrize(
    "family, head", [(BERT, "seq_cls"), (GPT2, "seq_cls"), (LLAMA, "seq_cls"), (T5, "token_cls")], ids=str
)
@torch.no_grad()
def test_states_are_the_bare_backbones_in_any_batch(family, head, how, side):
    rows = tokens(9, 5, 2)
    model = attached(backbone(family, head), infoprompt(head, representation=how))
    found = state_of(model).bare_states(batch(rows, side))
    close(found, torch.stack([bare_by_hand(family, head, row, how) for row in rows]))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", [GPT2, LLAMA], ids=str)
@torch.no_grad()
def test_a_causal_language_models_state_is_that_of_its_last_source_token(family, side):
    rows = tokens(9, 5)
    inputs = labelled(family, "causal_lm", side=side)
    model = attached(backbone(family, "causal_lm"), infoprompt("causal_lm"))
    expected = torch.stack([bare_by_hand(family, "causal_lm", row[:3], "last") for row in rows])
    close(state_of(model).bare_states(inputs), expected)
    unlabelled = {k: v for k, v in inputs.items() if k != "labels"}
    whole = torch.stack([bare_by_hand(family, "causal_lm", row, "last") for row in rows])
    close(state_of(model).bare_states(unlabelled), whole)


@torch.no_grad()
def test_the_state_at_the_mask():
    base, inputs = verbalized({"x": "good", "y": "bad"})
    model = attached(base, infoprompt("masked_lm"))
    ids, real = inputs["input_ids"], inputs["attention_mask"] != 0
    found = state_of(model).bare_states(inputs)
    with model.disable_adapter():
        for row, state in enumerate(found):
            hidden = base.base_model(input_ids=ids[row][real[row]][None]).last_hidden_state[0]
            close(state, hidden[(ids[row][real[row]] == base.mask_token_id).nonzero().item()])


@torch.no_grad()
def test_states_are_without_dropout_in_training():
    base = backbone(BERT, "seq_cls")
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model, rows = attached(base, infoprompt("seq_cls", representation="mean")), tokens(9, 9)
    inputs = {**batch(rows), "labels": torch.tensor([0, 1])}
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    expected = torch.stack([bare_by_hand(BERT, "seq_cls", row, "mean") for row in rows])
    close(state_of(model).bare_states(inputs), expected)
    assert all(module.training for module in model.modules())
    seen = {}
    state_of(model).objectives["default"].register_forward_pre_hook(
        lambda _, args: seen.update(bare=args[0].unprompted)
    )
    model(**inputs)
    close(seen["bare"], expected)


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


# ---------------------------------------------------------------------- annealing and logs


def test_the_weight_falls_linearly_and_rests_between_steps():
    (only,) = built("head_information", weight=0.4, decay=0.5, every=3).objectives
    assert [only.factor(progress, 0) for progress in (0.0, 0.5, 1.0)] == pytest.approx([0.4, 0.3, 0.2])
    assert [only.factor(0.0, step) for step in range(5)] == [0.4, 0.0, 0.0, 0.4, 0.0]
    (gone,) = built("head_information", decay=1.0).objectives
    assert gone.factor(1.0, 7) == 0
    (kept,) = built("head_information").objectives
    assert kept.factor(1.0, 7) == 1


def test_progress_and_step_reach_the_loss_of_a_model():
    added = [objective("latent_divergence", weight=0.5, decay=1.0, every=2)]
    model = attached(backbone(BERT, "seq_cls"), softprompt.prompt_tuning(P, task_type="SEQ_CLS", objectives=added))
    inputs, objectives = labelled(BERT, "seq_cls"), state_of(model).objectives["default"]
    with state_of(model).plainly():
        bare = model(**inputs).loss
    for progress, step, weight in ((0.0, 0, 0.5), (0.8, 2, 0.1), (0.8, 3, 0.0), (1.0, 4, 0.0)):
        objectives.progress, objectives.step = progress, step
        out = model(**inputs)
        assert ("objectives" in out) == bool(weight)
        close(out.loss, bare + weight * out.get("objectives", {}).get("latent_divergence", 0.0))


def rows_for(head, *lengths):
    """Encoded rows, and what makes batches of them."""
    made = []
    for i, ids in enumerate(tokens(*lengths, seed=4)):
        ids = ids.tolist()
        labels = [-100] * 3 + ids[3:] if head == "causal_lm" else i % 3
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return Dataset.from_list(made)


def collate(rows):
    made = batch([torch.tensor(row["input_ids"]) for row in rows])
    longest = made["input_ids"].shape[1]
    labels = [row["labels"] for row in rows]
    if isinstance(labels[0], list):
        labels = [row + [-100] * (longest - len(row)) for row in labels]
    made["labels"] = torch.tensor(labels)
    if "unprompted" in rows[0]:
        made["unprompted"] = torch.tensor([row["unprompted"] for row in rows])
    return made


class Watch(tf.TrainerCallback):
    """Note what every step of a run saw."""

    def __init__(self):
        self.clock, self.terms = [], []

    def on_substep_end(self, args, state, control, **kwargs):
        self.note(kwargs["model"])

    def on_step_end(self, args, state, control, **kwargs):
        self.note(kwargs["model"])

    def note(self, model):
        objectives = state_of(model).active_objectives()
        self.clock.append((objectives.progress, objectives.step))
        self.terms.append({k: v.item() for k, v in state_of(model).terms.items()})


def trainer(model, folder, rows=None, callbacks=(), kind=None, **options):
    small = dict(per_device_train_batch_size=2, learning_rate=0.02, lr_scheduler_type="constant", seed=0)
    quiet = dict(report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no", logging_strategy="steps")
    arguments = tf.TrainingArguments(str(folder), **{**small, **quiet, "max_steps": 4, "logging_steps": 2, **options})
    rows = rows_for("seq_cls", 9, 7, 6, 5, 8, 4, 9, 5) if rows is None else rows
    made = (kind or softprompt.PromptTrainer)(
        model, arguments, train_dataset=rows, data_collator=collate, callbacks=list(callbacks)
    )
    made.remove_callback(tf.PrinterCallback)
    return made


def tuned(**options):
    return get_peft_model(backbone(BERT, "seq_cls"), infoprompt("seq_cls", **options))


@pytest.mark.parametrize("kind", [softprompt.PromptTrainer, tf.Trainer])
def test_a_trainer_tells_objectives_the_time(kind, tmp_path):
    watch = Watch()
    own = [softprompt.ObjectivesCallback()] if kind is tf.Trainer else []
    trainer(tuned(), tmp_path, callbacks=[*own, watch], kind=kind).train()
    assert watch.clock == [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3)]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_log_holds_the_mean_of_each_term(accumulated, tmp_path):
    watch = Watch()
    run = trainer(tuned(), tmp_path, callbacks=[watch], gradient_accumulation_steps=accumulated)
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(watch.terms) == 4 * accumulated
    for entry, part in zip(logged, (watch.terms[: 2 * accumulated], watch.terms[2 * accumulated :]), strict=True):
        for name in TERMS:
            assert entry[name] == pytest.approx(mean_of([terms[name] for terms in part]), rel=1e-5)
    assert not any(name in entry for entry in run.state.log_history if "loss" not in entry for name in TERMS)


def test_a_term_that_rests_is_logged_as_the_mean_of_its_own_steps(tmp_path):
    added = [objective("head_information"), objective("latent_divergence", every=2)]
    model = get_peft_model(
        backbone(BERT, "seq_cls"), softprompt.prompt_tuning(P, task_type="SEQ_CLS", objectives=added)
    )
    watch = Watch()
    run = trainer(model, tmp_path, callbacks=[watch], logging_steps=4)
    run.train()
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    for name, count in (("head_information", 4), ("latent_divergence", 2)):
        found = [terms[name] for terms in watch.terms if name in terms]
        assert len(found) == count and entry[name] == pytest.approx(mean_of(found), rel=1e-5)


def test_label_smoothing_does_not_switch_objectives_off(tmp_path):
    """The trainer then takes the labels away from the model, which makes no loss of its own."""
    with pytest.raises(SoftPromptError, match="expected no label_smoothing_factor and no compute_loss_func"):
        trainer(tuned(), tmp_path, label_smoothing_factor=0.1)


class Sum(tf.TrainerCallback):
    """The gradients of the one optimizer step."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.found = {k: p.grad.clone() for k, p in kwargs["model"].named_parameters() if p.grad is not None}


def pooled():
    base = backbone(BERT, "base")
    torch.manual_seed(0)
    return softprompt.PooledClassifier(base, ["a", "b", "c"], "mean")


@pytest.mark.parametrize(
    "make, head",
    [(lambda: backbone(LLAMA, "causal_lm"), "causal_lm"), (pooled, "seq_cls")],
    ids=["causal_lm", "pooled"],
)
def test_accumulation_counts_a_term_once(make, head, tmp_path):
    """One batch of four, or two of two: the divergence is a mean over rows, and all rows have as many labels."""
    found = []
    for size, times in ((4, 1), (2, 2)):
        added = [objective("latent_divergence", weight=1.0)]
        chosen = softprompt.prompt_tuning(P, task_type=TASK[head], objectives=added, init_seed=0)
        model, last = attached(make(), chosen), Sum()
        options = dict(
            per_device_train_batch_size=size, gradient_accumulation_steps=times, max_steps=1, max_grad_norm=0
        )
        trainer(model, tmp_path, rows_for(head, 8, 8, 8, 8), [last], **options).train()
        found.append(last.found)
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        close(gradient, found[1][key], 1e-5)


def test_accumulation_counts_labels_as_the_trainer_does():
    """A causal language model's loss has no use for the first label of a row, and the trainer does not count it."""
    added = [objective("latent_divergence", weight=1.0)]
    model = attached(backbone(LLAMA, "causal_lm"), softprompt.prompt_tuning(P, task_type="CAUSAL_LM", objectives=added))
    ids = torch.stack(tokens(8, 8))
    with state_of(model).plainly():
        bare = model(input_ids=ids, labels=ids).loss
    out = model(input_ids=ids, labels=ids, num_items_in_batch=2 * 7)
    close(out.loss, bare + out.objectives["latent_divergence"])


# ---------------------------------------------------------------------- critics

CRITICS = {
    f"critics.latent6.{layer}.{kind}" for layer, count in CRITIC_SHAPES.items() for kind in ("weight", "bias")[:count]
}


def test_critics_are_shared_by_size():
    entries = [objective("representation_information", latent=3), objective("latent_divergence", latent=3)]
    made = build_objectives(entries, H)
    assert list(made.critics) == ["latent3"]
    assert all(each.critic(made.critics) is made.critics["latent3"] for each in made.objectives)
    assert len(list(made.parameters())) == sum(CRITIC_SHAPES.values())
    apart = build_objectives([entries[0], objective("latent_divergence", latent=4)], H)
    assert list(apart.critics) == ["latent3", "latent4"]
    assert not list(build_objectives([objective("head_information")], H).parameters())


def test_a_set_owns_each_critic_once():
    """Under one name, and an objective holds none: a copy or a move of the set reaches all of them."""
    entries = [objective(name, **({"latent": 3} if "latent" in name or "repr" in name else {})) for name in OBJECTIVES]
    made = build_objectives(entries, H)
    owned = dict(made.named_modules(remove_duplicate=False))
    assert [name for name, module in owned.items() if isinstance(module, Latent)] == ["critics.latent3"]
    assert list(made.state_dict()) == [key for key, _ in made.named_parameters(remove_duplicate=False)]
    assert set(made.state_dict()) == {key.replace("latent6", "latent3") for key in CRITICS}
    assert not any(isinstance(value, nn.Module) for each in made.objectives for value in vars(each).values())
    twin = copy.deepcopy(made)
    assert twin.objectives == made.objectives and twin.critics["latent3"] is not made.critics["latent3"]


def test_critics_that_are_shared_draw_once():
    """What is drawn after them does not depend on how many objectives read them."""
    entries, after = [objective("representation_information"), objective("latent_divergence")], []
    for chosen in (entries, entries[:1]):
        torch.manual_seed(0)
        made = build_objectives(chosen, H)
        after.append((*made.state_dict().values(), torch.get_rng_state()))
    assert all(torch.equal(*pair) for pair in zip(*after, strict=True))


@pytest.mark.parametrize("kind", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_is_a_value(kind):
    """Frozen, and equal to another with the same fields; options that are named are its fields."""
    assert kind() == kind() and kind(weight=3.0) == kind(weight=3.0) != kind()
    assert kind(decay=0.5) != kind() != kind(every=2)
    assert all(kind() != other() for other in OBJECTIVES.values() if other is not kind)
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind(), field.name, getattr(kind(), field.name))
    with pytest.raises(TypeError):
        kind(1.0)
    entry = objective(kind.name, **dataclasses.asdict(kind()))
    assert build_objectives([entry], H).objectives == (kind(),)


def test_critics_follow_the_seed_of_the_prompt():
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed + len(made))
        before = torch.get_rng_state()
        model = tuned(init_seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        made.append(state_of(model).objectives.state_dict())
    assert all(torch.equal(value, made[1][key]) for key, value in made[0].items())
    assert not torch.equal(made[0]["default.critics.latent6.out.weight"], made[2]["default.critics.latent6.out.weight"])


def test_a_saved_adapter_has_no_critics_and_needs_none(tmp_path):
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls")).eval()
    model.save_pretrained(tmp_path)
    head = {f"base_model.model.classifier.{kind}" for kind in ("weight", "bias")}
    saved = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert saved == head | {"base_model.model.softprompt.softprompt_prompts.embedding"}
    entries = json.loads((tmp_path / "adapter_config.json").read_text())["objectives"]
    assert [entry["name"] for entry in entries] == list(TERMS)

    inputs = labelled(BERT, "seq_cls")
    fixed = PeftModel.from_pretrained(backbone(BERT, "seq_cls"), tmp_path)
    assert len(state_of(fixed).objectives) == 0 and not any(p.requires_grad for p in fixed.parameters())
    assert torch.equal(output(fixed.eval(), **inputs), output(model, **inputs))
    assert "objectives" not in fixed.train()(**inputs)
    again = PeftModel.from_pretrained(backbone(BERT, "seq_cls"), tmp_path, is_trainable=True).train()
    assert set(state_of(again).objectives["default"].state_dict()) == CRITICS
    assert tuple(again(**inputs).objectives) == TERMS
    trained = {k for k, p in again.named_parameters() if p.requires_grad}
    assert trained == {k for k, p in model.named_parameters() if p.requires_grad}


def test_critics_are_real_when_weights_are_loaded_from_meta(tmp_path):
    tuned().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(
        backbone(BERT, "seq_cls"), tmp_path, is_trainable=True, low_cpu_mem_usage=True
    ).train()
    assert not any(p.is_meta for p in again.parameters())
    assert torch.isfinite(again(**labelled(BERT, "seq_cls")).loss)


def two_adapters():
    """One adapter with objectives, a second without, a third with others."""
    model = tuned()
    model.add_adapter("plain", softprompt.prompt_tuning(P, task_type="SEQ_CLS", init_seed=0))
    added = [objective("latent_divergence", weight=0.5, latent=4)]
    model.add_adapter("other", softprompt.prompt_tuning(P, task_type="SEQ_CLS", init_seed=0, objectives=added))
    return model.train()


def test_only_the_active_adapters_objectives_act():
    model, inputs = two_adapters(), labelled(BERT, "seq_cls")
    for name, terms in (("plain", ()), ("other", TERMS[2:]), ("default", TERMS), ("plain", ())):
        model.set_adapter(name)
        _, found = gradients(model, inputs)
        out = passed(model, inputs)
        assert tuple(out.get("objectives", ())) == terms
        assert all(f".objectives.{name}." in key for key in found if ".objectives." in key)
        assert any(".objectives." in key for key in found) == bool(terms)
    model.delete_adapter("default")
    assert list(state_of(model).objectives) == ["other"]
    assert not any("objectives.default" in key for key, _ in model.named_parameters())


def test_critics_of_inactive_adapters_are_not_trained():
    model = two_adapters()
    for name in ("other", "plain", "default"):
        model.set_adapter(name)
        trained = {
            k.split(".objectives.")[1].split(".")[0]
            for k, p in model.named_parameters()
            if ".objectives." in k and p.requires_grad
        }
        assert trained == ({name} if name != "plain" else set())


def test_the_head_of_the_active_adapter_is_compared():
    model = two_adapters()
    inputs = labelled(BERT, "seq_cls")
    for name in ("default", "other"):
        model.set_adapter(name)
        with torch.no_grad():
            seen = state_of(model).observe(model.get_base_model(), frozenset({"head_rows"}), **inputs)
        assert seen.head_rows is model.get_base_model().classifier.modules_to_save[name].weight


@pytest.mark.parametrize("classes", [7, 6, HIDDEN])
def test_a_critic_is_not_taken_for_the_head(classes):
    """It has linear layers of its own, from H to the latent size (6) and from H to H."""
    base = tf.AutoModelForSequenceClassification.from_config(BERT.config(num_labels=classes))
    model = get_peft_model(base, infoprompt("seq_cls"))
    with torch.no_grad():
        seen = state_of(model).observe(base, frozenset({"head_rows"}), **labelled(BERT, "seq_cls"))
    assert seen.head_rows is base.classifier.modules_to_save["default"].weight


def test_groups_hold_every_parameter_once_and_critics_learn_slowly():
    model = tuned(generator="instance")
    groups = {group["name"]: group for group in softprompt.parameter_groups(model, 0.5, 0.01, 0.2)}
    rates = {name: group["lr"] for name, group in groups.items()}
    assert rates == pytest.approx({"prompt": 0.5, "generator": 0.05, "critics": 0.05, "head": 0.2})
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len(groups["critics"]["params"]) == sum(CRITIC_SHAPES.values())
    assert {group["weight_decay"] for group in groups.values()} == {0.01}
    chosen = {"critics": 1e-3, "prompt": 0.3}
    asked = softprompt.parameter_groups(tuned(learning_rates=chosen), 0.5)
    assert {group["name"]: group["lr"] for group in asked} == pytest.approx({**chosen, "head": 0.5})


def test_critics_take_the_rate_of_the_active_adapter():
    model = tuned(learning_rates={"critics": 1e-3})
    model.add_adapter("second", infoprompt("seq_cls", learning_rates={"critics": 2e-3}))
    model.set_adapter("second")
    assert {g["name"]: g["lr"] for g in softprompt.parameter_groups(model, 0.5)}["critics"] == 2e-3


def weights_of(model):
    return {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("generator", ["free", "instance"])
def test_a_resumed_run_equals_the_uninterrupted_one_in_prompt_and_critics(generator, tmp_path):
    def run(model, **more):
        made = trainer(model, tmp_path, max_steps=6, save_strategy="steps", save_steps=2, **more)
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if more else None)
        return weights_of(made.model)

    straight = run(tuned(generator=generator))
    assert set(load_file(tmp_path / "checkpoint-2" / "objectives.safetensors")) == CRITICS
    assert not any("objectives" in key for key in load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors"))
    resumed = run(tuned(generator=generator, init_seed=7), save_total_limit=9)  # other critics, until they are read
    assert straight.keys() == resumed.keys() and any(".critics." in key for key in straight)
    for key, value in straight.items():
        assert torch.equal(value, resumed[key]), key


def test_a_checkpoint_without_critics_is_announced(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="softprompt")
    options = dict(save_strategy="steps", save_steps=2)
    trainer(tuned(), tmp_path, max_steps=2, **options).train()
    (tmp_path / "checkpoint-2" / "objectives.safetensors").unlink()
    trainer(tuned(), tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [r for r in caplog.messages if r.startswith("critics start anew: ")]


class Cut(tf.TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_checkpoint_has_its_critics_before_anyone_hears_of_it(tmp_path):
    """A run that ends in a callback on saving resumes from that checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        trainer(tuned(), tmp_path, callbacks=[Cut()], save_strategy="steps", save_steps=2).train()
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file()
    assert (tmp_path / "checkpoint-2" / "objectives.safetensors").is_file()


def test_critics_come_from_the_checkpoint_that_is_resumed_from(tmp_path):
    """A run may resume in another folder than the one that holds the checkpoint."""
    options = dict(save_strategy="steps", save_steps=2)
    first = trainer(tuned(), tmp_path / "first", **options)
    first.train()
    second = trainer(tuned(init_seed=7), tmp_path / "second", **options)
    second.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    for key, value in weights_of(first.model).items():
        assert torch.equal(value, weights_of(second.model)[key]), key


# ---------------------------------------------------------------------- states computed once

LENGTHS = (9, 5, 12, 7, 3, 8, 6)


@pytest.mark.parametrize("head", ["seq_cls", "causal_lm"])
def test_the_column_holds_each_rows_own_state_in_order(head):
    family = LLAMA if head == "causal_lm" else BERT
    model, rows = attached(backbone(family, head), infoprompt(head)), rows_for(head, *LENGTHS)
    told = []
    found = softprompt.add_unprompted(model, rows, collate, batch_size=3, progress=lambda *now: told.append(now))
    assert told == [(3, 7), (6, 7), (7, 7)]
    assert found.column_names == [*rows.column_names, "unprompted"]
    assert found.remove_columns("unprompted").to_list() == rows.to_list()
    states = torch.tensor(found["unprompted"])
    assert states.shape == (7, HIDDEN)
    for row, state in zip(rows, states, strict=True):
        with torch.no_grad():
            close(state, state_of(model).bare_states(collate([row]))[0])
    assert model.training and all(module.training for module in model.modules())
    again = softprompt.add_unprompted(model, found, collate)  # an old column is replaced
    assert again.column_names == found.column_names and again["unprompted"] == found["unprompted"]


def test_a_column_is_read_back_from_disk(cache, caplog):
    caplog.set_level(logging.INFO, logger="softprompt")
    model, rows = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls")), rows_for("seq_cls", *LENGTHS)
    count = passes(model)
    first = softprompt.add_unprompted(model, rows, collate)
    assert len(count) == 1 and not announced(caplog)
    (file,) = cache.iterdir()
    assert file.suffix == ".safetensors" and load_file(file)["unprompted"].shape == (7, HIDDEN)
    second = softprompt.add_unprompted(model, rows, collate)
    assert len(count) == 1 and second["unprompted"] == first["unprompted"]
    assert announced(caplog) == [f"unprompted states: 7 of them from {file}"]
    other = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls", num_virtual_tokens=2, init_seed=5))
    assert softprompt.add_unprompted(other, rows, collate)["unprompted"] == first["unprompted"]
    assert list(cache.iterdir()) == [file]  # the prompt does not matter


def test_another_backbone_representation_or_row_makes_another_file(cache):
    rows = rows_for("seq_cls", *LENGTHS)

    def made(change=None, chosen=rows, **options):
        model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls", **options))
        with torch.no_grad():
            if change is not None:
                change(state_of(model).backbone.stack)
        softprompt.add_unprompted(model, chosen, collate)
        return len(list(cache.iterdir()))

    def layer(stack):
        stack.encoder.layer[1].output.dense.weight[0, 0] += 1e-3

    def half(stack):
        stack.to(torch.bfloat16)

    assert made() == made() == 1
    assert made(layer) == 2
    assert made(half) == 3
    assert made(representation="mean") == 4
    assert made(chosen=rows.select([1, 0, *range(2, 7)])) == 5
    assert made() == 5


def test_a_backbone_with_other_facts_makes_another_file(cache):
    """Equal weights, another activation: the states are others too."""
    rows, found = rows_for("seq_cls", *LENGTHS), []
    for activation in ("gelu", "relu"):
        base = tf.AutoModelForSequenceClassification.from_config(BERT.config(hidden_act=activation))
        base.load_state_dict(backbone(BERT, "seq_cls").state_dict())
        model = attached(base, infoprompt("seq_cls"))
        found.append(torch.tensor(softprompt.add_unprompted(model, rows, collate)["unprompted"]))
    assert not torch.equal(*found)


def test_columns_that_no_model_takes_are_left_alone():
    model, rows = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls")), rows_for("seq_cls", 5, 6)
    rows = rows.add_column("text", ["red dog", "cat"])
    assert "text" in softprompt.add_unprompted(model, rows, collate).column_names


@pytest.mark.parametrize("generator", ["free", "instance"])
def test_a_trainer_hands_the_column_over(generator, tmp_path):
    """Training on the column equals training that computes the states in each step, without its passes."""
    rows, found = rows_for("seq_cls", 9, 7, 6, 5, 8, 4, 9, 5), []
    for column in (True, False):
        model = tuned(generator=generator)
        chosen = softprompt.add_unprompted(model, rows, collate) if column else rows
        run, count = trainer(model, tmp_path, chosen, optim="sgd"), passes(model)
        run.train()
        assert len(count) == 4 if column else len(count) > 4
        found.append(weights_of(run.model))
    for key, value in found[0].items():
        close(value, found[1][key], 1e-5)


# ---------------------------------------------------------------------- how much a prompt tells


@pytest.mark.parametrize("generator", ["free", "instance"])
@pytest.mark.parametrize("family, head", [(BERT, "seq_cls"), (LLAMA, "causal_lm")], ids=str)
def test_information_stays_below_its_maxima_and_changes_nothing(family, head, generator):
    model = attached(backbone(family, head), infoprompt(head, generator=generator))
    fit, held = rows_for(head, *LENGTHS), rows_for(head, 8, 6, 5, 9, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected = passed(model, collate(fit.to_list())).objectives
    model.zero_grad()
    random = torch.get_rng_state()
    found = softprompt.information(model, fit, held, collate)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert state_of(model).terms == expected and state_of(model)._mode == Mode()
    assert set(found) == {"information head", "information representation"}
    assert found["information representation"] <= math.log(1 + 4 * len(held)) + 1e-6

    with torch.no_grad():
        seen = state_of(model).observe(model.get_base_model(), frozenset({"head_rows"}), **collate(held.to_list()))
    scores = build_objectives([objective("head_information")], HIDDEN).objectives[0].scores(seen)
    bounds = []
    for positive, candidates, real in zip(*(x.tolist() for x in scores), strict=True):
        counted = [c for c, r in zip(candidates, real, strict=True) if r]
        bounds.append(math.log(1 + len(counted)) - nce(positive, counted))
        assert bounds[-1] <= math.log(1 + len(counted))
    assert found["information head"] == pytest.approx(mean_of(bounds), abs=1e-4)
    torch.manual_seed(99)
    assert softprompt.information(model, fit, held, collate) == found
    other = softprompt.information(model, fit, held, collate, seed=1)
    assert other["information head"] == pytest.approx(found["information head"])
    model.eval()
    assert softprompt.information(model, fit, held, collate) == found and not model.training


def test_information_sees_a_prompt_that_speaks_the_heads_language():
    """A prompt far along the mean of the head's rows tells the head all there is to tell."""
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls"))
    rows = rows_for("seq_cls", 9, 9, 9, 9)
    with torch.no_grad():
        direction = model.get_base_model().classifier.weight.mean(0)
        softprompt.active_prompt(model)[0].embedding.copy_((1e4 * direction).expand(1, P, -1))
    assert softprompt.information(model, rows, rows, collate)["information head"] == pytest.approx(math.log(10))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_information_leaves_the_accelerators_random_state_alone():
    model, rows = tuned().cuda(), rows_for("seq_cls", *LENGTHS)
    before = torch.cuda.get_rng_state()
    softprompt.information(model, rows, rows, collate)
    assert torch.equal(torch.cuda.get_rng_state(), before)


# ---------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.save_backbone(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    return tiny.write_classification(tmp_path_factory.mktemp("animals"), rows=24)


def options(encoder, data, folder, **more):
    flat = {"backbone": str(encoder), "data": str(data), "output_dir": str(folder), "method": "infoprompt"}
    small = {
        "num_virtual_tokens": 4,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "max_length": 24,
        "dtype": "float32",
    }
    return softprompt.RunOptions.from_flat({**flat, **small, "learning_rate": 0.05, "disable_tqdm": True, **more})


def test_a_run_with_and_without_tracking_is_the_same(encoder, animals, tmp_path):
    told = []
    results = {
        track: softprompt.train(
            options(encoder, animals, tmp_path / track, track=track),
            report=lambda *now: told.append(now),
            progress=False,
        )
        for track in ("none", "mi")
    }
    assert told[-1] == ("unprompted states", 24, 24)
    assert len(told) == 1  # the second run reads them
    found = {track: load_file(tmp_path / track / "adapter_model.safetensors") for track in results}
    assert found["none"].keys() == found["mi"].keys()
    assert not any("objectives" in key for key in found["mi"])
    assert all(torch.equal(value, found["mi"][key]) for key, value in found["none"].items())
    assert results["none"].metrics == results["mi"].metrics
    history = {track: result.document["train_info"]["metrics"] for track, result in results.items()}
    for entries in history.values():
        logged = [entry for entry in entries if "loss" in entry]
        assert len(logged) == 2 and all(set(TERMS) <= entry.keys() for entry in logged)
    assert not any("information head" in entry for entry in history["none"])
    tracked = [entry for entry in history["mi"] if "information head" in entry]
    evaluated = [entry for entry in history["mi"] if "eval_loss" in entry]
    assert [entry["step"] for entry in tracked] == [entry["step"] for entry in evaluated]
    assert [entry["step"] for entry in tracked][:2] == [3, 6]
    for entry in tracked:
        assert entry["information head"] <= math.log(25) and entry["information representation"] <= math.log(1 + 4 * 18)
    config = results["mi"].document["run_info"]["peft_config"]
    assert [entry["name"] for entry in config["objectives"]] == list(TERMS)


def test_a_run_says_that_a_probe_gives_the_head_term_nothing_to_read(encoder, animals, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="softprompt")
    said = "the objective 'head_information' starts at nothing"
    prepared = prepare(options(encoder, animals, tmp_path / "a"))
    rows = prepared.model.classifier.weight
    assert rows.mean(0).norm() < 1e-6 * rows.norm() and said in caplog.text
    caplog.clear()
    for more in ({"head_init": "random"}, {"method": "prompt_tuning"}):
        prepare(options(encoder, animals, tmp_path / "b", **more))
    assert said not in caplog.text
    prepare(
        options(encoder, animals, tmp_path / "c", method="prompt_tuning", objectives=[{"name": "head_information"}])
    )
    assert said in caplog.text


def test_an_instance_run_predicts_after_a_reload(encoder, animals, tmp_path):
    result = softprompt.train(options(encoder, animals, tmp_path / "out", generator="instance", bottleneck=6))
    predictor = softprompt.Predictor(tmp_path / "out")
    assert len(state_of(predictor.model).objectives) == 0
    task = softprompt.load_task(animals)
    assert predictor.evaluate(task.test)["accuracy"] == pytest.approx(result.metrics["test accuracy"])
    together = predictor.predict([{"text": "red dog runs"}, {"text": "blue cat sits now here"}])
    alone = [predictor.predict([{"text": text}])[0] for text in ("red dog runs", "blue cat sits now here")]
    for one, other in zip(together, alone, strict=True):
        assert one["label"] == other["label"] and one["scores"] == pytest.approx(other["scores"], abs=1e-4)


def test_tracking_is_refused_for_prompts_of_others(encoder, animals, tmp_path):
    with pytest.raises(
        SoftPromptError,
        match=r"track reads the prompt of a softprompt method: expected a PEFT model with a soft prompt",
    ):
        softprompt.train(options(encoder, animals, tmp_path / "out", method="peft:prompt_tuning", track="mi"))


def test_tracking_is_refused_before_anything_is_trained(encoder, animals, tmp_path):
    with pytest.raises(SoftPromptError):
        softprompt.train(options(encoder, animals, tmp_path / "out", method="peft:prompt_tuning", track="mi"))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: objective("head_info"),
            r"unknown objective 'head_info': expected one of .*Did you mean 'head_information'\?",
        ),
        (
            lambda: objective("latent_divergence", wieght=1),
            r"has no field 'wieght': expected weight, decay, every, latent\. Did you mean 'weight'\?",
        ),
        (lambda: objective("head_information", hidden_size=3), r"has no field 'hidden_size'"),
        (lambda: objective("head_information", critics={}), r"has no field 'critics'"),
        (lambda: objective("head_information", needs=()), r"has no field 'needs'"),
        (
            lambda: objective("contrastive", temprature=0.2),
            r"objective 'contrastive' has no field 'temprature': expected weight, decay, every, temperature\. Did you mean 'temperature'\?",
        ),
        (
            lambda: objective("pairwise", layer=[0]),
            r"has no field 'layer': expected weight, decay, every, layers, eps\. Did you mean 'layers'\?",
        ),
        (
            lambda: objective("persistence", degree=[0]),
            r"has no field 'degree': expected weight, decay, every, layers, statistic, degrees, metric, scale_free, target\.",
        ),
        (
            lambda: softprompt.prompt_tuning(objectives=["head_information"]),
            r"objectives: expected entries such as softprompt\.objective\('head_information'\), got 'head_information'",
        ),
        (
            lambda: softprompt.prompt_tuning(objectives=[{"weight": 1}]),
            r"expected entries such as .*, got \{'weight': 1\}",
        ),
        (lambda: softprompt.prompt_tuning(objectives=[{"name": "nothing"}]), r"unknown objective 'nothing'"),
        (
            lambda: softprompt.infoprompt(objectives=[objective("latent_divergence")]),
            r"objectives: each may stand once, got head_information, .*, latent_divergence, latent_divergence",
        ),
        (
            lambda: softprompt.infoprompt(generator="instances"),
            r"unknown generator 'instances': expected one of free, instance\. Did you mean 'instance'\?",
        ),
        (
            lambda: softprompt.infoprompt(representation="max"),
            r"unknown representation 'max': expected one of auto, mean, cls, last, mask",
        ),
        (
            lambda: tuned(negatives="own_token"),
            r"unknown negatives 'own_token': expected one of own_tokens, gaussian, batch\. Did you mean 'own_tokens'\?",
        ),
        (lambda: tuned(generator="instance", bottleneck=0), r"an instance prompt needs bottleneck >= 1, got 0"),
        (
            lambda: tuned(representation="mask"),
            r"representation='mask' needs a model that knows its mask token .*, got BertForSequenceClassification",
        ),
        (
            lambda: softprompt.information(backbone(BERT, "seq_cls"), None, None, collate),
            r"expected a PEFT model with a soft prompt, got none",
        ),
        (lambda: softprompt.RunOptions.from_flat({"track": "im"}), r"unknown track 'im': expected one of none, mi"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(SoftPromptError, match=message):
        make()


def test_the_mask_is_not_found_in_embeddings():
    """A masked language model that says which token its mask is may read the state there."""
    base = backbone(BERT, "masked_lm")
    base.mask_token_id = 4
    model = get_peft_model(base, infoprompt("masked_lm")).train()
    ids = torch.stack(tokens(6, 6)).index_fill(1, torch.tensor([2]), 4)
    assert tuple(model(input_ids=ids, labels=ids).objectives) == TERMS
    with pytest.raises(
        SoftPromptError, match="representation='mask' finds the mask by its id: expected input_ids, got embeddings"
    ):
        model(inputs_embeds=base.get_input_embeddings()(ids), labels=ids)


def test_a_head_that_is_no_linear_layer_is_refused():
    base = backbone(BERT, "seq_cls")
    base.classifier = nn.Sequential(nn.Linear(HIDDEN, 8), nn.Linear(8, 3))
    model = get_peft_model(base, infoprompt("seq_cls")).train()
    with pytest.raises(
        SoftPromptError,
        match=r"head_information compares the prompt with the head.s rows: expected a linear layer from 32 to 3 classes in BertForSequenceClassification, found none",
    ):
        model(**labelled(BERT, "seq_cls"))


@pytest.mark.parametrize("name", TERMS[1:])
def test_embeddings_narrower_than_the_layers_are_refused_or_work(name):
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=VOCAB)
    base = tf.ElectraForSequenceClassification(tf.ElectraConfig(embedding_size=16, num_labels=3, **sizes))
    try:
        chosen = softprompt.prompt_tuning(P, task_type="SEQ_CLS", objectives=[objective(name)])
        out = get_peft_model(base, chosen).train()(**labelled(BERT, "seq_cls"))
    except SoftPromptError:
        return
    assert name in out.objectives


def test_a_row_without_a_source_is_refused_or_has_a_state():
    """A causal language model trained on all its tokens has nothing before its first label."""
    model = attached(backbone(LLAMA, "causal_lm"), infoprompt("causal_lm"))
    ids = torch.stack(tokens(8, 8))
    try:
        out = model(input_ids=ids, labels=ids)
    except SoftPromptError:
        return
    assert out.objectives["head_information"] > 0


def test_objectives_act_where_peft_calls_forward_itself(monkeypatch):
    """PEFT 0.20, which this package allows, passes by the model's hooks: BaseTuner.forward calls self.model.forward."""
    monkeypatch.setattr(BaseTuner, "forward", lambda self, *args, **kwargs: self.model.forward(*args, **kwargs))
    out = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls"))(**labelled(BERT, "seq_cls"))
    assert tuple(out.get("objectives", ())) == TERMS
