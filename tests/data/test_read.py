"""Files are read to equal rows, and a malformed one is named with its line."""

import pytest

from house.files import write_jsonl, write_table
from house.refusals import said
from softprompt import SoftPromptError
from softprompt.data import read_rows

ROWS = [{"text": 'a, "b"\nc', "label": "x"}, {"text": "d\u2028é", "label": "y"}]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    assert read_rows(write_table(tmp_path / f"train{suffix}", ROWS)).rows == ROWS


def test_a_row_knows_its_line(tmp_path):
    table = read_rows(write_table(tmp_path / "a.csv", ROWS))
    assert [table.where(i) for i in range(2)] == [
        f"{tmp_path}/a.csv, line 2",
        f"{tmp_path}/a.csv, line 4",
    ]  # a line break inside
    (tmp_path / "b.jsonl").write_text('\ufeff{"text": "a"}\n\n{"text": "b"}\n', encoding="utf-8")
    assert read_rows(tmp_path / "b.jsonl").where(1).endswith("b.jsonl, line 3")
    assert read_rows(write_table(tmp_path / "c.parquet", ROWS)).where(1).endswith("c.parquet, row 2")


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
