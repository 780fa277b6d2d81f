"""Tasks: splits, columns and kinds."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import softprompt.data
from house.files import sentences, write_jsonl, write_lines, write_table
from house.refusals import said
from softprompt import SoftPromptError, load_rows
from softprompt.data import load_task, read_rows

SHARED = Path(os.environ.get("SOFTPROMPT_DATA") or Path(__file__).parents[3] / "shared" / "data")


def shared(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the data set {name} in {SHARED}; set SOFTPROMPT_DATA to the folder that holds it")
    return folder


# Tasks: splits -------------------------------------------------------------------------------------------------------


def test_embedded_messages(announced):
    task = load_task("messages")
    assert (task.name, task.kind, task.label_names[0], len(task.label_names)) == (
        "messages-queue",
        "classification",
        "billing",
        6,
    )
    assert (len(task.train), len(task.dev), len(task.test)) == (432, 108, 216)
    assert Counter(task.test["label"]) == dict.fromkeys(range(6), 36)
    assert announced() == ["label_column = queue: the embedded messages have two sets of labels, queue and tone"]
    assert task.origin["reasons"] == announced()
    assert task.origin["overlap"] == {"train/dev": 0, "train/test": 0, "dev/test": 0}
    tone = load_task("messages", label_column="tone")
    assert (tone.name, tone.label_names) == ("messages-tone", ["annoyed", "neutral", "grateful"])
    with pytest.raises(
        SoftPromptError, match=r"unknown label_column 'tones': expected one of queue, tone. Did you mean 'tone'\?"
    ):
        load_task("messages", label_column="tones")


def test_embedded_messages_are_balanced_and_all_different():
    folder = Path(softprompt.data.__file__).parent / "messages"
    rows = {split: read_rows(folder / f"{split}.jsonl").rows for split in ("train", "validation", "test")}
    for split, per_cell in (("train", 24), ("validation", 6), ("test", 12)):
        assert set(Counter((row["queue"], row["tone"]) for row in rows[split]).values()) == {per_cell}
    texts = [row["text"].casefold() for part in rows.values() for row in part]
    assert len(set(texts)) == len(texts) == 756
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    assert info["rows"] == {split: len(part) for split, part in rows.items()} and info["licence"] == "Apache-2.0"


def test_a_folder_with_three_files(tmp_path, announced):
    write_jsonl(tmp_path / "train.jsonl", sentences(4))
    write_table(tmp_path / "validation.csv", sentences(2, tag="v"))
    write_table(tmp_path / "test.parquet", sentences(3, tag="s"))
    task = load_task(tmp_path)
    assert task.train.to_list()[:2] == [{"text": "t no 0", "label": 0}, {"text": "t yes 0", "label": 1}]
    assert [len(task.train), len(task.dev), len(task.test)] == [8, 4, 6]
    assert task.label_names == ["no", "yes"]
    assert task.origin["files"] == {"train": "train.jsonl", "dev": "validation.csv", "test": "test.parquet"}
    assert announced() == [
        "classes = no, yes: the 2 different labels of train, sorted; no class_names (Python: label_names) were given",
        "few rows: train has 8, dev has 4, test has 6: scores of fewer than 10 rows say little; one row moves them by a tenth or more",
    ]
    json.dumps(task.origin)


def test_without_a_test_file_validation_is_the_test(tmp_path, announced):
    write_jsonl(tmp_path / "train.jsonl", sentences(20))
    write_jsonl(tmp_path / "dev.jsonl", sentences(5, tag="v"))
    task = load_task(tmp_path)
    assert task.test["text"][0] == "v no 0" and len(task.test) == 10
    assert Counter(task.dev["label"]) == {0: 2, 1: 2} and len(task.train) == 36
    assert not set(task.train["text"]) & set(task.dev["text"])
    assert announced()[1].startswith("test = dev.jsonl: there is no test split")
    assert announced()[2] == "dev = 4 rows of train.jsonl: no file is left for it; 10% drawn by class with seed 42"
    assert load_task(tmp_path, dev_fraction=0).dev is None


@given(st.integers(0, 10), st.sampled_from([None, 1, 3]), st.integers(8, 12))
@settings(max_examples=15, deadline=None)
def test_one_file_never_shares_a_row_between_splits(tmp_path_factory, seed, shots, per_class):
    # The same texts again and again: only the identity of the row, kept in text_pair, tells them apart.
    rows = [
        {"text": f"again {i % 3}", "text_pair": str(i), "label": ("no", "yes")[i % 2]} for i in range(2 * per_class)
    ]
    path = write_jsonl(tmp_path_factory.mktemp("one") / "rows.jsonl", rows)
    task = load_task(path, seed=seed, shots=shots)
    parts = [set(part["text_pair"]) for part in (task.train, task.dev, task.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == sum(task.origin["rows"].values())
    if shots is None:
        assert sum(map(len, parts)) == 2 * per_class
    else:
        assert Counter(task.train["label"]) == Counter(task.dev["label"]) == {0: shots, 1: shots}
    again = load_task(path, seed=seed, shots=shots)
    assert [again.train.to_list(), again.dev.to_list(), again.test.to_list()] == [
        part.to_list() for part in (task.train, task.dev, task.test)
    ]


def test_one_file_is_split_80_10_10(tmp_path, announced):
    task = load_task(write_table(tmp_path / "reviews.csv", sentences(50)))
    assert task.name == "reviews"
    assert [Counter(part["label"])[0] for part in (task.train, task.dev, task.test)] == [40, 5, 5]
    assert "test = 10 rows of reviews.csv: no file is left for it; 10% drawn by class with seed 42" in announced()
    other = load_task(tmp_path / "reviews.csv", seed=1)
    assert set(other.test["text"]) != set(task.test["text"])
    with pytest.raises(
        SoftPromptError, match=r"two.csv: 2 rows are too few to carve a test split from; give a test file or more rows"
    ):
        load_task(write_table(tmp_path / "two.csv", sentences(1)))


def test_overlap_is_counted_and_nothing_removed(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", sentences(3))
    write_jsonl(tmp_path / "dev.jsonl", sentences(2))
    write_jsonl(tmp_path / "test.jsonl", [*sentences(1), {"text": "new", "label": "no"}])
    task = load_task(tmp_path)
    assert task.origin["overlap"] == {"train/dev": 4, "train/test": 2, "dev/test": 2}
    assert task.origin["rows"] == {"train": 6, "dev": 4, "test": 3}


def test_named_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", sentences(4))
    write_jsonl(tmp_path / "b.jsonl", sentences(2, tag="b"))
    write_jsonl(tmp_path / "c.jsonl", sentences(3, tag="c"))
    task = load_task(tmp_path, train_file="a.jsonl", dev_file="b.jsonl", test_file="c.jsonl")
    assert task.origin["files"] == {"train": "a.jsonl", "dev": "b.jsonl", "test": "c.jsonl"}
    assert load_task(tmp_path / "a.jsonl", test_file="c.jsonl").origin["rows"] == {"train": 7, "dev": 1, "test": 6}
    with pytest.raises(SoftPromptError) as error:
        load_task(tmp_path)
    assert "no train file; expected train with one of .jsonl" in said(error)
    assert "Data files there: a.jsonl, b.jsonl, c.jsonl. Set train_file" in said(error)
    with pytest.raises(SoftPromptError, match="train_file is for folders, but the source"):
        load_task(tmp_path / "a.jsonl", train_file="b.jsonl")
    with pytest.raises(SoftPromptError, match=r"bb.jsonl: expected a file, got no such file. Did you mean 'b.jsonl'\?"):
        load_task(tmp_path, train_file="a.jsonl", dev_file="bb.jsonl")
    write_jsonl(tmp_path / "train.jsonl", sentences(4))
    write_table(tmp_path / "train.csv", sentences(4))
    with pytest.raises(
        SoftPromptError, match=r"train.jsonl, train.csv could each be the train split; choose one with train_file"
    ):
        load_task(tmp_path)


def test_shots_from_train_then_from_validation(tmp_path, announced):
    write_jsonl(tmp_path / "train.jsonl", sentences(5))
    write_jsonl(tmp_path / "validation.jsonl", sentences(4, tag="v"))
    write_jsonl(tmp_path / "test.jsonl", sentences(4, tag="s"))
    task = load_task(tmp_path, shots=2)
    assert Counter(task.train["label"]) == Counter(task.dev["label"]) == {0: 2, 1: 2}
    assert not set(task.train["text"]) & set(task.dev["text"]) and task.origin["files"]["dev"] == "train.jsonl"
    task = load_task(tmp_path, shots=4)
    assert task.origin["files"]["dev"] == "validation.jsonl" and Counter(task.dev["label"]) == {0: 4, 1: 4}
    assert "dev from validation.jsonl: class 'no' has only 1 rows left in train.jsonl" in announced()
    with pytest.raises(SoftPromptError, match=r"train.jsonl: class 'no' has 5 rows, 6 shots want 6"):
        load_task(tmp_path, shots=6)
    (tmp_path / "test.jsonl").unlink()  # now validation is the test, and may not be looked at
    with pytest.raises(
        SoftPromptError, match=r"dev, from the rest of train.jsonl: class 'no' has 1 rows, 4 shots want 4"
    ):
        load_task(tmp_path, shots=4)


def test_a_published_few_shot_split_is_used(tmp_path, announced):
    write_jsonl(tmp_path / "train.jsonl", sentences(5))
    write_jsonl(tmp_path / "test.jsonl", sentences(4, tag="s"))
    write_jsonl(tmp_path / "kshot/2-13/train.jsonl", sentences(2, tag="k"))
    write_jsonl(tmp_path / "kshot/2-13/dev.jsonl", sentences(2, tag="d"))
    task = load_task(tmp_path, shots=2, seed=13)
    assert task.train["text"][0] == "k no 0" and task.dev["text"][0] == "d no 0"
    assert task.origin["files"]["train"] == "kshot/2-13/train.jsonl"
    assert "train and dev = the published split kshot/2-13: the folder has one for 2 shots and seed 13" in announced()
    assert load_task(tmp_path, shots=2, seed=14).origin["files"]["train"] == "train.jsonl"
    assert load_task(tmp_path, shots=2, seed=13, train_file="train.jsonl").origin["files"]["train"] == "train.jsonl"
    (tmp_path / "test.jsonl").unlink()
    assert load_task(tmp_path, shots=2, seed=13).test is None
    (tmp_path / "kshot/2-13/dev.jsonl").unlink()
    with pytest.raises(SoftPromptError, match=r"dev.jsonl: expected a file, got no such file"):
        load_task(tmp_path, shots=2, seed=13)


@pytest.mark.parametrize("name", ["trec", "rte", "sst2_sentence", "mrpc"])
@pytest.mark.parametrize("seed", [13, 100])
def test_published_splits_equal_their_files(name, seed):
    folder = shared(name)
    task = load_task(folder, shots=16, seed=seed)
    for split, got in (("train", task.train), ("dev", task.dev)):
        rows = [json.loads(line) for line in (folder / f"kshot/16-{seed}/{split}.jsonl").open(encoding="utf-8")]
        assert got.to_list() == [{column: row[column] for column in got.column_names} for row in rows]
        assert Counter(got["label"]) == dict.fromkeys(range(len(task.label_names)), 16)


def test_shared_data_sets_load():
    assert len(load_task(shared("banking77")).label_names) == 77
    task = load_task(shared("gsm8k"), prompt_column="question", completion_column="answer")
    assert (task.kind, task.label_names, task.train.column_names) == ("completion", [], ["prompt", "completion"])
    assert task.origin["rows"] == {"train": 6726, "dev": 747, "test": 1319}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"shots": 0}, "shots: expected a whole number from 1, or None for all rows, got 0."),
        ({"shots": 2.0}, "got 2.0."),
        ({"seed": None}, "seed: expected a whole number, got None."),
        ({"dev_fraction": 0.9}, "dev_fraction: expected a share from 0 to 0.5, got 0.9."),
        ({"hub_config": "x"}, "hub_config is for hub datasets, but the source"),
        (
            {"label_names": ["no"]},
            "class_names (Python: label_names): expected at least two different class names, got ['no'].",
        ),
        ({"label_names": ["no", "no"]}, "expected at least two different class names, got ['no', 'no']."),
        (
            {"label_names": "yes"},
            "class_names (Python: label_names): expected a list of class names, like class_names=[neg, pos], got 'yes'.",
        ),
        ({"text_pair_column": "second"}, "no column 'second'; columns there: label, text."),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, expected):
    write_jsonl(tmp_path / "train.jsonl", sentences(20))
    with pytest.raises(SoftPromptError) as error:
        load_task(tmp_path, **arguments)
    assert expected in said(error)


# Tasks: columns and labels -------------------------------------------------------------------------------------------


def test_columns_decide_the_kind(tmp_path):
    rows = [{"question": f"q{i}", "answer": f"a{i}", "topic": "xy"[i % 2]} for i in range(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = load_task(path, prompt_column="question", completion_column="answer")
    assert task.kind == "completion" and task.origin["rows"] == {"train": 16, "dev": 2, "test": 2}
    assert task.origin["columns"] == {"prompt": "question", "completion": "answer"}
    assert load_task(path, text_column="question", label_column="topic").kind == "classification"
    assert len(load_task(path, prompt_column="question", completion_column="answer", shots=3).train) == 3
    with pytest.raises(SoftPromptError) as error:
        load_task(path)
    assert said(error).endswith(
        "rows.jsonl, line 1: expected columns text_column='text' and label_column='label' to classify, prompt_column='prompt' "
        "and completion_column='completion' to complete, tokens_column='tokens' and tags_column='tags' to tag words, "
        "or messages_column='messages' to chat; "
        "columns there: answer, question, topic. Set these options to the columns that are meant."
    )
    with pytest.raises(SoftPromptError, match=r"Did you mean 'topic'\?"):
        load_task(path, text_column="question", label_column="topics")
    with pytest.raises(
        SoftPromptError,
        match=r"found text and label \(question, topic\) as well as prompt and completion \(question, answer\)",
    ):
        load_task(
            path, text_column="question", label_column="topic", prompt_column="question", completion_column="answer"
        )
    with pytest.raises(
        SoftPromptError, match="holds prompts and completions, which have no classes, but class names are given"
    ):
        load_task(path, prompt_column="question", completion_column="answer", label_names=["a", "b"])


def test_pairs(tmp_path, announced):
    rows = [{"text": f"a{i}", "text_pair": f"b{i}", "label": i % 2, "extra": 1} for i in range(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = load_task(path)
    assert task.train.column_names == ["text", "text_pair", "label"]
    assert "texts come in pairs: there is a column 'text_pair'" in announced()
    rows[4].pop("text_pair")
    with pytest.raises(SoftPromptError, match=r"line 5: no column 'text_pair'; columns there: extra, label, text"):
        load_task(write_jsonl(path, rows))


NAMES = ["B-PET", "B-SKY", "I-PET", "O"]


# Rows ----------------------------------------------------------------------------------------------------------------


GOOD = [{"tokens": ["EU", f"row{i}"], "tags": ["B-ORG", "O"]} for i in range(20)]


def test_a_task_of_tagged_words(pets: Path, announced: Callable[[], list[str]]) -> None:
    task = load_task(pets)
    assert (task.kind, task.label_names, task.train.column_names) == ("tokens", NAMES, ["tokens", "tags"])
    first = json.loads((pets / "train.jsonl").read_text().splitlines()[0])
    assert task.train[0] == {"tokens": first["tokens"], "tags": [NAMES.index(tag) for tag in first["tags"]]}
    assert task.origin["columns"] == {"tokens": "tokens", "tags": "tags"} and json.dumps(task.origin)
    # without a test file validation is the test, and dev comes from train
    assert task.origin["rows"] == {"train": 60, "dev": 18, "test": 24}
    assert announced() == [
        "classes = B-PET, B-SKY, I-PET, O: the 4 different labels of train, sorted; no class_names (Python: label_names) were given"
    ]
    assert load_rows(pets / "test.jsonl", label_names=NAMES).to_list() == task.test.to_list()
    with pytest.raises(SoftPromptError, match="has labels, but the class names are not known"):
        load_rows(pets / "test.jsonl")


def test_every_format_that_holds_lists(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(GOOD)
    rows.to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    write_lines(tmp_path, GOOD, "a.jsonl")
    loaded = [load_task(tmp_path / f"a.{suffix}").train.to_list() for suffix in ("jsonl", "json", "parquet")]
    assert loaded[0] == loaded[1] == loaded[2]
    (tmp_path / "a.csv").write_text("tokens,tags\nEU rejects,B-ORG O\n")
    message = r"a.csv, line 2, column 'tokens': expected a list of words, got str 'EU rejects'; lists stand in .jsonl, .json and .parquet files, .csv and .tsv cannot hold them"
    with pytest.raises(SoftPromptError, match=message):
        load_task(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 21: expected a tag for each word, got 2 words in column 'tokens' and 1 tags in column 'tags'."),
        ({"tokens": [], "tags": []}, "line 21, column 'tokens': there are no words; add some or remove the row."),
        ({"tokens": [" "], "tags": ["O"]}, "line 21, column 'tokens': there are no words;"),
        ({"tokens": ["a", 7], "tags": ["O", "O"]}, "line 21, column 'tokens': expected words, got int 7 as word 2."),
        ({"tokens": ["a"], "tags": "O"}, "line 21, column 'tags': expected a list of tags, got str 'O'; lists stand in"),
        ({"tokens": ["a"], "tags": [["O"]]}, "line 21: expected a class name or number in column 'tags', got list ['O']."),
        ({"tokens": ["a"], "tags": [None]}, "line 21: the label in column 'tags' is missing."),
        ({"tokens": ["a"], "tags": [0.5]}, "line 21: the label 0.5 in column 'tags' is a float"),
        ({"tokens": ["a"]}, "line 21: no column 'tags'; columns there: tokens."),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_their_line(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(SoftPromptError) as error:
        load_task(write_lines(tmp_path, [*GOOD, row]))
    assert f"train.jsonl, {expected}" in str(error.value)


def test_unknown_tags_and_other_columns(tmp_path: Path, announced: Callable[[], list[str]]) -> None:
    write_lines(tmp_path, GOOD)
    write_lines(tmp_path, GOOD[:4], "dev.jsonl")
    write_lines(tmp_path, [*GOOD[:2], {"tokens": ["EU", "a"], "tags": ["B-ORGG", "O"]}], "test.jsonl")
    with pytest.raises(SoftPromptError) as error:
        load_task(tmp_path)
    assert "test.jsonl, line 3: unknown label 'B-ORGG'; known labels: B-ORG, O. Did you mean 'B-ORG'?" in str(
        error.value
    )
    task = load_task(tmp_path, label_names=["O", "B-ORG", "B-ORGG"])
    assert task.test[2]["tags"] == [2, 0] and task.origin["overlap"] == {"train/dev": 4, "train/test": 2, "dev/test": 2}
    assert "class 'B-ORGG' cannot be learned: train (train.jsonl) has no row of it" in announced()
    renamed = [{"words": row["tokens"], "ner_tags": [1, 0], "id": "7"} for row in GOOD]
    path = write_lines(tmp_path / "other", renamed)
    named = {"tokens_column": "words", "tags_column": "ner_tags"}
    assert load_task(path, **named, label_names=["O", "B-ORG"]).train[0]["tags"] == [1, 0]
    assert load_task(path, **named).label_names == ["0", "1"]
    (path.parent / "info.json").write_text('{"labels": {"ner_tags": ["O", "B-ORG"]}}')
    task = load_task(path.parent, **named)
    assert (task.name, task.label_names) == ("other-ner_tags", ["O", "B-ORG"])
    with pytest.raises(SoftPromptError, match=r"to tag words, or .*; columns there: id, ner_tags, words.*'ner_tags'\?"):
        load_task(path, tokens_column="words")
    both = write_lines(tmp_path / "both", [{**GOOD[0], "text": "a", "label": "b"}])
    with pytest.raises(SoftPromptError, match=r"found text and label \(text, label\) as well as tokens and tags"):
        load_task(both)


def test_shots_are_rows(pets: Path) -> None:
    task = load_task(pets, shots=5, seed=3)
    assert (len(task.train), len(task.dev), len(task.test)) == (5, 5, 24)
    assert set(map(str, task.train.to_list())).isdisjoint(map(str, task.dev.to_list()))
    with pytest.raises(SoftPromptError, match="class 'tokens' has 60 rows, 61 shots want 61"):
        load_task(pets, shots=61)


def test_a_hub_dataset_names_its_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-ORG"]))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags})
    columns = {"tokens": [row["tokens"] for row in GOOD], "ner_tags": [[1, 0]] * len(GOOD)}
    hub = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: hub)
    task = load_task("owner/news", tags_column="ner_tags")
    assert (task.kind, task.label_names, task.train[0]["tags"]) == ("tokens", ["O", "B-ORG"], [1, 0])
