"""What is doubtful about splits where no row is wrong."""

from typing import Any

import pytest

from house.files import write_jsonl
from softprompt import load_task


def rows(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in pairs]


GOOD = rows(*((f"text {i}", "yes" if i % 2 else "no") for i in range(20)))
OTHER = rows(*((f"other {i}", "yes" if i % 2 else "no") for i in range(20)))


def said(folder, announced, train, dev, test) -> list[str]:
    for name, part in (("train", train), ("validation", dev), ("test", test)):
        write_jsonl(folder / f"{name}.jsonl", part)
    load_task(folder)
    return [line for line in announced() if not line.startswith("classes = ")]


def test_splits_that_are_as_they_should_be_are_not_doubted(tmp_path, announced):
    assert said(tmp_path, announced, GOOD, OTHER[:10] + GOOD[:1], OTHER) == []


def test_test_rows_that_stand_in_train_are_said(tmp_path, announced):
    assert said(tmp_path, announced, GOOD, OTHER, GOOD[:10]) == [
        "10 of 10 test rows stand in train, too: scores on them say what was learned by heart; keep these rows in one of the two"
    ]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_split_of_one_class_is_said(tmp_path, announced, split):
    parts = {"dev": OTHER, "test": OTHER, split: OTHER[1::2]}
    assert said(tmp_path, announced, GOOD, **parts) == [
        f"every row of {split} is of the class 'yes': scores on them do not say whether classes are told apart"
    ]


def test_a_text_with_two_labels_is_said(tmp_path, announced):
    twice = rows(("text 1", "no"), ("text 2", "yes"), ("text 4", "no"))
    assert said(tmp_path, announced, GOOD + twice, OTHER, OTHER) == [
        "2 inputs stand in train with different labels: at most one of them can be learned; correct the labels"
    ]
