"""The head that is fitted on prompted states."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, TrainerControl

import softprompt
from house.runs import StopAfter, options, trained
from softprompt import SoftPromptError
from softprompt.data import collator
from softprompt.models.classifier import PooledClassifier
from softprompt.models.probe import fit_probe, head_features
from softprompt.training.arguments import batch_size_for
from softprompt.training.keys.options import RunOptions
from softprompt.training.loop.refit import HeadFitCallback, choose_head_fit
from softprompt.training.prepare import prepare

H, CONTRAST = 6, [{"name": "contrastive", "weight": 10.0}]


@pytest.mark.parametrize("method", ["deep_prompts", "peft:lora"])
def test_a_fitted_head_is_the_probe_of_the_prompted_states(method, encoder, animals, tmp_path):
    more = {"method": method, "head_fit": "probe", "num_train_epochs": 3}
    if method == "peft:lora":
        flat = options(encoder, animals, tmp_path / "run").to_flat()
        flat.pop("num_virtual_tokens")
        chosen = RunOptions.from_flat({**flat, **more, "r": 2})
        result = softprompt.train(chosen, progress=False)
    else:
        chosen = options(encoder, animals, tmp_path / "run", **more)
        result = softprompt.train(chosen, progress=False)
    model, prepared = result.model, prepare(chosen)
    head = model.get_base_model().classifier.modules_to_save["default"]
    rows = prepared.encoded["train"]
    batch = collator(prepared.tokenizer, "classification")(rows.to_list())
    features = head_features(model, head, [batch])
    weight, bias = fit_probe(features, np.asarray(rows["labels"]), 3)
    expected = torch.tensor(features) @ weight.T + bias
    torch.testing.assert_close(
        torch.tensor(features) @ head.weight.detach().T + head.bias.detach(), expected, atol=1e-3, rtol=1e-3
    )
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    (name,) = [key for key in saved if key.endswith("classifier.weight")]
    assert torch.equal(saved[name], head.weight.detach().cpu())


@pytest.mark.parametrize("size, share", [(None, 0.8), (64, 1.0)])
def test_few_rows_are_fitted_in_batches_of_one_length(size, share, encoder, animals, tmp_path):
    """The head is the same in batches of any size; small ones hold less padding."""
    prepared = prepare(options(encoder, animals, tmp_path / "run"))
    collate, positions = collator(prepared.tokenizer, "classification"), []
    whole = collate(prepared.encoded["train"].to_list())

    def counted(rows):
        batch = collate(rows)
        positions.append(batch["input_ids"].numel())
        return batch

    HeadFitCallback(prepared.encoded["train"], counted, size).fit(prepared.model)
    assert len(prepared.encoded["train"]) == 60 and (sum(positions) < share * whole["input_ids"].numel()) == (
        size is None
    )
    features = head_features(prepared.model, prepared.model.classifier, [whole])
    weight, bias = fit_probe(features, whole["labels"].numpy(), 3)
    head = prepared.model.classifier
    logits = torch.tensor(features) @ head.weight.detach().T + head.bias.detach()
    torch.testing.assert_close(logits, torch.tensor(features) @ weight.T + bias, atol=1e-3, rtol=1e-3)


def test_a_batch_is_an_eighth_of_the_rows_within_bounds():
    def batch(count):
        return HeadFitCallback(Dataset.from_dict({"input_ids": [[1]] * count}), None).batch_size

    assert [batch(count) for count in (10, 160, 1000)] == [8, 20, 64]


def test_a_head_is_fitted_where_an_evaluation_is_due(monkeypatch):
    callback, fitted = HeadFitCallback(Dataset.from_dict({"input_ids": [[1]]}), None), []
    monkeypatch.setattr(callback, "fit", fitted.append)
    for tell in (callback.on_step_end, callback.on_epoch_end):
        for due in (False, True):
            tell(None, None, TrainerControl(should_evaluate=due), model=(tell.__name__, due))
    assert fitted == [("on_step_end", True), ("on_epoch_end", True)]


def test_contrast_chooses_the_fitted_head_and_says_so(encoder, animals, tmp_path, announced):
    result = trained(encoder, animals, tmp_path / "run", objectives=CONTRAST)
    assert "head_fit=probe: the objective 'contrastive' shapes the states that the head reads" in announced()
    logged = [entry["contrastive"] for entry in result.document["train_info"]["metrics"] if "contrastive" in entry]
    assert len(logged) == 2 and all(value > 0 for value in logged)
    found = softprompt.Predictor(tmp_path / "run").evaluate(softprompt.load_task(animals).test)["accuracy"]
    assert found == pytest.approx(result.metrics["test accuracy"])


def test_gradient_trains_the_head_under_contrast_too(encoder, animals, tmp_path, announced):
    trained(encoder, animals, tmp_path / "run", objectives=CONTRAST, head_fit="gradient")
    assert not [said for said in announced() if said.startswith("head_fit")]
    model = PooledClassifier(AutoModel.from_pretrained(encoder), ["a", "b"], "mean")
    assert choose_head_fit("gradient", None, model, softprompt.contrast()) == "gradient"


def test_a_head_is_trained_at_its_rate_or_fitted(encoder, animals, tmp_path, announced):
    with pytest.raises(
        SoftPromptError, match=r"head_learning_rate=0.01 is of a head that is trained, .*; drop the other"
    ):
        trained(encoder, animals, tmp_path / "both", head_fit="probe", head_learning_rate=0.01)
    trained(encoder, animals, tmp_path / "run", objectives=CONTRAST, head_learning_rate=0.01)
    assert "head_fit=gradient: head_learning_rate=0.01 is of a head that is trained" in announced()


def test_a_resumed_run_fits_the_same_head(encoder, animals, tmp_path):
    more = {"objectives": CONTRAST, "num_train_epochs": 3}
    trained(encoder, animals, tmp_path / "whole", **more)
    cut = options(encoder, animals, tmp_path / "cut", **more)
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(cut, callbacks=[StopAfter(2)], progress=False)
    softprompt.train(cut, resume=True, progress=False)
    mine, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_only_one_linear_layer_can_be_fitted(encoder):
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    with pytest.raises(
        SoftPromptError, match=r"head_fit='probe' fits one linear layer on pooled states: expected .*head='pooled'"
    ):
        choose_head_fit("probe", None, model)
    assert choose_head_fit("auto", None, model) == "gradient"


def test_an_unknown_fit_is_named(encoder, animals, tmp_path):
    with pytest.raises(SoftPromptError, match="head_fit"):
        options(encoder, animals, tmp_path, head_fit="probes")


def test_many_classes_make_a_batch_large_enough_to_hold_pairs(announced):
    made = softprompt.contrast()
    assert batch_size_for(made, rows=1000, classes=6) == batch_size_for(None, rows=1000, classes=77) == 16
    assert batch_size_for(softprompt.deep_prompts(), rows=1000, classes=77) == 16 and announced() == []
    assert batch_size_for(made, rows=1000, classes=60) == 121 and batch_size_for(made, rows=90, classes=77) == 90
    assert batch_size_for(made, rows=1000, classes=500) == 128
    assert announced()[0].startswith("per_device_train_batch_size=121: of 60 classes a batch of 16 rows has hardly two")


def test_a_head_is_fitted_on_cached_states_too(encoder, animals, tmp_path):
    found = {}
    for name in ("none", "memory"):
        more = {"method": "contrast", "num_virtual_tokens": 1, "layers": [1], "cache_below": name}
        trained(encoder, animals, tmp_path / name, **more)
        found[name] = load_file(tmp_path / name / "adapter_model.safetensors")
    assert found["none"].keys() == found["memory"].keys()
    for key, value in found["none"].items():
        torch.testing.assert_close(found["memory"][key], value, atol=1e-4, rtol=1e-4)


def test_a_head_is_fitted_on_prompts_that_read_unprompted_states(encoder, animals, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    more = {"method": "infoprompt", "generator": "instance", "head_fit": "probe"}
    result = trained(encoder, animals, tmp_path / "run", **more)
    found = softprompt.Predictor(tmp_path / "run").evaluate(softprompt.load_task(animals).test)["accuracy"]
    assert found == pytest.approx(result.metrics["test accuracy"])
