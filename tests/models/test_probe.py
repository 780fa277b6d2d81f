"""The linear probe on features without spread, without numbers, in half precision."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

import softprompt
from house.models import verbalized
from house.runs import values
from softprompt import NonFiniteError
from softprompt.models.kinds import KINDS
from softprompt.models.probe import fit_probe, score_template
from softprompt.training.keys.options import RunOptions


def test_a_feature_without_spread_has_no_weight_in_the_probe() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(size=(60, 8)).astype(np.float32) + labels[:, None]
    alone, bias = fit_probe(features, labels, 3)
    dead = np.concatenate([features, rng.normal(size=(60, 1)) * 1e-32, 5 + rng.normal(size=(60, 1)) * 1e-8], 1)
    weight, dead_bias = fit_probe(dead, labels, 3)
    assert torch.equal(weight[:, 8:], torch.zeros(3, 2))
    shared = torch.tensor(dead, dtype=torch.float32) @ weight.T + dead_bias
    assert (shared.argmax(1) == (torch.tensor(features, dtype=torch.float32) @ alone.T + bias).argmax(1)).all()
    assert weight.abs().max() < 10


def test_states_that_are_not_finite_have_no_probe() -> None:
    features = np.ones((4, 2))
    features[1, 1] = np.nan
    with pytest.raises(NonFiniteError, match="states of the training rows"):
        fit_probe(features, np.array([0, 1, 0, 1]), 2)


def test_a_template_is_scored_without_a_random_number_and_refused_without_numbers() -> None:
    """What is trained behind it must be what was trained before runs scored it."""
    words = {"a": "red", "b": "blue"}
    model, _ = verbalized(words)
    rows = Dataset.from_dict({"text": ["dog runs", "sun", "the cat here"], "label": [0, 1, 1]})
    encoded = {"train": None, "dev": model.verbalizer.encode(rows, max_length=16)}
    before = torch.random.get_rng_state()
    scores = score_template(model.train(), encoded, model.verbalizer.tokenizer, KINDS["classification"])
    assert list(scores) == ["dev"] and scores["dev"]["accuracy"] in (0, 1 / 3, 2 / 3, 1)
    assert torch.equal(torch.random.get_rng_state(), before) and model.training
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "embeddings" in name).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="scores of the label words on dev rows"):
        score_template(model, encoded, model.verbalizer.tokenizer, KINDS["classification"])


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "float32"])
def test_the_probe_of_the_embedded_encoder_fits_float16_and_trains(tmp_path: Path, dtype: str) -> None:
    """Two of its features are 1e-32: in float32 their weights were 1e30."""
    flat = {"data": "messages", "method": "prompt_tuning", "shots": 16, "dtype": dtype, "test_limit": 8}
    small = {"max_steps": 2, "num_virtual_tokens": 4, "max_length": 32, "use_cpu": True, "disable_tqdm": True}
    result = softprompt.train(RunOptions.from_flat({**flat, **small, "output_dir": str(tmp_path / "out")}))
    head = next(value for name, value in values(tmp_path / "out").items() if name.endswith("classifier.weight"))
    assert head.half().isfinite().all() and math.isfinite(result.metrics["dev loss"])
    assert result.document["meta_info"]["model_info"]["dtype"] == dtype


def test_flags_and_numbers_have_a_probe_each() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6)) * [1, 5, 0.1, 1, 1, 1] + 3
    flags = np.stack([features[:, 0] > 3, np.ones(40), np.zeros(40)], 1).astype(float)
    weight, bias = fit_probe(features, flags, 3)
    logits = features @ weight.numpy().T + bias.numpy()
    assert ((logits[:, 0] > 0) == (features[:, 0] > 3)).mean() > 0.9
    assert not weight[1:].any() and bias[1:].tolist() == pytest.approx([np.log(41), -np.log(41)])
    numbers = 2 * features[:, 1] - 7
    weight, bias = fit_probe(features, numbers, 1)
    assert weight.shape == (1, 6) and bias.shape == (1,)
    assert np.corrcoef(features @ weight.numpy()[0] + bias.item(), numbers)[0, 1] > 0.99
