"""Which layers a head should read: leave-one-out in closed form, its candidates, and the choice in a run."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel

import softprompt
from house.runs import options, trained
from house.tiny import tokenizer
from softprompt import NonFiniteError, SoftPromptError
from softprompt.data import batches, encode_classification
from softprompt.models.features import (
    LeaveOneOut,
    best_of,
    candidate_layers,
    choose_features,
    compare_layers,
    held_out_scores,
    judge,
    kernel,
    layer_states,
)
from softprompt.training.keys.options import RunOptions
from softprompt.training.prepare import prepare


def refitted(features, labels, classes, penalty):
    """Ridge with a free intercept, N times on the other rows, in its primal form."""
    scores = []
    for row in range(len(labels)):
        others = np.arange(len(labels)) != row
        x, y = features[others], np.eye(classes)[labels[others]]
        mean, target = x.mean(0), y.mean(0)
        x, y = x - mean, y - target
        weight = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
        scores.append((features[row] - mean) @ weight + target)
    return np.array(scores)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(4, 24),
    width=st.integers(1, 40),
    classes=st.integers(2, 4),
    penalty=st.sampled_from([0.1, 1.0, 7.0]),
    seed=st.integers(0, 10**6),
)
def test_closed_form_equals_refitting_without_each_row(rows, width, classes, penalty, seed):
    rng = np.random.default_rng(seed)
    features, labels = (
        rng.normal(size=(rows, width)),
        rng.integers(0, classes, rows),
    )  # a class may have one row, or none
    found = held_out_scores(features @ features.T, labels, classes, penalty)
    np.testing.assert_allclose(found, refitted(features, labels, classes, penalty), atol=1e-8, rtol=1e-7)


def test_a_row_scores_as_if_it_were_not_there():
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(12, 5)), np.arange(12) % 3
    changed = labels.copy()
    changed[4] = (labels[4] + 1) % 3
    before, after = (held_out_scores(features @ features.T, y, 3) for y in (labels, changed))
    np.testing.assert_allclose(before[4], after[4], atol=1e-10)
    assert np.abs(before[5] - after[5]).max() > 1e-4


def test_dead_and_constant_features_count_for_nothing():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 6)).astype(np.float32), np.arange(20) % 2
    dead = np.concatenate([features, np.full((20, 2), 3.0), 5 + rng.normal(size=(20, 1)) * 1e-9], 1).astype(np.float32)
    gram, alive = kernel(dead)
    assert alive == 6
    expected = StandardScaler().fit_transform(features.astype(np.float64))
    np.testing.assert_allclose(gram, expected @ expected.T, atol=1e-4)
    constant = np.ones((20, 6), dtype=np.float32)
    found = compare_layers([constant, features], labels, 2, {"none": [0], "both": [0, 1], "one": [1]})
    np.testing.assert_allclose(found["both"].losses, found["one"].losses, atol=1e-6)
    assert found["none"].accuracy == 0 and np.isfinite(found["none"].loss)  # without a row its class is the rarer one


def test_loss_and_accuracy_of_scores():
    scores, labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.4, 0.6]]), np.array([0, 1, 0])
    found = judge(scores, labels)
    by_hand = [
        np.mean([np.log(1 + np.exp(-k)), np.log(1 + np.exp(-k)), np.log(1 + np.exp(0.2 * k))])
        for k in 2.0 ** np.arange(7)
    ]
    assert found.accuracy == pytest.approx(2 / 3) and found.loss == pytest.approx(min(by_hand))


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 12, 24, 48])
def test_candidates_suit_any_depth(depth):
    sets = candidate_layers(depth)
    assert sets["last"] == [depth]
    assert sets.get("upper half", [depth])[0] * 2 >= depth
    assert len({tuple(layers) for layers in sets.values()}) == len(sets)
    for layers in sets.values():
        assert layers == sorted(set(layers)) and layers[0] >= 0 and layers[-1] <= depth and len(layers) <= 7


def test_candidates_of_six_layers():
    assert candidate_layers(6) == {
        "last": [6],
        "at two thirds": [4],
        "upper half": [3, 4, 5, 6],
        "all": [0, 1, 2, 3, 4, 5, 6],
    }


# ---------------------------------------------------------------- the choice


def test_another_set_must_be_clearly_better_than_the_upper_half():
    rng = np.random.default_rng(0)
    upper, noise = rng.uniform(0.4, 0.8, 50), rng.normal(size=50)
    noise -= noise.mean()

    def chosen(gain, spread):
        other = LeaveOneOut(0.9, upper - gain - spread * noise)
        return best_of({"last": other, "upper half": LeaveOneOut(0.8, upper)})

    assert chosen(0.1, 0.1) == "last" and chosen(-0.1, 0.1) == "upper half"
    assert chosen(0.01, 0.3) == "upper half"  # lower, but within one standard error of 0.3 / sqrt(50)
    assert chosen(0.08, 0.3) == "last"
    assert best_of({"last": LeaveOneOut(0.5, upper), "all": LeaveOneOut(0.5, upper + 1)}) == "last"


def planted(encoder, layer):
    """A classifier, and encoded rows whose class is the sign of a direction in one layer's pooled state."""
    torch.manual_seed(0)
    model = softprompt.classifier_for(AutoModel.from_pretrained(encoder), ["a", "b"], "mean").eval()
    words = [
        f"{a} {b} {c}" for a in ("red", "green", "blue") for b in ("dog", "cat", "bird") for c in ("sun", "now", "bad")
    ]
    rows = encode_classification(tokenizer(), Dataset.from_dict({"text": words, "label": [0] * len(words)}), 24)
    states = layer_states(model, batches(rows, tokenizer(), "classification"))
    rng = np.random.default_rng(1)
    direction = rng.normal(size=states[layer].shape[1])
    values = (states[layer] - states[layer].mean(0)) @ direction
    return model, rows.remove_columns("labels").add_column("labels", (values > np.median(values)).astype(int).tolist())


def test_states_of_layers_are_those_of_the_backbone_and_the_model_stays_as_it_was(encoder):
    model, rows = planted(encoder, 1)
    head, (batch,) = model.classifier, list(batches(rows, tokenizer(), "classification"))
    states = layer_states(model, [batch])
    with torch.no_grad():
        expected = model.backbone(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states
    mask = batch["attention_mask"].unsqueeze(-1)
    assert len(states) == len(expected) == 3
    for found, hidden in zip(states, expected, strict=True):
        np.testing.assert_allclose(found, ((hidden * mask).sum(1) / mask.sum(1)).numpy(), atol=1e-5)
    assert model.features is None and model.classifier is head


def test_states_that_are_not_finite_choose_nothing(encoder):
    model, rows = planted(encoder, 1)
    with torch.no_grad():
        model.backbone.encoder.layer[0].output.dense.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="states of the training rows"):
        choose_features(model, rows, tokenizer())


def test_the_choice_has_the_lowest_loss_and_says_all_figures(encoder):
    model, rows = planted(encoder, 0)
    layers, reason = choose_features(model, rows, tokenizer())
    states = layer_states(model, batches(rows, tokenizer(), "classification", 7))
    sets = candidate_layers(2)
    found = compare_layers(states, np.asarray(rows["labels"]), 2, sets)
    best = best_of(found)
    assert layers == (None if best == "last" else sets[best])
    for name, one in found.items():
        assert f"{sets[name]} {one.accuracy:.3f} ({one.loss:.3f})" in reason
    assert reason.startswith("leave-one-out accuracy (loss) on 27 training rows: [2] ")


def test_a_run_chooses_by_training_rows_and_its_adapter_keeps_the_choice(encoder, animals, tmp_path, announced):
    result = trained(encoder, animals, tmp_path / "run", features="auto", num_train_epochs=1)
    (said,) = [line for line in announced() if line.startswith("features=")]
    card = softprompt.models.TaskCard.read(tmp_path / "run")
    assert said.startswith(f"features={'last' if card.features is None else card.features}: leave-one-out")
    assert result.document["meta_info"]["model_info"]["features"] == card.features
    chosen = options(encoder, animals, tmp_path / "run", features="auto")
    prepared = prepare(chosen)
    blind = {name: rows for name, rows in prepared.encoded.items() if name == "train"}
    assert choose_features(prepared.model, blind["train"], prepared.tokenizer)[0] == card.features
    predictor = softprompt.Predictor(tmp_path / "run")
    assert predictor.evaluate(softprompt.load_task(animals).test)["accuracy"] == pytest.approx(
        result.metrics["test accuracy"]
    )


@pytest.mark.parametrize("method", ["prompt_tuning", "contrast", "peft:lora", "peft:prefix_tuning"])
def test_named_layers_train_save_and_predict(method, encoder, animals, tmp_path):
    own = {"r": 2} if method == "peft:lora" else {"num_virtual_tokens": 2}
    flat = options(encoder, animals, tmp_path / "run").to_flat()
    flat.pop("num_virtual_tokens")
    more = {"method": method, "features": [0, 2], "num_train_epochs": 1}
    result = softprompt.train(RunOptions.from_flat({**flat, **own, **more}), progress=False)
    assert softprompt.models.TaskCard.read(tmp_path / "run").features == [0, 2]
    predictor = softprompt.Predictor(tmp_path / "run")
    assert predictor.model.get_base_model().features == (0, 2)
    assert predictor.evaluate(softprompt.load_task(animals).test)["accuracy"] == pytest.approx(
        result.metrics["test accuracy"]
    )


@pytest.mark.parametrize(
    "more, why",
    [
        ({"head": "stock"}, "head='stock' reads the last one"),
        ({"method": "infoprompt"}, "the objective 'head_information' compares rows of the head"),
        ({"track": "mi"}, "track='mi' compares rows of the head"),
        (
            {"method": "deep_prompts", "layers": [1], "cache_below": "memory"},
            "cache_below='memory' leaves lower layers out",
        ),
    ],
)
def test_where_something_knows_the_last_layer_alone(more, why, encoder, animals, tmp_path, announced):
    with pytest.raises(SoftPromptError, match=r"features=\[1, 2\] lets the head read several layers, but") as error:
        prepare(options(encoder, animals, tmp_path / "a", features=[1, 2], **more))
    assert why in str(error.value)
    assert prepare(options(encoder, animals, tmp_path / "b", features="auto", **more)).card.features is None
    assert any(line.startswith("features=last: ") and why in line for line in announced())


@pytest.mark.parametrize("layers", [[], [3], [-1, 2], [1, 1]], ids=str)
def test_layers_that_do_not_exist(layers, encoder, animals, tmp_path):
    with pytest.raises(SoftPromptError, match=r"expected different layers of 0 \(what enters the first one\) to 2"):
        prepare(options(encoder, animals, tmp_path / "a", features=layers))
    with pytest.raises(SoftPromptError, match="expected different layers of 0"):
        softprompt.training.plan(options(encoder, animals, tmp_path / "a", features=layers))


@pytest.mark.parametrize("given", ["first", 3, [0.5], {"a": 1}], ids=str)
def test_what_features_may_be(given, encoder, animals, tmp_path):
    with pytest.raises(SoftPromptError, match="features"):
        options(encoder, animals, tmp_path / "a", features=given)


def test_the_penalty_does_not_go_by_the_number_of_layers() -> None:
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(30, 6)).astype(np.float32), np.arange(30) % 3
    found = compare_layers([states, states], labels, 3, {"one": [0], "twice": [0, 1]})
    assert found["one"].losses == pytest.approx(found["twice"].losses)
