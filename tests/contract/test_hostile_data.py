"""Data as it comes: broken, half full, written by other programs. One message each, and nothing silent."""

import csv
import json
import os
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from house.files import write_jsonl
from softprompt import SoftPromptError
from softprompt.data import load_rows, load_task, parse_jsonl, read_rows
from softprompt.experiments.draws import draw_rows
from softprompt.training import RunOptions, prepare

NAN = float("nan")


def sentences(n, names=("no", "yes")):
    return [{"text": f"{name} {i}", "label": name} for i in range(n) for name in names]


def labelled(path, labels):
    return write_jsonl(path, [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)])


def whole(task):
    """Label of every text, whatever split it went to."""
    return {row["text"]: row["label"] for part in (task.train, task.dev, task.test) for row in part}


def refusal(call, *arguments, **keywords):
    with pytest.raises(SoftPromptError) as error:
        call(*arguments, **keywords)
    return str(error.value)


# JSON ----------------------------------------------------------------------------------------------------------------


DEEP = "[" * 30_000


GOOD = '{"text": "a", "label": 1}'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", f"{GOOD}\n{DEEP}\n", "a.jsonl, line 2: invalid JSON (lists or objects are nested too deeply)."),
        ("a.jsonl", f'{GOOD}\n{{"text": {DEEP}', "a.jsonl, line 2: invalid JSON (lists or objects are nested too deeply)."),
        ("a.json", f'[{GOOD},\n{{"text": "[[["}},\n{DEEP}', "a.json, line 3: invalid JSON (lists or objects are nested too deeply)."),
        ("a.jsonl", f'{GOOD}\n{{"text": "a", "label": {"1" * 5000}}}\n', "a.jsonl, line 2: invalid JSON (a number of too many digits)."),
        ("a.json", f'[{GOOD},\n{{"text": "a", "label": {"1" * 5000}}}]', "a.json, line 2: invalid JSON (a number of too many digits)."),
        ("a.jsonl", f'{GOOD}\n{{"text": "a", "text": "b", "label": 1}}\n', "a.jsonl, line 2: the object names 'text' more than once; keep one."),
        ("a.json", f'[{GOOD}, {{"label": 1, "label": 0}}]', "a.json, row 2: the object names 'label' more than once; keep one."),
        ("a.jsonl", f"{GOOD}\n{'[' * 900}{']' * 900}\n", "a.jsonl, line 2: expected an object like {\"text\": ...}, got list [[["),
    ],
)  # fmt: skip
def test_json_that_no_parser_takes(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    message = refusal(read_rows, tmp_path / name)
    assert expected in message and len(message) < 300


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (DEEP, "info.json, line 1: invalid JSON (lists or objects are nested too deeply)."),
        ('{"labels":\n' + "1" * 5000 + "}", "info.json, line 2: invalid JSON (a number of too many digits)."),
        ("", "info.json, line 1: invalid JSON (Expecting value, column 1)."),
        ("[]", "info.json: expected an object, got list."),
        ('{"labels": ["a", "b"], "labels": ["b", "a"]}', "info.json: the object names 'labels' more than once"),
        ('{"labels": ["a", "\\ud800"]}', "info.json, column 'labels': the text holds a lone surrogate, '\\ud800'"),
        ('{"labels": [1.5, 2]}', "info.json: expected a list of class names, got [1.5, 2]."),
        ('{"labels": [true, false]}', "info.json: expected a list of class names, got [True, False]."),
        ('{"labels": {"label": 3}}', "info.json: expected a list of class names, got 3."),
        ('{"name": {"a": 1}}', "info.json: expected a text as name, got {'a': 1}."),
    ],
)
def test_an_info_file_of_another_make(tmp_path, content, expected):
    write_jsonl(tmp_path / "train.jsonl", sentences(10))
    (tmp_path / "info.json").write_text(content)
    assert expected in refusal(load_task, tmp_path)


def test_numbers_are_names_in_info_json(tmp_path):
    labelled(tmp_path / "train.jsonl", [3, 7] * 10)
    (tmp_path / "info.json").write_text('{"labels": [7, 3], "name": null}')
    task = load_task(tmp_path)
    assert task.label_names == ["7", "3"] and whole(task)["text 0"] == 1


LONE = "the text holds a lone surrogate, '\\ud83d', which is not valid Unicode; remove it."


@pytest.mark.parametrize(
    "row",
    [
        {"text": "cut \ud83d", "label": "no"},
        {"text": "a", "label": "no\ud83d"},
        {"text": "a", "label": "no", "words": ["a", {"b": "\ud83d"}]},
    ],
)
def test_half_a_character_is_named_with_its_place(tmp_path, row):
    rows = [{"text": "whole \U0001f600", "label": "yes"}, row]
    column = list(row)[-1] if "words" in row else "text" if "\ud83d" in row["text"] else "label"
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert "\\ud83d\\ude00" in path.read_text()  # a whole pair is written as two halves, and is none
    assert refusal(load_task, path) == f"{path}, line 2, column {column!r}: {LONE}"
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert refusal(load_task, tmp_path / "a.json") == f"{tmp_path}/a.json, row 2, column {column!r}: {LONE}"
    assert refusal(parse_jsonl, "stdin", path.read_text()) == f"stdin, line 2, column {column!r}: {LONE}"
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)  # as stdin reads bytes that are no UTF-8
    assert refusal(parse_jsonl, "stdin", raw) == f"stdin, line 2, column {column!r}: {LONE}"
    assert parse_jsonl("stdin", path.read_text().splitlines()[0]).rows == rows[:1]


# Labels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "given", "names", "indices"),
    [
        ([1.0, 0.0], None, ["0", "1"], [1, 0]),
        (["1.0", "0.0"], None, ["0", "1"], [1, 0]),
        (["10.0", "9"], None, ["9", "10"], [1, 0]),
        ([-1.0, 1e16], None, ["-1", "10000000000000000"], [0, 1]),
        ([1.0, 0.0], ["no", "yes"], ["no", "yes"], [1, 0]),
        (["1.0", "0.0"], ["0", "1"], ["0", "1"], [1, 0]),
        (["1.0", "0.0"], ["1.0", "0.0"], ["1.0", "0.0"], [0, 1]),  # a name as it stands
        (["2023_01", "2023_02"], None, ["2023_01", "2023_02"], [0, 1]),  # Python's float() reads it, people do not
    ],
)
def test_whole_floats_are_numbers(tmp_path, announced, labels, given, names, indices):
    task = load_task(labelled(tmp_path / "rows.jsonl", labels * 20), label_names=given)
    assert task.label_names == names and [whole(task)[f"text {i}"] for i in range(2)] == indices
    told = "40 labels of rows.jsonl are read as whole numbers: column 'label' has floats like 1.0"
    count = 20 if labels == ["10.0", "9"] else 40
    changed = names != list(map(str, labels)) and "2023_01" not in labels
    assert any(line.startswith(told.replace("40", str(count))) for line in announced()) == changed


def test_floats_of_pandas_and_of_parquet(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t{i},{i % 2}.0\n" for i in range(20)))
    floats = pa.table(
        {"text": [f"t{i}" for i in range(20)], "label": pa.array([i % 2 for i in range(20)], pa.float32())}
    )
    parquet.write_table(floats, tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        task = load_task(tmp_path / name)
        assert task.label_names == ["0", "1"] and whole(task)["t1"] == 1
        assert load_rows(tmp_path / name, label_names=["no", "yes"])["label"][:2] == [0, 1]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1.0, 0.5, 2.0], "rows.jsonl, line 2: the label 0.5 in column 'label' is a float;"),
        ([1.0, "good", 2.0], "rows.jsonl, line 1: the label 1.0 in column 'label' is a float;"),
        ([1.0, NAN, 0.0], "rows.jsonl, line 2: the label in column 'label' is missing. Fill it or remove the row;"),
        ([1.0, None, 0.0], "rows.jsonl, line 2: the label in column 'label' is missing."),
        (["a", " ", "b"], "rows.jsonl, line 2: the label in column 'label' is missing."),
        (["0", "1", "nan"], "rows.jsonl, line 3: the label in column 'label' is 'nan' among numbers, so it is missing;"),
        (["0.0", "NaN", "1.0"], "rows.jsonl, line 2: the label in column 'label' is 'NaN' among numbers"),
        ([0, 1, float("inf")], "rows.jsonl, line 3: the label inf in column 'label'"),
        (["x" * 100_000] * 3, "rows.jsonl: expected at least two classes in column 'label', got only 'xxx"),
    ],
)  # fmt: skip
def test_a_float_that_is_no_class(tmp_path, labels, expected):
    message = refusal(load_task, labelled(tmp_path / "rows.jsonl", labels))
    assert expected in message and len(message) < 400


def test_a_fraction_in_another_split_and_hidden_float_labels(tmp_path, announced):
    labelled(tmp_path / "train.jsonl", [0, 1] * 10)
    labelled(tmp_path / "dev.jsonl", [0.0, 1.0, 1.5])
    assert "dev.jsonl, line 3: the label 1.5 in column 'label' is a float" in refusal(load_task, tmp_path)
    labelled(tmp_path / "dev.jsonl", [0.0, 1.0, 2.0])
    assert "dev.jsonl, line 3: unknown label 2.0; known labels: 0, 1." in refusal(load_task, tmp_path)
    labelled(tmp_path / "dev.jsonl", [0.0, 1.0])
    labelled(tmp_path / "test.jsonl", [-1.0, -1.0])
    assert load_task(tmp_path).origin["files"]["test"] == "dev.jsonl"
    assert any("its labels are all -1" in line for line in announced())


def doubts(lines):
    return [
        line for line in lines if line.split()[0] != "classes" and not line.startswith(("test =", "dev =", "few rows"))
    ]


def test_classes_that_look_alike_are_named_with_their_rows(tmp_path, announced):
    load_task(labelled(tmp_path / "a.jsonl", ["pos", "neg"] * 10 + ["pos ", "Pos", "Pos", "n\u00e9", "ne\u0301"] * 2))
    assert doubts(announced()) == [
        "3 classes differ only by white space, case or form of characters: 'Pos' (4 rows), 'pos' (10 rows), 'pos ' (2 rows): "
        "each of them is a class of its own; write them alike if they mean one",
        "2 classes differ only by white space, case or form of characters: 'ne\u0301' (2 rows), 'n\u00e9' (2 rows): "
        "each of them is a class of its own; write them alike if they mean one",
    ]  # fmt: skip


def test_tags_that_look_alike_are_named(tmp_path, announced):
    rows = [{"tokens": ["a", "b"], "tags": ["B-PET", "b-pet" if i else "O"]} for i in range(20)]
    load_task(write_jsonl(tmp_path / "a.jsonl", rows))
    assert "'B-PET' (20 rows), 'b-pet' (19 rows)" in doubts(announced())[0]


def test_lists_in_csv_cells_are_doubted(tmp_path, announced):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([f"t{i}", ("['a', 'b']", "c")[i % 2]] for i in range(20))])
    load_task(tmp_path / "a.csv")
    assert doubts(announced()) == [
        "class names look like lists or objects: \"['a', 'b']\": a cell is taken as one name, and a row has one class"
    ]


def test_cells_that_mean_no_value_elsewhere_are_doubted(tmp_path, announced):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([f"t{i}", ("NaN", "none", "null")[i % 3]] for i in range(30))])
    load_task(tmp_path / "a.csv")
    assert doubts(announced()) == [
        "class names look like missing labels: 'NaN', 'null': text in a cell is a name; empty cells alone are missing labels, which blank_rows=drop leaves out"
    ]


def test_single_rows_and_small_splits_are_said(tmp_path, announced):
    load_task(labelled(tmp_path / "a.jsonl", ["a", "b"] * 10 + ["c", "d"]))
    assert announced()[1] == (
        "2 classes with one row: 'c', 'd': one example is all to learn from, and none is left to measure by"
    )
    assert announced()[-1] == (
        "few rows: dev has 2, test has 2: scores of fewer than 10 rows say little; one row moves them by a tenth or more"
    )


def test_few_shots_are_few_by_wish(tmp_path, announced):
    write_jsonl(tmp_path / "train.jsonl", sentences(20))
    write_jsonl(tmp_path / "test.jsonl", sentences(20))
    load_task(tmp_path, shots=1)
    assert not [line for line in announced() if "few rows" in line or "one row" in line]


# Rows without content ------------------------------------------------------------------------------------------------


def test_blank_rows_are_refused_or_dropped(tmp_path, announced):
    rows = sentences(20)
    rows[3]["text"], rows[5]["label"], rows[8]["text"], rows[9]["label"] = "  ", None, None, NAN
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert "rows.jsonl, line 6: the label in column 'label' is missing" in refusal(load_task, path)
    task = load_task(path, blank_rows="drop")
    assert sum(task.origin["rows"].values()) == 36
    assert announced()[0] == (
        "left out 4 of 40 rows, the first at rows.jsonl, line 4: blank_rows=drop, and they hold nothing as text or label"
    )
    assert announced()[0] in task.origin["reasons"]
    assert len(load_rows(path, label_names=["no", "yes"], blank_rows="drop")) == 36
    assert "line 4: empty text" in refusal(load_rows, path, label_names=["no", "yes"])
    assert refusal(load_task, path, blank_rows="dropp").startswith(
        "unknown blank_rows 'dropp': expected one of refuse, drop."
    )
    assert "unknown blank_rows" in refusal(load_rows, path, label_names=["no", "yes"], blank_rows=True)


def test_every_split_and_every_kind_drops_its_blank_rows(tmp_path):
    for split in ("train", "dev", "test"):
        write_jsonl(
            tmp_path / f"{split}.jsonl", [*sentences(10), {"text": "", "label": "no"}, {"text": "a", "label": ""}]
        )
    write_jsonl(tmp_path / "kshot/2-13/train.jsonl", [*sentences(2), {"text": None, "label": "no"}])
    write_jsonl(tmp_path / "kshot/2-13/dev.jsonl", [*sentences(2), {"text": None, "label": "no"}])
    assert load_task(tmp_path, blank_rows="drop").origin["rows"] == {"train": 20, "dev": 20, "test": 20}
    assert load_task(tmp_path, blank_rows="drop", shots=2, seed=13).origin["rows"] == {"train": 4, "dev": 4, "test": 20}
    good = {
        "completion": {"prompt": "p", "completion": "c"},
        "pairs": {"text": "a", "text_pair": "b", "label": "no"},
        "tokens": {"tokens": ["a"], "tags": ["O"]},
    }
    for kind, row in good.items():
        other = {**row, **({"label": "yes"} if "label" in row else {"tags": ["B-X"]} if "tags" in row else {})}
        blank = [{**row, column: empty} for column in row for empty in (None, [], "" if kind != "tokens" else [" "])]
        task = load_task(write_jsonl(tmp_path / f"{kind}.jsonl", [row, other] * 10 + blank), blank_rows="drop")
        assert sum(task.origin["rows"].values()) == 20
    path = write_jsonl(tmp_path / "none.jsonl", [{"text": "", "label": "no"}] * 3)
    assert refusal(load_task, path, blank_rows="drop").endswith(
        "none.jsonl: no row has all of text, label; blank_rows=drop would leave none."
    )
    # a column that is not there at all is a mistake, not a gap
    path = write_jsonl(tmp_path / "gone.jsonl", [*sentences(10), {"text": "a"}])
    assert "line 21: no column 'label'" in refusal(load_task, path, blank_rows="drop")


def test_a_run_passes_the_wish_on(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "rows.jsonl", [*sentences(100), {"text": "", "label": "no"}])
    monkeypatch.setattr(prepare, "load_tokenizer", lambda _: pytest.fail("rows are read"))
    monkeypatch.setattr(prepare, "read_config", lambda _: None)
    with pytest.raises(SoftPromptError, match="line 201: empty text"):
        prepare.prepare(RunOptions.from_flat({"data": str(path)}))
    with pytest.raises(pytest.fail.Exception, match="rows are read"):
        prepare.prepare(RunOptions.from_flat({"data": str(path), "blank_rows": "drop"}))
    drawn = draw_rows(path, tmp_path / "drawn", 4, 1, {"blank_rows": "drop"})
    assert len(load_task(drawn).train) == 4


# csv and tsv ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_cell_may_be_of_any_length(tmp_path, suffix):
    before = csv.field_size_limit()
    mark = "," if suffix == ".csv" else "\t"
    (tmp_path / f"a{suffix}").write_text(f"text{mark}label\n{'a' * 300_000}{mark}1\nb{mark}0\n")
    assert [len(row["text"]) for row in read_rows(tmp_path / f"a{suffix}").rows] == [300_000, 1]
    assert csv.field_size_limit() == before
    (tmp_path / f"b{suffix}").write_text(f'text{mark}label\n"{"a" * 300_000}" x{mark}1\n')
    assert "line 2" in refusal(read_rows, tmp_path / f"b{suffix}") and csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "text;label\na, b;1\n", "a.csv: expected a comma between the names of the header, got 'text;label'; the delimiter seems to be a semicolon: write it with commas (pandas: pd.read_csv(path, sep=';').to_csv(path, index=False))."),
        ("a.csv", '"text";"label"\n"a";1\n', "got '\"text\";\"label\"'; the delimiter seems to be a semicolon:"),
        ("a.csv", "\r\ntext;label\ra;1\r", "got 'text;label'; the delimiter seems to be a semicolon:"),
        ("a.csv", "text\tlabel\na\t1\n", "got 'text\\tlabel'; the delimiter seems to be a tab: rename the file to .tsv."),
        ("a.csv", "text|label\na|1\n", "the delimiter seems to be a bar: write it with commas"),
        ("a.tsv", "text,label\na,1\n", "a.tsv: expected a tab between the names of the header, got 'text,label'; the delimiter seems to be a comma: rename the file to .csv."),
        ("a.csv", "text,label\na,1\ntext,label\nb,0\n", "a.csv, line 3: the header stands here once more; remove this line."),
        ("a.csv", "\n\ntext,label,text\na,1,b\n", "a.csv, line 3: the header names 'text' more than once."),
        ("a.csv", "text,label\na,1\n".encode("utf-16").decode("utf-16").encode("utf-16-le").decode("latin-1"), "a.csv: many bytes are 0, as in UTF-16 or a damaged file; save it as UTF-8."),
    ],
)  # fmt: skip
def test_a_table_of_another_make(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content, newline="")
    message = refusal(load_task, tmp_path / name)
    assert expected in message and message.count("Did you mean") == 0


def test_lines_before_the_header_may_be_blank_and_one_column_needs_no_delimiter(tmp_path):
    (tmp_path / "a.csv").write_text("\n\ntext,label\n\na,1\n")
    table = read_rows(tmp_path / "a.csv")
    assert table.rows == [{"text": "a", "label": "1"}] and table.numbers == [5]
    (tmp_path / "b.csv").write_text("text\na; b\n")
    assert read_rows(tmp_path / "b.csv").rows == [{"text": "a; b"}]


# parquet -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("text", [b"a" * 1000] * 4, "row 1: expected a text in column 'text', got bytes b'aaa"),
        ("text", [{"a": "b"}] * 4, "row 1: expected a text in column 'text', got dict {'a': 'b'}."),
        ("text", pa.array([["a"]] * 4), "row 1: expected a text in column 'text', got list ['a']."),
        ("text", pa.nulls(4), "row 1: empty text in column 'text' (3 more such rows);"),
        ("label", [Decimal(1)] * 4, "row 1: expected a class name or number in column 'label', got Decimal Decimal('1')."),
        ("label", [datetime(2020, 1, 1)] * 4, "got datetime datetime.datetime(2020, 1, 1, 0, 0)."),
        ("label", pa.array([None, 1.0, 0.0, 1.0]), "row 1: the label in column 'label' is missing."),
        ("label", pa.array([2**62] * 4, pa.timestamp("us")), "cannot be read as parquet (date value out of range)."),
    ],
)  # fmt: skip
def test_odd_columns_of_parquet(tmp_path, column, values, expected):
    columns = {"text": list("abcd"), "label": [0, 1, 0, 1], column: values}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    message = refusal(load_task, tmp_path / "a.parquet")
    assert expected in message and len(message) < 300 and "\n" not in message


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path):
    folder = tmp_path / "label=3"
    folder.mkdir()
    parquet.write_table(pa.table({"text": ["a"], "mood": [1]}), folder / "a.parquet")
    assert read_rows(folder / "a.parquet").rows == [{"text": "a", "mood": 1}]
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(twice, folder / "b.parquet")
    assert "\n" not in refusal(read_rows, folder / "b.parquet")


# Places --------------------------------------------------------------------------------------------------------------


def test_what_is_no_file_is_said_and_never_suggested(tmp_path):
    folder = tmp_path / "small"
    write_jsonl(folder / "train.jsonl", sentences(10))
    assert refusal(read_rows, folder) == f"{folder}: expected a file, got a folder. Data files in it: train.jsonl."
    (folder / "dev.jsonl").symlink_to(folder / "gone.jsonl")
    dead = f"{folder}/dev.jsonl: expected a file, got a link to '{folder}/gone.jsonl', where nothing is."
    assert refusal(read_rows, folder / "dev.jsonl") == dead
    assert refusal(load_task, folder) == dead  # and no dev split is carved in its place
    (folder / "dev.jsonl").unlink()
    (folder / "test.csv").mkdir()
    assert refusal(load_task, folder) == f"{folder}/test.csv: expected a file, got a folder. Data files in it: none."
    (folder / "test.csv").rmdir()
    os.mkfifo(folder / "pipe.jsonl")
    assert refusal(read_rows, folder / "pipe.jsonl").endswith("got something else (a device or a pipe).")
    assert "pipe.jsonl'" not in refusal(read_rows, folder / "pipes.jsonl")  # a pipe is no near miss
    (folder / "info.json").mkdir()
    assert "info.json: expected a file, got a folder" in refusal(load_task, folder)


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 3000 + "b.jsonl", "\0.jsonl", "~nobody-of-this-name/a.jsonl"])
def test_names_that_no_file_can_have(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refusal(load_task, name)
    assert "no such file" in refusal(read_rows, name)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", sentences(2))

    def forbidden(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert refusal(read_rows, path) == f"{path}: cannot be read (Permission denied)."


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"text_column": 5}, "text_column: expected the name of a column, got 5."),
        ({"label_column": None}, "label_column: expected the name of a column, got None."),
        ({"tokens_column": ["a"]}, "tokens_column: expected the name of a column, got ['a']."),
        ({"train_file": 5}, "train_file: expected the name of a file, got 5."),
        ({"dev_file": ""}, "dev_file: expected the name of a file, got ''."),
        ({"dev_fraction": "abc"}, "dev_fraction: expected a share from 0 to 0.5, got 'abc'."),
        ({"dev_fraction": NAN}, "dev_fraction: expected a share from 0 to 0.5, got nan."),
        ({"source": ["a"]}, "data source: expected a path or the name of a hub dataset, got ['a']."),
        ({"source": " "}, "data source: expected a path or the name of a hub dataset, got ' '."),
    ],
)
def test_arguments_of_another_type(tmp_path, keywords, expected):
    write_jsonl(tmp_path / "train.jsonl", sentences(10))
    assert refusal(load_task, **{"source": tmp_path, **keywords}) == expected


def test_a_near_miss_is_named_once_and_is_no_column_in_use(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text_label": "a"}])
    assert refusal(load_task, path).count("Did you mean") == 1
    path = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}, {"completion": "b"}])
    assert refusal(load_task, path) == (
        f"{path}, line 2: no column 'prompt'; columns there: completion. Set prompt_column to the column that is meant."
    )
    path = write_jsonl(tmp_path / "c.jsonl", [{"prompt": "a", "answer": "b"}])
    assert "Did you mean" not in refusal(load_task, path)
    path = write_jsonl(tmp_path / "d.jsonl", [{f"column {i}": "a" for i in range(1000)}])
    assert len(refusal(load_task, path)) < 1200


# What the key is called ----------------------------------------------------------------------------------------------


def test_messages_name_the_key_of_a_run(tmp_path):
    ids = labelled(tmp_path / "ids.jsonl", [f"id{i}" for i in range(50)])
    assert refusal(load_task, ids).endswith("Set label_column, or give class_names (Python: label_names).")
    path = write_jsonl(tmp_path / "a.jsonl", sentences(10))
    what = "class_names (Python: label_names): expected a list of class names"
    assert refusal(load_task, path, label_names="neg,pos") == f"{what}, like class_names=[neg, pos], got 'neg,pos'."
    message = refusal(load_task, path, label_names=[False, True])
    assert message.startswith(f"{what}, got [False, True]. true and false without quotes are truth values")
    assert message.endswith('put such names into quotes, as in class_names=["false", "true"].')
    assert "lone surrogate" in refusal(load_task, path, label_names=["a", "\ud800"])
    numbers = labelled(tmp_path / "n.jsonl", [5, 6] * 10)
    assert load_task(numbers, label_names=[6, 5]).label_names == ["6", "5"]


def test_rows_of_another_kind_name_no_option_that_nobody_gave(tmp_path):
    texts = write_jsonl(tmp_path / "texts.jsonl", sentences(10))
    completions = write_jsonl(tmp_path / "gen.jsonl", [{"prompt": "p", "completion": "c"}] * 20)
    for load in (load_rows, load_task):
        message = refusal(load, completions, label_names=["no", "yes"])
        assert message == (
            f"{completions}: holds prompts and completions, which have no classes, but class names are given; "
            "expected texts with labels, or words with tags."
        )
    assert refusal(load_rows, texts) == (
        f"{texts}: has labels, but the class names are not known, as for prompts and completions; expected columns 'prompt' "
        "and 'completion' (Python: or load_rows(path, label_names=[...]))."
    )


@pytest.mark.parametrize(
    ("names", "labels", "unknown"),
    [
        (["1", "2", "3"], [1, 0, 2], "line 2: unknown label 0; known labels: 1, 2, 3."),
        (["-1", "0", "1"], [0, 2], "line 2: unknown label 2; known labels: -1, 0, 1."),
        (["a", "b"], ["a", "01"], "line 2: unknown label '01'"),
        (["a", "b"], ["a", "-0"], "line 2: unknown label '-0'"),
    ],
)  # fmt: skip
def test_a_label_is_a_name_or_a_place_and_never_now_this_now_that(tmp_path, names, labels, unknown):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)])
    with pytest.raises(SoftPromptError) as error:
        load_rows(path, label_names=names)
    assert unknown in str(error.value)


def test_rows_without_any_class_are_no_blank_rows(tmp_path):
    rows = [{"text": f"t {i}", "label": [["a"], ["a", "b"], []][i % 3]} for i in range(60)]
    path = write_jsonl(tmp_path / "r.jsonl", [*rows, {"text": " ", "label": ["a"]}])
    assert sum(load_task(path, blank_rows="drop").origin["rows"].values()) == 60


def test_class_zero_is_not_taken_for_the_first_of_other_names(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": f"t {i}", "label": i % 3} for i in range(30)])
    assert "unknown label 0" in refusal(load_task, path, label_names=["1", "2"])


def test_one_hidden_label_among_others_is_a_mistake(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", sentences(20))
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": -1}, {"text": "b", "label": "yes"}])
    assert "test.jsonl, line 1: unknown label -1" in refusal(load_task, tmp_path)


def test_the_same_text_beside_another_one_is_no_overlap(tmp_path):
    for split in ("train", "dev", "test"):
        rows = [{"text": f"one {i}", "text_pair": f"{split} {i}", "label": "ab"[i % 2]} for i in range(20)]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    assert load_task(tmp_path).origin["overlap"] == {"train/dev": 0, "train/test": 0, "dev/test": 0}
