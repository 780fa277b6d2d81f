"""Labels become numbers, and bad ones are named with their line."""

import datasets
import pytest

from house.files import sentences, write_jsonl
from house.refusals import said
from softprompt import SoftPromptError
from softprompt.data import load_task


def one_file(tmp_path, labels, texts=None):
    texts = texts or [f"text {i}" for i in range(len(labels))]
    return write_jsonl(tmp_path / "rows.jsonl", [{"text": t, "label": y} for t, y in zip(texts, labels, strict=True)])


@pytest.mark.parametrize(
    ("values", "given_names", "names", "indices"),
    [
        (["b", "a"], None, ["a", "b"], [1, 0]),
        (["b", "a"], ["b", "a"], ["b", "a"], [0, 1]),
        ([10, 9], None, ["9", "10"], [1, 0]),  # numbers are sorted by their value
        (["10", "9"], None, ["9", "10"], [1, 0]),
        ([1, 0], ["no", "yes"], ["no", "yes"], [1, 0]),
        (["1", "0"], ["no", "yes"], ["no", "yes"], [1, 0]),
        ([1, 2], ["1", "2"], ["1", "2"], [0, 1]),  # a number that is a name is no index
        ([True, False], None, ["false", "true"], [1, 0]),
        ([True, False], ["no", "yes"], ["no", "yes"], [1, 0]),
    ],
)
def test_labels_become_indices(tmp_path, values, given_names, names, indices):
    task = load_task(one_file(tmp_path, values * 10), label_names=given_names)
    assert task.label_names == names
    whole = {row["text"]: row["label"] for part in (task.train, task.dev, task.test) for row in part}
    assert [whole["text 0"], whole["text 1"]] == indices
    assert task.train.features["label"] == datasets.Value("int64")


@pytest.mark.parametrize(
    ("labels", "given_names", "expected"),
    [
        (["no", "yes", "yess"], ["no", "yes"], "rows.jsonl, line 3: unknown label 'yess'; known labels: no, yes (or 0 to 1). Did you mean 'yes'?"),
        ([0, 1, 2], ["no", "yes"], "rows.jsonl, line 3: unknown label 2; known labels: no, yes (or 0 to 1)."),
        ([0, 1, -1], ["no", "yes"], "rows.jsonl, line 3: unknown label -1;"),
        ([0, 1, 0.5], None, "rows.jsonl, line 3: the label 0.5 in column 'label' is a float; expected class names or whole numbers. To learn the numbers themselves, set kind=regression."),
        (["0.5", "1.5", "2"], None, "rows.jsonl, line 1: the label 0.5 in column 'label' is a float;"),
        (["0", "1", "0.5"], ["no", "yes"], "rows.jsonl, line 3: the label 0.5 in column 'label' is a float;"),
        ([0, 1, None], None, "rows.jsonl, line 3: the label in column 'label' is missing."),
        ([0, 1, [1]], None, "rows.jsonl, line 3: expected a class name or number in column 'label', got list [1]."),
        (["a", "a", "a"], None, "rows.jsonl: expected at least two classes in column 'label', got only 'a'."),
        ([f"id{i}" for i in range(50)], None, "rows.jsonl: column 'label' has 50 different values in 50 rows, too many for classes (for example 'id0')."),
    ],
)  # fmt: skip
def test_bad_labels_are_named_with_their_line(tmp_path, labels, given_names, expected):
    with pytest.raises(SoftPromptError) as error:
        load_task(one_file(tmp_path, labels), label_names=given_names)
    assert expected in said(error)


def test_a_label_that_train_lacks(tmp_path, announced):
    write_jsonl(tmp_path / "train.jsonl", sentences(10))
    write_jsonl(tmp_path / "dev.jsonl", sentences(2))
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": "yes"}, {"text": "b", "label": "maybe"}])
    with pytest.raises(
        SoftPromptError,
        match=r"test.jsonl, line 2: unknown label 'maybe'; known labels: no, yes\. Correct the row, or name every class in class_names",
    ):
        load_task(tmp_path)
    load_task(tmp_path, label_names=["no", "yes", "maybe"])
    assert "class 'maybe' cannot be learned: train (train.jsonl) has no row of it" in announced()
    with pytest.raises(SoftPromptError, match=r"train.jsonl: class 'maybe' has 0 rows, 2 shots want 2"):
        load_task(tmp_path, label_names=["no", "yes", "maybe"], shots=2)


def test_info_json_names_the_labels(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": str(i), "label": i % 2, "mood": "ab"[i % 2]} for i in range(20)])
    info = tmp_path / "info.json"
    info.write_text('{"name": "mine", "labels": ["bad", "good"]}')
    task = load_task(tmp_path)
    assert (task.name, task.label_names) == ("mine", ["bad", "good"])
    info.write_text('{"labels": {"label": ["x", "y"], "mood": ["b", "a"]}}')
    assert load_task(tmp_path, label_column="mood").label_names == ["b", "a"]
    assert load_task(tmp_path, label_names=["p", "q"]).label_names == ["p", "q"]
    info.write_text('{"labels": 2}')
    with pytest.raises(SoftPromptError, match=r"info.json: expected a list of class names, got 2\."):
        load_task(tmp_path)
    info.write_text("{")
    with pytest.raises(SoftPromptError, match=r"info.json, line 1: invalid JSON"):
        load_task(tmp_path)


def test_hidden_test_labels_leave_the_test_out(tmp_path, announced):
    write_jsonl(tmp_path / "train.jsonl", sentences(20))
    write_jsonl(tmp_path / "dev.jsonl", sentences(3, tag="v"))
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": -1}])
    assert load_task(tmp_path).origin["files"]["test"] == "dev.jsonl"
    assert "the test split is left out: its labels are all -1, which stands for hidden labels" in announced()
