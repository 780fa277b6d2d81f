"""Texts, or pairs of them, with a number each: read, learned, predicted, scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

import softprompt
from house.files import write_lines, write_table
from house.runs import options
from house.tiny import write_numbers
from softprompt import SoftPromptError, load_rows, load_task


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbers(tmp_path_factory.mktemp("numbers"))


def test_a_run_learns_numbers(encoder: Path, numbers: Path, tmp_path: Path) -> None:
    result = softprompt.train(
        options(encoder, numbers, tmp_path / "out", kind="regression", num_train_epochs=8), progress=False
    )
    assert result.metrics["test pearson"] > 0.8
    names = ("pearson", "spearman", "mean_squared_error", "mean_absolute_error", "loss")
    assert list(result.metrics) == [f"{split} {name}" for split in ("dev", "test") for name in names]
    for split in ("dev", "test"):
        assert result.metrics[f"{split} loss"] == pytest.approx(result.metrics[f"{split} mean_squared_error"], rel=1e-4)
    predictor = softprompt.Predictor(tmp_path / "out", batch_size=5)
    test = load_task(numbers, kind="regression").test
    found = [row["value"] for row in predictor.predict(test.to_list())]
    scores = predictor.evaluate(test)
    assert scores["pearson"] == pytest.approx(pearsonr(test["label"], found)[0])
    assert scores["spearman"] == pytest.approx(spearmanr(test["label"], found)[0])
    assert scores["mean_absolute_error"] == pytest.approx(np.mean(np.abs(np.subtract(found, test["label"]))))
    assert scores["pearson"] == pytest.approx(result.metrics["test pearson"]) and scores["rows"] == len(test)


def test_the_checkpoint_may_be_chosen_by_an_error(encoder: Path, numbers: Path, tmp_path: Path) -> None:
    chosen = {"kind": "regression", "metric_for_best_model": "mean_absolute_error", "num_train_epochs": 4}
    result = softprompt.train(options(encoder, numbers, tmp_path / "out", **chosen), progress=False)
    history = result.document["train_info"]["metrics"]
    seen = [entry["eval_mean_absolute_error"] for entry in history if "eval_mean_absolute_error" in entry]
    assert result.metrics["dev mean_absolute_error"] == pytest.approx(
        min(seen[:4])
    )  # then come the kept one and the test rows


@pytest.mark.parametrize("head", ["pooled", "stock"])
def test_pairs_and_heads(head: str, encoder: Path, tmp_path: Path) -> None:
    data = write_numbers(tmp_path / "pairs", pair=True)
    more = {"kind": "regression", "head": head, "num_train_epochs": 1}
    softprompt.train(options(encoder, data, tmp_path / "out", **more), progress=False)
    found = softprompt.Predictor(tmp_path / "out").predict([{"text": "red dog", "text_pair": "It was good"}])
    assert isinstance(found[0]["value"], float)


def test_texts_apart_are_compared(encoder: Path, tmp_path: Path) -> None:
    data = write_numbers(tmp_path / "pairs", pair=True)
    more = {"kind": "regression", "pairs": "apart", "num_train_epochs": 1}
    result = softprompt.train(options(encoder, data, tmp_path / "out", **more), progress=False)
    assert result.model.base_model.model.classifier.weight.shape == (1, 64)


@pytest.mark.parametrize("method", ["ept", "spt", "infoprompt", "tsloss", "peft:prompt_tuning"])
def test_methods(method: str, encoder: Path, numbers: Path, tmp_path: Path) -> None:
    more = {"method": method, "kind": "regression", "num_train_epochs": 1, **({"budget": 1} if method == "spt" else {})}
    result = softprompt.train(options(encoder, numbers, tmp_path / "out", **more), progress=False)
    assert all(np.isfinite(value) for value in result.metrics.values())


def test_whole_numbers_are_classes_unless_the_kind_is_named(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": i % 3} for i in range(60)]
    path = write_lines(tmp_path, rows)
    assert load_task(path).kind == "classification"
    task = load_task(path, kind="regression")
    assert task.kind == "regression" and task.label_names == []
    assert set(task.train["label"]) == {0.0, 1.0, 2.0}
    csv = write_table(tmp_path / "rows.csv", [{"text": f"t {i}", "label": i / 4} for i in range(60)])
    assert load_rows(csv, kind="regression")["label"][:3] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("label", "more", "message"),
    [
        (0.5, {"kind": None}, "the label 0.5 in column 'label' is a float; expected class names or whole numbers. To learn the numbers themselves, set kind=regression."),
        ("good", {}, "line 3: expected a finite number in column 'label' (kind=regression), got 'good'."),
        ("nan", {}, "line 3: expected a finite number in column 'label' (kind=regression), got 'nan'."),
        ("1e400", {}, "line 3: expected a finite number in column 'label' (kind=regression), got '1e400'."),
        (True, {}, "line 3: expected a finite number in column 'label' (kind=regression), got True."),
        ([1], {}, "line 3: expected a finite number in column 'label' (kind=regression), got [1]."),
        (None, {}, "line 3: the label in column 'label' is missing."),
        (1, {"label_names": ["a", "b"]}, "holds texts with numbers, which have no classes, but class names are given"),
        (1, {"kind": "number"}, "unknown kind 'number': expected one of classification, multilabel, regression, completion, tokens, chat."),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused(label: Any, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": i % 3} for i in range(30)]
    rows[2] = {"text": "t 2", "label": label}
    with pytest.raises(SoftPromptError) as error:
        load_task(write_lines(tmp_path, rows), **{"kind": "regression", **more})
    assert message in str(error.value)


def test_the_head_starts_from_ridge_regression(
    encoder: Path, numbers: Path, tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    softprompt.train(options(encoder, numbers, tmp_path / "out", kind="regression"), progress=False)
    assert any("training starts from a linear probe with dev pearson" in line for line in announced())


def test_a_number_needs_no_names() -> None:
    import transformers as tf

    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    model = softprompt.PooledClassifier(tf.BertModel(tf.BertConfig(**small)), [], "mean", problem_type="regression")
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
    with torch.no_grad():
        seen = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([1.0, 3.5]))
    assert seen.logits.shape == (2, 1)
    assert seen.loss == pytest.approx(((seen.logits[:, 0] - torch.tensor([1.0, 3.5])) ** 2).mean().item())
