"""A metric of the user's own: what it reads, under which name it stands, what it chooses, and what it may not do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softprompt
from house.tiny import save_backbone, write_completion
from softprompt import RunOptions, SoftPromptError
from softprompt.training.metric import metric_name

Made = Callable[..., RunOptions]


def cost(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The mean share that goes to the wrong classes."""
    assert predictions.shape == (len(labels), 3) and np.allclose(predictions.sum(1), 1)
    return float(1 - predictions[np.arange(len(labels)), labels].mean())


def test_it_stands_among_the_scores_and_chooses_the_checkpoint(made_options: Made, tmp_path: Path) -> None:
    own = made_options(num_train_epochs=3, metric_for_best_model="cost", greater_is_better=False, score_last=True)
    result = softprompt.train(own, progress=False, metric=cost)
    info = result.document["train_info"]
    during = [entry for entry in info["metrics"] if "eval_cost" in entry][:3]
    best = min(during, key=lambda entry: float(entry["eval_cost"]))
    assert info["best_checkpoint_step"] == best["step"] and info["dev cost"] == best["eval_cost"]
    assert (info["metric_for_best_model"], info["greater_is_better"]) == ("cost", False)
    scored = softprompt.Predictor(tmp_path / "out").predict(softprompt.load_task(own.data).test.to_list())
    labels = softprompt.load_task(own.data).test["label"]
    names = result.document["meta_info"]["dataset_info"]["label_names"]
    by_hand = 1 - np.mean([line["scores"][names[label]] for line, label in zip(scored, labels, strict=True)])
    assert result.metrics["test cost"] == pytest.approx(by_hand, abs=1e-5)
    assert {"dev cost", "test cost"} <= info["last"].keys()
    assert "test cost" in (tmp_path / "out" / "README.md").read_text()


def test_several_numbers_have_their_own_names(made_options: Made) -> None:
    def errors(predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        wrong = predictions.argmax(1) != labels
        return {"wrong": wrong.sum(), "wrong_share": torch.tensor(float(wrong.mean()))}

    own = made_options(num_train_epochs=1, metric_for_best_model="wrong", greater_is_better=False)
    metrics = softprompt.train(own, progress=False, metric=errors).metrics
    assert metrics["test wrong_share"] == pytest.approx(1 - metrics["test accuracy"])
    assert metrics["dev wrong"] == round(18 * (1 - metrics["dev accuracy"]))


def test_of_tagged_words_it_reads_the_names_of_tags(encoder: Path, pets: Path, tmp_path: Path) -> None:
    seen = []

    def exact_rows(predictions: list[list[str]], labels: list[list[str]]) -> float:
        seen.append((predictions, labels))
        return float(np.mean([one == other for one, other in zip(predictions, labels, strict=True)]))

    flat = {"backbone": str(encoder), "data": str(pets), "output_dir": str(tmp_path / "out"), "method": "prompt_tuning"}
    small = {"num_virtual_tokens": 3, "max_length": 24, "max_steps": 2, "dtype": "float32", "disable_tqdm": True}
    result = softprompt.train(RunOptions.from_flat({**flat, **small}), progress=False, metric=exact_rows)
    assert 0 <= result.metrics["test exact_rows"] <= 1
    test = softprompt.load_task(str(pets)).test
    predictions, labels = seen[-1]
    assert sorted(map(len, labels)) == sorted(map(len, test["tags"])) and {"O", "B-PET"} <= {
        t for row in labels for t in row
    }
    assert [len(row) for row in predictions] == [len(row) for row in labels]


def bad(value: Any) -> Callable[[Any, Any], Any]:
    def mine(predictions: Any, labels: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    return mine


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (ZeroDivisionError("division\n by zero"), r"^metric 'mine' raised ZeroDivisionError: division by zero$"),
        ("high", r"^metric 'mine': expected a finite number, got 'high'"),
        (float("nan"), r"^metric 'mine': expected a finite number, got nan"),
        (True, r"^metric 'mine': expected a finite number, got True"),
        ({"a": 1.0, "b": None}, r"^metric 'mine': 'b': expected a finite number, got None"),
        ({}, r"^metric 'mine': expected a number, or numbers by name, got \{\}"),
        ({1: 2.0}, r"^metric 'mine': expected a number, or numbers by name, got \{1: 2.0\}"),
        ({"accuracy": 0.5}, r"^metric 'mine': the name 'accuracy' is taken"),
        ({"loss": 0.5}, r"^metric 'mine': the name 'loss' is taken"),
    ],
)
def test_what_it_may_not_do_is_one_message_with_its_name(value: Any, said: str, made_options: Made) -> None:
    with pytest.raises(SoftPromptError, match=said):
        softprompt.train(made_options(num_train_epochs=1), progress=False, metric=bad(value))


def test_a_score_that_nobody_gives_cannot_choose(made_options: Made, tmp_path: Path) -> None:
    with pytest.raises(
        SoftPromptError, match=r"metric_for_best_model='mean': expected one of .*mine.* Did you mean 'mine'\?"
    ):
        softprompt.train(made_options(metric_for_best_model="mean"), progress=False, metric=bad(0.5))
    with pytest.raises(SoftPromptError, match="unknown metric_for_best_model 'mine'"):
        softprompt.train(made_options(metric_for_best_model="mine", output_dir=str(tmp_path / "none")), progress=False)


def test_it_is_refused_where_it_would_read_nothing(made_options: Made, tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match=r"metric: expected a function of \(predictions, labels\), got str"):
        softprompt.train(made_options(), metric="accuracy")  # type: ignore[arg-type]
    with pytest.raises(SoftPromptError, match="prediction_loss_only=True leaves no predictions"):
        softprompt.train(made_options(prediction_loss_only=True), metric=bad(0.5))
    lines = {
        "backbone": str(save_backbone(tmp_path / "decoder", "decoder")),
        "data": str(write_completion(tmp_path / "l")),
    }
    with pytest.raises(SoftPromptError, match=r"metric 'mine': a completion task is scored by its loss alone"):
        softprompt.train(made_options(**lines), metric=bad(0.5))
    assert not (tmp_path / "out").exists()


def test_names() -> None:
    class Score:
        def __call__(self, predictions: Any, labels: Any) -> float:
            return 0.5

    assert [metric_name(each) for each in (cost, functools.partial(cost), Score(), lambda *given: 0.5)] == [
        "cost",
        "cost",
        "Score",
        "metric",
    ]
