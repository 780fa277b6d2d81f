"""Texts with several classes, or none: read, learned, predicted, scored, served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional as F

import softprompt
from house.files import write_lines
from house.runs import call, options
from house.tiny import write_several
from softprompt import SoftPromptError, load_task

NAMES = ["cat", "dog", "sun"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_several(tmp_path_factory.mktemp("several"))


def test_a_run_learns_each_class(
    encoder: Path, several: Path, tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    result = softprompt.train(options(encoder, several, tmp_path / "out", num_train_epochs=6), progress=False)
    assert result.metrics["test micro_f1"] > 0.65
    names = ("micro_f1", "macro_f1", "accuracy", "loss")
    assert list(result.metrics) == [f"{split} {name}" for split in ("dev", "test") for name in names]
    probe = result.document["train_info"]["probe"]
    assert f"dev micro_f1 {probe['dev']:.3f}" in " ".join(announced())
    assert softprompt.models.TaskCard.read(tmp_path / "out").kind == "multilabel"

    predictor = softprompt.Predictor(tmp_path / "out", batch_size=5)
    test = load_task(several).test
    found = predictor.predict(test.to_list())
    for row in found:
        assert row["labels"] == [name for name in NAMES if row["scores"][name] >= 0.5]
    scores = predictor.evaluate(test)
    flags = [[name in row["labels"] for name in NAMES] for row in found]
    true = [[c in own for c in range(3)] for own in test["label"]]
    assert scores["micro_f1"] == pytest.approx(f1_score(true, flags, average="micro"))
    assert scores["accuracy"] == sum(a == b for a, b in zip(true, flags, strict=True)) / len(test)
    assert {name: scores[name] for name in names[:3]} == {
        name: pytest.approx(result.metrics[f"test {name}"]) for name in names[:3]
    }
    assert [scores["per_class"][name]["support"] for name in NAMES] == [
        sum(column) for column in zip(*true, strict=True)
    ]


def test_its_loss_is_that_of_each_class(encoder: Path, several: Path, tmp_path: Path) -> None:
    result = softprompt.train(options(encoder, several, tmp_path / "out"), progress=False)
    batch = {"input_ids": torch.tensor([[2, 8, 3], [2, 9, 3]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    with torch.no_grad():
        seen = result.model.eval()(**batch, labels=labels)
    assert seen.loss == pytest.approx(F.binary_cross_entropy_with_logits(seen.logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("head", ["pooled", "stock"])
@pytest.mark.parametrize("method", ["ept", "infoprompt", "tsloss", "peft:prompt_tuning"])
def test_methods_and_heads(method: str, head: str, encoder: Path, several: Path, tmp_path: Path) -> None:
    result = softprompt.train(options(encoder, several, tmp_path / "out", method=method, head=head), progress=False)
    assert result.metrics["test loss"] > 0
    assert softprompt.Predictor(tmp_path / "out").predict([{"text": "red dog"}])[0].keys() == {"labels", "scores"}


def test_flags_are_read_as_well_as_names(tmp_path: Path, announced: Callable[[], list[str]]) -> None:
    named = [{"text": f"{i} a", "label": own} for i, own in enumerate([["a", "b"], [], ["b"], ["c"], ["a"]] * 6)]
    flags = [{**row, "label": [int(name in row["label"]) for name in "abc"]} for row in named]
    one = load_task(write_lines(tmp_path / "names", named))
    two = load_task(write_lines(tmp_path / "flags", flags), label_names=["a", "b", "c"])
    assert one.kind == two.kind == "multilabel" and one.label_names == two.label_names
    assert one.train.to_list() == two.train.to_list() and one.test.to_list() == two.test.to_list()
    assert load_task(tmp_path / "flags" / "train.jsonl").label_names == ["0", "1", "2"]
    assert any(
        line.startswith("the labels of train.jsonl are read as flags: each list in column 'label'")
        for line in announced()
    )
    # as a hub data set with a list of ClassLabel keeps them
    parquet = tmp_path / "few.parquet"
    datasets.Dataset.from_list(named).to_parquet(str(parquet))
    assert load_task(parquet).train.to_list() == one.train.to_list()


def test_the_training_rows_say_whether_lists_are_flags(tmp_path: Path) -> None:
    rows = [{"text": f"{i} a", "label": own} for i, own in enumerate([[0], [1], [0, 1]] * 8)]
    both = [{"text": f"{i} b", "label": [0, 1]} for i in range(12)]
    write_lines(tmp_path, rows)
    write_lines(tmp_path, both, "validation.jsonl")
    write_lines(tmp_path, both, "test.jsonl")
    assert set(map(tuple, load_task(tmp_path).test["label"])) == {(0, 1)}
    ones = [{"text": f"{i} a", "label": [i % 3]} for i in range(24)]  # lists of one are no flags
    assert load_task(write_lines(tmp_path / "ones", ones)).label_names == ["0", "1", "2"]
    write_lines(tmp_path, [{**row, "label": [int(c in row["label"]) for c in range(2)]} for row in rows])
    assert set(map(tuple, load_task(tmp_path).test["label"])) == {(1,)}
    write_lines(tmp_path, rows, "test.jsonl")
    with pytest.raises(
        SoftPromptError, match="expected lists of 2 flags, 0 or 1, in column 'label', as in the training rows"
    ):
        load_task(tmp_path)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ([0, 1], "line 5: got [0, 1] in column 'label', where other rows have 3 flags, 0 or 1, one for each class"),
        ([0, 2, 0], "line 5: got [0, 2, 0] in column 'label', where other rows have 3 flags"),
        (["a"], "line 5: got ['a'] in column 'label', where other rows have 3 flags"),
    ],
)
def test_a_row_that_is_no_list_of_flags_is_named(odd: list[Any], message: str, tmp_path: Path) -> None:
    rows = [{"text": f"{i} a", "label": [i % 2, 0, int(i % 3 == 0)]} for i in range(30)]
    rows[4]["label"] = odd
    with pytest.raises(SoftPromptError) as error:
        load_task(write_lines(tmp_path, rows))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("a", "line 3: expected a list of labels in column 'label', got 'a'; write one label as a list of one."),
        (["a", "a"], "line 3: the label 'a' stands twice in column 'label'; keep one."),
        (["a", 0.5], "line 3: the label 0.5 in column 'label' is a float;"),
        ([["a"]], "line 3: expected a class name or number in column 'label', got list"),
        (None, "line 3: the label in column 'label' is missing."),
    ],
)
def test_what_is_no_list_of_labels_is_refused(label: Any, message: str, tmp_path: Path) -> None:
    rows = [{"text": f"{i} a", "label": ["a", "b"][: i % 3]} for i in range(30)]
    rows[2] = {"text": "2 a", "label": label}
    with pytest.raises(SoftPromptError) as error:
        load_task(write_lines(tmp_path, rows))
    assert message in str(error.value)


def test_what_compares_single_classes_is_refused(encoder: Path, several: Path, tmp_path: Path) -> None:
    for more, message in (
        ({"method": "contrast"}, "the objective 'contrastive' (method 'contrast') compares rows of one class with others, and rows of a multilabel task"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 shares a row's weight among classes that exclude each other"),
        ({"head": "verbalizer", "template": "{text} {mask}", "label_words": {n: n for n in NAMES}}, "head='verbalizer' gives each text one class; for a multilabel task use head='pooled'."),
        ({"track": "accuracy"}, "got a multilabel task"),
    ):  # fmt: skip
        with pytest.raises(SoftPromptError) as error:
            softprompt.train(options(encoder, several, tmp_path / "out", **more), progress=False)
        assert message in str(error.value)


def test_layers_by_rows_are_the_last_ones(
    encoder: Path, several: Path, tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    result = softprompt.train(options(encoder, several, tmp_path / "out", features="auto"), progress=False)
    assert result.document["meta_info"]["model_info"]["features"] is None
    assert any(line.startswith("features=last: training rows choose layers by their classes") for line in announced())


def test_the_command_line(
    encoder: Path, several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    softprompt.train(options(encoder, several, tmp_path / "out", num_train_epochs=1), progress=False)
    capsys.readouterr()

    assert call(monkeypatch, "eval", tmp_path / "out", "--data", several) == 0
    shown = capsys.readouterr()
    assert {"micro_f1", "per_class"} <= json.loads(shown.out).keys() and "precision" in shown.err
    table = tmp_path / "found.csv"
    assert call(monkeypatch, "predict", tmp_path / "out", "--output", table, stdin='{"text": "red dog"}\n') == 0
    assert table.read_text().splitlines()[0] == (
        '"text","predicted_labels","predicted_score_cat","predicted_score_dog","predicted_score_sun"'
    )


def test_head_and_tail_of_long_texts_are_read_alike_in_use(encoder: Path, several: Path, tmp_path: Path) -> None:
    more = {"cut": "middle", "max_length": 6, "num_train_epochs": 1}
    softprompt.train(options(encoder, several, tmp_path / "out", **more), progress=False)
    card = json.loads((tmp_path / "out" / "task.json").read_text())
    assert card["cut"] == "middle" and "cut" in card["sha256"]
    predictor = softprompt.Predictor(tmp_path / "out")
    long, same, other = (
        "cat now then here there dog",
        "cat sun sun sun then here there dog",
        "cat now then here there sun",
    )
    scores = [row["scores"] for row in predictor.predict([{"text": text} for text in (long, same, other)])]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6) and scores[0] != pytest.approx(scores[2], abs=1e-4)
    with pytest.raises(SoftPromptError) as error:
        words = {"no": "bad", "yes": "good"}
        told = {"cut": "middle", "head": "verbalizer", "template": "{text} It was {mask}", "label_words": words}
        rows = [{"text": f"dog {i}", "label": "no" if i % 2 else "yes"} for i in range(40)]
        softprompt.train(options(encoder, write_lines(tmp_path / "d", rows), tmp_path / "x", **told), progress=False)
    assert "cut='middle' keeps head and tail of whole texts under head='pooled' or 'stock'" in str(error.value)
