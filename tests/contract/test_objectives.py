"""Contract: objectives add their weighted terms to a loss, see the same in any batch, and leave nothing behind."""

import copy

import pytest
import torch
import transformers as tf
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

import softprompt
from house import tiny
from house.batches import collate, training_batch
from house.families import (
    BERT,
    FAMILIES,
    GPT2,
    HIDDEN,
    LAYERS,
    LLAMA,
    T5,
    VOCAB,
    P,
    backbone,
    batch,
    close,
    prompted,
    tokens,
)
from house.families import config as of_method
from house.models import attached, gradients, infoprompt, passed, state_of, tuned, verbalized
from softprompt import SoftPromptError, objective
from softprompt.tuner.calls.call import Mode
from softprompt.tuner.passes.kinds import BARE

TERMS = ("head_information", "representation_information", "latent_divergence")


WEIGHTS = dict(zip(TERMS, (0.1, 0.2, 0.1), strict=True))


CRITIC_SHAPES = {"mu": 2, "log_sigma": 2, "out": 1, "context": 2}  # parameters of each linear layer


SIDES = ("left", "right")


# ---------------------------------------------------------------------- models


SIX = [FAMILIES[name] for name in ("bert", "roberta", "gpt2", "llama", "t5", "bart")]


TRAINED = [(f, h) for f in SIX for h in ("seq_cls", "token_cls", f.lm) if h in f.heads]


LANGUAGE = [(BERT, "seq_cls"), (LLAMA, "causal_lm"), (T5, "seq2seq_lm")]


@pytest.mark.parametrize("generator", ["free", "instance"])
@pytest.mark.parametrize("family, head", TRAINED, ids=str)
def test_a_training_pass_adds_the_weighted_terms_and_trains_everything(family, head, generator):
    weights = {"gamma": WEIGHTS["head_information"], "beta": WEIGHTS["representation_information"]}
    model = attached(backbone(family, head), infoprompt(head, generator=generator, **weights))
    state, inputs = state_of(model), training_batch(family, head)
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
    inputs, weights = training_batch(family, "seq_cls"), WEIGHTS | ({"consistency": 0.5} if "gated" in name else {})
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
    inputs, state = training_batch(family, head, side=side), state_of(model)
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
    inputs = training_batch(BERT, "seq_cls")
    seen = state_of(model).observe(model.get_base_model(), frozenset({"head_rows"}), **inputs)
    head = model.get_base_model().classifier
    close(head(seen.representation), seen.logits)
    assert torch.equal(seen.head_rows, head.weight) and seen.unprompted is None


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
    inputs = training_batch(family, head, side=side)
    before = passed(model, inputs)
    elsewhere = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 17)}
    after = passed(model, elsewhere)
    for name in TERMS:
        close(after.objectives[name], before.objectives[name], 1e-6)
    close(after.loss, before.loss, 1e-6)


def test_the_frozen_head_and_embeddings_get_no_gradient():
    model = attached(backbone(LLAMA, "causal_lm"), infoprompt("causal_lm"))
    _, found = gradients(model, training_batch(LLAMA, "causal_lm"))
    assert {k for k in found if "softprompt" not in k} == set()
    assert not model.get_base_model().lm_head.weight.requires_grad


def test_head_information_moves_all_rows_of_a_trained_head_alike():
    """It reads the mean of the head's rows."""
    chosen = softprompt.prompt_tuning(
        P, task_type="SEQ_CLS", objectives=[objective("head_information", weight=1.0, rows="mean")]
    )
    model = attached(backbone(BERT, "seq_cls"), chosen)
    inputs, key = training_batch(BERT, "seq_cls"), "base_model.model.classifier.modules_to_save.default.weight"
    _, full = gradients(model, inputs)
    with state_of(model).plainly():
        _, plain = gradients(model, inputs)
    added = full[key] - plain[key]
    assert added.abs().max() > 1e-4
    close(added, added[:1].expand_as(added), 1e-6)


def test_an_error_in_the_model_leaves_nothing_behind():
    model = attached(backbone(LLAMA, "causal_lm"), infoprompt("causal_lm", generator="instance"))
    state, inputs = state_of(model), training_batch(LLAMA, "causal_lm")
    expected = passed(model, inputs).loss
    with pytest.raises(ValueError, match="batch_size"):
        model(**{**inputs, "labels": inputs["labels"][:1]}, unprompted=torch.zeros(2, HIDDEN))
    assert state._call is None and state.passes.now is BARE and state._mode == Mode()
    assert torch.equal(passed(model, inputs).loss, expected)


def test_a_deep_copy_has_critics_of_its_own():
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls"))
    inputs, twin = training_batch(BERT, "seq_cls"), copy.deepcopy(model)
    expected = passed(model, inputs).loss
    assert torch.equal(passed(twin, inputs).loss, expected)
    with torch.no_grad():
        state_of(twin).objectives["default"].critics["latent6"].mu.weight += 1
    assert not torch.equal(passed(twin, inputs).loss, expected)
    assert torch.equal(passed(model, inputs).loss, expected)


def test_a_bfloat16_backbone_has_float32_terms_and_critics():
    base = backbone(LLAMA, "causal_lm").to(torch.bfloat16)
    model = get_peft_model(base, infoprompt("causal_lm", generator="instance")).train()
    out = passed(model, training_batch(LLAMA, "causal_lm"))
    assert {value.dtype for value in out.objectives.values()} == {torch.float32}
    out.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(bool(torch.isfinite(p.grad).all()) for p in trained)


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
            r"has no field 'wieght': expected weight, share, decay, every, latent, through_state\. Did you mean 'weight'\?",
        ),
        (lambda: objective("head_information", hidden_size=3), r"has no field 'hidden_size'"),
        (lambda: objective("head_information", critics={}), r"has no field 'critics'"),
        (lambda: objective("head_information", needs=()), r"has no field 'needs'"),
        (
            lambda: objective("contrastive", temprature=0.2),
            r"objective 'contrastive' has no field 'temprature': expected weight, share, decay, every, temperature\. Did you mean 'temperature'\?",
        ),
        (
            lambda: objective("pairwise", layer=[0]),
            r"has no field 'layer': expected weight, share, decay, every, layers, eps\. Did you mean 'layers'\?",
        ),
        (
            lambda: objective("persistence", degree=[0]),
            r"has no field 'degree': expected weight, share, decay, every, layers, statistic, degrees, metric, scale_free, scale, keep, target\.",
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
        (
            lambda: tuned(generator="instance", bottleneck=0),
            r"bottleneck: expected a whole number of at least 1, got 0",
        ),
        (
            lambda: tuned(representation="mask"),
            r"representation='mask' needs a model that knows its mask token .*, got BertForSequenceClassification",
        ),
        (
            lambda: softprompt.information(backbone(BERT, "seq_cls"), None, None, collate),
            r"expected a PEFT model with a soft prompt, got none",
        ),
        (lambda: softprompt.RunOptions.from_flat({"track": "im"}), r"unknown track 'im': expected one of mi, "),
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
        model(**training_batch(BERT, "seq_cls"))


@pytest.mark.parametrize("name", TERMS[1:])
def test_embeddings_narrower_than_the_layers_are_refused_or_work(name):
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=VOCAB)
    base = tf.ElectraForSequenceClassification(tf.ElectraConfig(embedding_size=16, num_labels=3, **sizes))
    try:
        chosen = softprompt.prompt_tuning(P, task_type="SEQ_CLS", objectives=[objective(name)])
        out = get_peft_model(base, chosen).train()(**training_batch(BERT, "seq_cls"))
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
    out = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls"))(**training_batch(BERT, "seq_cls"))
    assert tuple(out.get("objectives", ())) == TERMS


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_terms_see_the_tokens_of_the_first_layer_that_is_entered(shared):
    model = prompted(LLAMA, "causal_lm", "deep_prompts", shared_prefix=shared)
    state, inputs = state_of(model), batch(tokens(6, 6))
    seen = state.observe(model, frozenset(), **inputs)
    assert len(seen.virtual) == LAYERS and torch.equal(seen.tokens, state.backbone.embed(inputs["input_ids"]))
