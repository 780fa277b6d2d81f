"""The search of layers: its steps, its scores, its halves, and its resumption."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from peft import get_peft_model
from transformers import TrainerControl, TrainerState, TrainingArguments

import softprompt
from house.batches import encoded, training_inputs
from house.families import BERT, LAYERS, LLAMA, T5, backbone, close, prompted
from house.models import gated, prompt_of, sparse
from house.runs import StopAt
from house.tiny import tokenizer
from softprompt import LayerSearch, NonFiniteError, SearchCallback, SoftPromptError
from softprompt.data import collator, encode_classification
from softprompt.search import read_gates, split_for_search

# ---------------------------------------------------------------------- 10. one step of the search


def moved(before, model):
    """Names of the parameters whose values changed."""
    return {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}


def values(model):
    return {key: value.detach().clone() for key, value in model.named_parameters()}


def adam(alpha, gradients, rate):
    """AdamW without decay, by its formulas."""
    first = second = torch.zeros_like(alpha)
    for t, gradient in enumerate(gradients, 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        alpha = alpha - rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return alpha


@pytest.mark.parametrize("family, head", [(BERT, "seq_cls"), (LLAMA, "causal_lm")], ids=str)
def test_a_search_moves_the_gates_and_training_moves_the_rest(family, head):
    model, inputs = gated(family, head).train(), training_inputs(family, head)
    search = LayerSearch(model)
    groups = softprompt.parameter_groups(model, 0.05)
    assert [group["name"] for group in groups] == ["prompt", "generator", *(["head"] if head == "seq_cls" else [])]
    assert not search.logits.requires_grad
    gates = {key for key in values(model) if key.endswith("gate_logits")}
    ours = {key for key in values(model) if "softprompt_" in key or "modules_to_save.default" in key} - gates
    optimizer, before = torch.optim.AdamW(groups, weight_decay=0.0), values(model)
    model(**inputs).loss.backward()
    optimizer.step()
    assert moved(before, model) == ours

    before, gradients = values(model), {key: p.grad.clone() for key, p in model.named_parameters() if key in ours}
    search.search_step(inputs)
    assert moved(before, model) == gates
    assert not search.logits.requires_grad and search.logits.grad is None
    for key, parameter in model.named_parameters():
        if key in ours:
            assert torch.equal(parameter.grad, gradients[key])
        else:
            assert parameter.grad is None


def shared(alpha, gradients, rate):
    """The formulas of `SharedScale`."""
    first, second = torch.zeros_like(alpha), 0.0
    for t, gradient in enumerate(gradients, 1):
        competing = gradient - gradient.mean()
        first, second = 0.9 * first + 0.1 * competing, 0.999 * second + 0.001 * (competing**2).mean()
        alpha = alpha - rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return alpha


@pytest.mark.parametrize("rate", [None, 0.03])
@pytest.mark.parametrize("formulas, default", [(shared, 0.1), (adam, 0.01)])
def test_search_steps_follow_their_formulas_on_the_gradient_of_the_task_loss(formulas, default, rate):
    """The consistency loss is for the weights: it is no part of the gates' gradient."""
    model = gated(BERT, "seq_cls", gate_optimizer=formulas.__name__).train()
    inputs, alpha, gradients = training_inputs(BERT, "seq_cls"), prompt_of(model).gate_logits, []
    search, start = LayerSearch(model, rate), alpha.detach().clone()
    assert search.gradients == [0.0] * LAYERS
    for _ in range(3):
        alpha.requires_grad_(True)
        with model.base_model.state.plainly():
            expected = model(**inputs).loss
        gradients += torch.autograd.grad(expected, alpha)
        alpha.requires_grad_(False)
        assert search.search_step(inputs) == expected.item()
    close(alpha, formulas(start, gradients, rate or default), 1e-5)
    assert search.gates == pytest.approx(torch.sigmoid(alpha).tolist())
    close(torch.tensor(search.gradients), -torch.stack(gradients).sum(0), 1e-6)


def test_one_gate_has_nothing_to_compete_with():
    alone = softprompt.SoftPromptConfig(prompt="generated", placement="gated", layers=[1], bottleneck=6)
    search = LayerSearch(get_peft_model(backbone(BERT, "seq_cls"), alone).train())
    search.search_step(training_inputs(BERT, "seq_cls"))
    assert search.gates == [0.5] and search.select(1).layers == [1]


def test_the_rate_of_the_gates_is_the_configs():
    model = gated(BERT, "seq_cls", learning_rates={"gates": 0.2})
    assert LayerSearch(model).optimizer.param_groups[0]["lr"] == 0.2
    assert LayerSearch(model, 0.5).optimizer.param_groups[0]["lr"] == 0.5


def test_the_ways_to_step_and_to_score_are_named():
    with pytest.raises(SoftPromptError, match="unknown gate_optimizer 'sgd': expected one of shared, adam"):
        softprompt.spt(gate_optimizer="sgd")
    with pytest.raises(SoftPromptError, match="unknown layer_score 'loss': expected one of ablation, gates, gradient"):
        softprompt.spt(layer_score="loss")
    config = softprompt.spt()
    assert (config.layer_score, config.gate_optimizer) == ("ablation", "shared")


def test_a_loss_that_is_not_finite_leaves_the_gates():
    model, inputs = gated(BERT, "seq_cls"), training_inputs(BERT, "seq_cls")
    search = LayerSearch(model)
    search.search_step(inputs)
    before, moments = values(model), search.optimizer.state[search.logits]["exp_avg"].clone()
    with torch.no_grad():
        kept = prompt_of(model).embedding.clone()
        prompt_of(model).embedding.fill_(math.nan)
    with pytest.raises(
        NonFiniteError, match="expected a finite validation loss in the search of layers, got nan; lower"
    ):
        search.search_step(inputs)
    with torch.no_grad():
        prompt_of(model).embedding.copy_(kept)
    assert not moved(before, model) and not search.logits.requires_grad
    assert torch.equal(search.optimizer.state[search.logits]["exp_avg"], moments)
    search.search_step(inputs)
    assert all(map(math.isfinite, search.gates))


def test_select_keeps_the_best_layers():
    model = gated(BERT, "seq_cls")
    search = LayerSearch(model)
    search.logits.copy_(torch.tensor([0.5, -1.0, 2.0]))
    by_gates = search.select(2)
    assert by_gates.layers == [0, 2] and by_gates.candidates == [0, 1, 2] and by_gates.scores == by_gates.gates
    assert by_gates.gates == pytest.approx([1 / (1 + math.exp(-x)) for x in (0.5, -1.0, 2.0)])
    by_scores = search.select(2, [1.0, 3.0, 2.0])
    assert by_gates.gradients == by_scores.gradients == [0.0, 0.0, 0.0]  # no step was taken
    assert by_scores.layers == [1, 2] and by_scores.scores == [1.0, 3.0, 2.0] and by_scores.gates == by_gates.gates
    assert search.select(3).layers == [0, 1, 2]
    assert search.select(2, [1.0, 1.0, 1.0]).layers == [0, 1]  # ties go to the lower layer
    search.logits.copy_(torch.tensor([18.2, 18.6, 18.9]))  # the sigmoids of which float32 cannot tell apart
    assert search.select(1).layers == [2]
    for scores in ([1.0, 2.0], [1.0, float("nan"), 2.0]):
        with pytest.raises(SoftPromptError, match="scores: expected 3 finite numbers, one for each layer, got"):
            search.select(1, scores)
    for batches in ([], [{"input_ids": torch.ones(1, 3, dtype=torch.long)}]):
        with pytest.raises(SoftPromptError, match="ablation: expected batches with labels, got"):
            search.ablation_scores(batches)
    for budget in (0, 4, -1):
        with pytest.raises(SoftPromptError, match=f"budget: expected 1 to 3 layers .* got {budget}."):
            search.select(budget)


def test_select_names_layers_not_sites():
    candidates = softprompt.SoftPromptConfig(prompt="generated", placement="gated", layers=[0, 2], bottleneck=6)
    search = LayerSearch(get_peft_model(backbone(BERT, "seq_cls"), candidates))
    assert search.select(1, [0.0, 1.0]).layers == [2]
    assert search.select(2, [0.0, 1.0]).candidates == [0, 2]


@pytest.mark.parametrize("method", ["spt", "deep_prompts", "prompt_tuning"])
def test_a_prompt_without_gates_cannot_be_searched(method):
    with pytest.raises(SoftPromptError) as caught:
        LayerSearch(prompted(BERT, "seq_cls", method))
    placement = "input" if method == "prompt_tuning" else "deep"
    assert str(caught.value) == (
        f"a search of layers needs a prompt with gates: expected placement='gated', got {placement!r}; "
        "softprompt.spt() without layers has them."
    )


@pytest.mark.parametrize("family, head", [(BERT, "seq_cls"), (T5, "seq2seq_lm")], ids=str)
@torch.no_grad()
def test_ablation_scores_equal_separate_evaluations_of_sparse_prompts(family, head):
    model = gated(family, head, decoupled_gates=False)
    batches = [training_inputs(family, head) for _ in range(2)]
    batches[1] = {key: value[:1] if len(value) == 2 else value for key, value in batches[1].items()}  # 2 rows and 1

    def score(*layers):
        kept = sparse(model, family, head, layers)
        losses = [kept.get_base_model()(**inputs).loss.item() for inputs in batches]
        return -(2 * losses[0] + losses[1]) / 3

    model.train()
    found = LayerSearch(model).ablation_scores(batches)
    assert model.training
    others = {0: (1, 2), 1: (0, 2), 2: (0, 1)}
    expected = [score(0, 1, 2) - score(*others[i]) + score(i) for i in range(LAYERS)]
    close(torch.tensor(found), torch.tensor(expected))
    assert len({round(x, 4) for x in found}) == LAYERS


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_search_step_runs_under_gradient_checkpointing(reentrant):
    inputs, plain, recomputed = training_inputs(BERT, "seq_cls"), gated(BERT, "seq_cls"), gated(BERT, "seq_cls")
    recomputed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    searches = [LayerSearch(model.train()) for model in (plain, recomputed)]
    for search in searches:
        search.search_step(inputs)
    close(*(torch.tensor(search.gates) for search in searches))


# ---------------------------------------------------------------------- 11. the two halves


def ids(rows):
    return [row[0] for row in rows["input_ids"]]


def test_the_halves_are_disjoint_stratified_and_seeded():
    rows = encoded(*[0] * 20, *[1] * 11, *[2] * 6)
    train, held = split_for_search(rows, 3)
    assert sorted(ids(train) + ids(held)) == list(range(37))
    assert len(held) == 18 and len(train) == 19
    for label, count in ((0, 20), (1, 11), (2, 6)):
        assert abs(held["labels"].count(label) - count / 2) < 1
    again, other = split_for_search(rows, 3)[1], split_for_search(rows, 4)[1]
    assert ids(again) == ids(held) != ids(other)


def test_one_row_cannot_be_halved():
    with pytest.raises(
        SoftPromptError, match=r"a search of layers halves the training rows: expected at least 2, got 1\."
    ):
        split_for_search(encoded(0), 0)


def test_completion_rows_are_halved_too():
    train, held = split_for_search(encoded([-100, 7], [-100, 8], [9], [-100, 9]), 0)
    assert len(train) == len(held) == 2 and sorted(ids(train) + ids(held)) == [0, 1, 2, 3]


def test_one_row_per_class_leaves_rows_for_the_gates():
    """Or is refused: an empty half fails later, with a division by zero."""
    try:
        train, held = split_for_search(encoded(0, 1, 2, 3), 0)
    except SoftPromptError:
        return
    assert len(train) == len(held) == 2


# ---------------------------------------------------------------------- 12. the search beside a trainer


def searched(encoder, animals, folder, *callbacks, resume=None, **options):
    """Five steps with checkpoints after two and four (an epoch has three), with the backbone's own dropout."""
    torch.manual_seed(0)
    model = softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["bird", "cat", "dog"], "mean")
    model = get_peft_model(model, softprompt.spt(4, bottleneck=4, task_type="SEQ_CLS", **options))
    search = LayerSearch(model)
    words = tokenizer()
    rows, gate_rows = split_for_search(encode_classification(words, softprompt.load_task(animals).train, 24), 0)
    collate = collator(words, "classification")
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=5,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        save_strategy="steps",
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    callback = SearchCallback(search, gate_rows, collate, folder / "gates.jsonl", seed=1)
    trainer = softprompt.PromptTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[callback, *callbacks]
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, search, rows, gate_rows


@pytest.mark.parametrize("how", ["shared", "adam"])
def test_an_interrupted_search_goes_on_bit_for_bit(encoder, few_animals, tmp_path, how):
    model, search, *_ = searched(encoder, few_animals, tmp_path / "whole", gate_optimizer=how)
    log = tmp_path / "whole" / "gates.jsonl"
    entries = read_gates(log)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[-1]["gates"] == search.gates != [0.5, 0.5]
    assert entries[-1]["gradients"] == search.gradients != [0.0, 0.0]
    assert all(math.isfinite(entry["loss"]) for entry in entries)

    for step, checkpoint in ((3, 2), (5, 4)):  # killed a step after the checkpoint, while the next line was written
        cut = tmp_path / f"cut{step}"
        with pytest.raises(KeyboardInterrupt):
            searched(encoder, few_animals, cut, StopAt(step), gate_optimizer=how)
        assert [entry["step"] for entry in read_gates(cut / "gates.jsonl")] == list(range(1, step + 1))
        with (cut / "gates.jsonl").open("a") as file:
            file.write('{"step": 4, "loss": 0.')
        assert [entry["step"] for entry in read_gates(cut / "gates.jsonl")] == list(range(1, step + 1))
        resumed, other, *_ = searched(
            encoder,
            few_animals,
            cut,
            resume=str(cut / f"checkpoints/checkpoint-{checkpoint}"),
            gate_optimizer=how,
        )
        assert torch.equal(other.logits, search.logits) and other.gradients == search.gradients
        assert (cut / "gates.jsonl").read_text() == log.read_text()
        for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, two)


def begun(log, entry, how):
    """A search that takes up a log of one line."""
    log.write_text(json.dumps(entry) + "\n")
    callback = SearchCallback(LayerSearch(gated(BERT, "seq_cls", gate_optimizer=how)), encoded(*range(12)), list, log)
    callback.on_train_begin(SimpleNamespace(), TrainerState(global_step=1), TrainerControl())
    return callback.search


# what a version without shared gates wrote, and what is written now
OLD = {"step": 1, "loss": 1.2, "gates": [0.5, 0.5, 0.5], "moments": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]}
NEW = {**OLD, "gradients": [1.0, 2.0, 3.0], "moments": [[0.1, 0.2, 0.3], 0.4]}


@pytest.mark.parametrize("entry, how, other", [(OLD, "adam", "shared"), (NEW, "shared", "adam")])
def test_a_log_goes_on_with_the_optimizer_that_wrote_it(tmp_path, entry, how, other):
    search = begun(tmp_path / "log", entry, how)
    assert search.gradients == entry.get("gradients")  # a sum that was not kept is not made up
    assert search.select(1).gradients == entry.get("gradients")
    with pytest.raises(SoftPromptError, match=f"was written by a search with gate_optimizer='{how}': give"):
        begun(tmp_path / "log", entry, other)
    search.search_step(training_inputs(BERT, "seq_cls"))
    assert search.optimizer.state[search.logits]["step"] == 2


def test_every_pass_of_the_gates_takes_every_row_once(tmp_path):
    rows = encoded(*range(12))
    callback = SearchCallback(LayerSearch(gated(BERT, "seq_cls")), rows, lambda picked: picked, tmp_path / "log", 5)

    def taken(*steps, size=4):
        return [row["input_ids"][0] for step in steps for row in callback.batch(step, size)]

    assert sorted(taken(0, 1, 2)) == sorted(taken(3, 4, 5)) == list(range(12))
    assert taken(0, 1, 2) != taken(3, 4, 5)
    assert taken(4) == taken(4)  # a resumed search finds its batch again
    assert len(taken(0, size=5)) == 5 and len(set(taken(0, 1, size=5))) == 10
    assert sorted(taken(7, size=100)) == list(range(12))
