"""``softprompt predict`` and ``softprompt eval``: what goes in, what comes out, and what is refused before any work."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from rich.console import Console

import softprompt
import softprompt.cli.predict as predict_module
from house.runs import train_shortly
from house.tiny import save_backbone, write_classification, write_completion, write_tasks, write_tokens
from softprompt import NonFiniteError
from softprompt.cli import main
from softprompt.models.kinds import _texts
from softprompt.serving.predict import CHUNK
from softprompt.training import RunOptions
from softprompt.training.prepare import read_task, rows_of_run

CLASSES = ("bird", "cat", "dog")


SCORES = [f"predicted_score_{name}" for name in CLASSES]


Call = Callable[..., tuple[int, str, str]]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def data(root: Path) -> Path:
    return write_classification(root / "data")


@pytest.fixture(scope="module")
def adapter(root: Path, encoder: Path, data: Path) -> Path:
    return train_shortly(encoder, data, root / "adapter")


@pytest.fixture(scope="module")
def reviews(root: Path, encoder: Path, data: Path) -> Path:
    """An adapter whose texts stood in the column review."""
    folder = root / "reviews-data"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = map(json.loads, (data / f"{split}.jsonl").read_text().splitlines())
        write(folder / f"{split}.jsonl", *({"review": row["text"], "label": row["label"]} for row in rows))
    return train_shortly(encoder, folder, root / "reviews", text_column="review")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command: exit code, stdout, and stderr with single spaces."""

    def run(*words: object, stdin: str | bytes = "") -> tuple[int, str, str]:
        text = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "argv", ["softprompt", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return int(code), printed.out, " ".join(printed.err.split())

    return run


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# ---------------------------------------------------------------- what comes out


def test_the_ending_of_the_output_chooses_its_format(adapter: Path, data: Path, tmp_path: Path, call: Call) -> None:
    code, out, _ = call("predict", adapter, "--input", data / "test.jsonl")
    wanted = lines(out)
    assert (
        code == 0
        and [list(row) for row in wanted]
        == [["text", "label", "predicted_label", "predicted_score", "predicted_scores"]] * 24
    )
    for ending in ("jsonl", "csv", "tsv", "parquet"):
        path = tmp_path / "new" / f"found.{ending}"
        code, out, err = call("predict", adapter, "--input", data / "test.jsonl", "--output", path)
        assert (code, out) == (0, "") and f"24 rows written to {path}" in err
        if ending == "jsonl":
            assert lines(path.read_text()) == wanted
            continue
        if ending == "parquet":
            found = parquet.read_table(path).to_pylist()
        else:
            with path.open(newline="") as file:
                found = list(csv.DictReader(file, delimiter="," if ending == "csv" else "\t"))
        assert list(found[0]) == ["text", "label", "predicted_label", "predicted_score", *SCORES]
        for row, other in zip(found, wanted, strict=True):
            assert row["text"] == other["text"] and row["predicted_label"] == other["predicted_label"]
            assert [float(row[name]) for name in SCORES] == list(other["predicted_scores"].values())
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(
        f"found.{ending}" for ending in ("jsonl", "csv", "tsv", "parquet")
    )  # no neighbour is left


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "found.cvs",
            "expected a name that ends in one of .jsonl, .csv, .tsv, .parquet, or '-' for stdout, got '.cvs'. "
            "Did you mean '.csv'?",
        ),
        (
            "found",
            "expected a name that ends in one of .jsonl, .csv, .tsv, .parquet, or '-' for stdout, got no ending.",
        ),
        ("file/found.csv", "it cannot be written (File exists); free space, or give another place."),
        ("folder.csv", "expected a file, got a folder."),
        ("rows.jsonl", "it is the input; give the predictions a file of their own."),
    ],
)
def test_an_impossible_output_is_refused_before_any_work(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, name: str, message: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    rows = write(tmp_path / "rows.jsonl", {"text": "red"})
    monkeypatch.setattr(softprompt.serving, "Predictor", None)  # calling it would be a TypeError
    code, out, err = call("predict", adapter, "--input", rows, "--output", tmp_path / name)
    assert (code, out) == (2, "") and f"--output {tmp_path / name}: {message}" in err


def test_the_users_columns_stay_as_they_are(adapter: Path, call: Call) -> None:
    row = {"text": "red dog", "score": "mine", "scores": [1], "label": "cat", "x": None, "n": 2.5}
    _, out, _ = call("predict", adapter, stdin=json.dumps(row) + "\n")
    assert {key: lines(out)[0][key] for key in row} == row


def test_a_text_column_of_training_comes_back_once(reviews: Path, call: Call) -> None:
    code, out, _ = call("predict", reviews, stdin='{"review": "red dog"}\n{"text": "red dog"}\n')
    one, other = lines(out)
    assert code == 0 and "text" not in one and one["predicted_scores"] == pytest.approx(other["predicted_scores"])


def test_a_predicted_column_of_the_user_is_refused(adapter: Path, call: Call) -> None:
    row = '{"text": "red", "id": 7, "predicted_label": "mine"}\n'
    code, out, err = call("predict", adapter, stdin=row)
    assert (code, out) == (2, "") and (
        "stdin, line 1: the column 'predicted_label' has the name of what predict writes; rename it, or leave it out with "
        "--columns text,id." in err
    )
    code, out, _ = call("predict", adapter, "--columns", "text,id", stdin=row)
    assert code == 0 and lines(out)[0]["id"] == 7


def test_columns_are_chosen(adapter: Path, tmp_path: Path, call: Call) -> None:
    rows = write(tmp_path / "rows.jsonl", {"text": "red", "id": 1, "more": 2}, {"text": "cat", "other": 3})
    _, out, _ = call("predict", adapter, "--input", rows, "--columns", "other, id")
    assert [[key for key in row if not key.startswith("predicted_")] for row in lines(out)] == [["id"], ["other"]]
    for none in ("none", ""):
        _, out, _ = call("predict", adapter, "--input", rows, "--columns", none)
        assert all(key.startswith("predicted_") for row in lines(out) for key in row)
    for source in (("--input", rows), ()):
        code, out, err = call("predict", adapter, *source, "--columns", "othr", stdin=rows.read_bytes())
        assert (code, out) == (2, "")
        assert (
            "--columns: no row has a column 'othr'; columns there: text, id, more, other. Did you mean 'other'?" in err
        )


def test_lists_and_objects_are_json_in_csv_and_typed_in_parquet(
    root: Path, encoder: Path, tmp_path: Path, call: Call
) -> None:
    folder = train_shortly(encoder, write_tokens(root / "tokens-data"), root / "tokens")
    source = root / "tokens-data" / "test.jsonl"
    call("predict", folder, "--input", source, "--output", tmp_path / "a.csv")
    call("predict", folder, "--input", source, "--output", tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open(newline="") as file:
        fields = [{key: json.loads(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == fields
    assert all(len(row["predicted_tags"]) == len(row["tokens"]) for row in fields)
    assert {"type", "start", "end", "text"} == set(fields[0]["predicted_entities"][0])


def test_line_breaks_and_quotes_survive_csv(adapter: Path, tmp_path: Path, call: Call) -> None:
    texts = ['red, "dog"', "two\nlines", "two\r\nlines", "cat\rdog", " red ", "é 漢"]
    rows = write(tmp_path / "rows.jsonl", *({"text": text, "ok": True, "no": None} for text in texts))
    assert call("predict", adapter, "--input", rows, "--output", tmp_path / "a.csv")[0] == 0
    code, out, _ = call("predict", adapter, "--input", tmp_path / "a.csv", "--columns", "text,ok,no")
    assert code == 0 and [(row["text"], row["ok"], row["no"]) for row in lines(out)] == [(t, "true", "") for t in texts]


def test_parquet_keeps_the_types_of_parquet(adapter: Path, tmp_path: Path, call: Call) -> None:
    from datetime import date, datetime
    from decimal import Decimal

    given = pa.table(
        {
            "text": ["red dog", "blue cat"],
            "when": [datetime(2020, 1, 2, 3, 4), None],
            "day": [date(2020, 1, 2), None],
            "price": [Decimal("1.50"), None],
            "small": pa.array([1, None], pa.int32()),
            "list": [[1, 2], []],
            "raw": [b"a", b"b"],
        }
    )
    parquet.write_table(given, tmp_path / "in.parquet")
    words = ("predict", adapter, "--input", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet")
    code, _, err = call(*words)
    assert code == 2 and "in.parquet, row 1: a column holds bytes, which no line of JSON can hold" in err
    kept = [name for name in given.column_names if name != "raw"]
    assert call(*words, "--columns", ",".join(kept))[0] == 0
    assert parquet.read_table(tmp_path / "out.parquet").select(kept).equals(given.select(kept))


def test_a_column_of_several_types_is_json_in_parquet_and_nan_is_null(
    adapter: Path, tmp_path: Path, call: Call
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "x": 1, "n": NaN}\n{"text": "b", "x": "u"}\n{"text": "c", "y": 2.5}\n')
    code, _, err = call("predict", adapter, "--input", rows, "--output", tmp_path / "a.parquet")
    assert code == 0 and "x as JSON texts: a column of parquet has one type" in err
    found = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [(row["x"], row["n"], row["y"]) for row in found] == [
        ("1", None, None),
        ('"u"', None, None),
        (None, None, 2.5),
    ]
    _, out, _ = call("predict", adapter, "--input", rows)
    assert "NaN" not in out and lines(out)[0]["n"] is None


# ---------------------------------------------------------------- rows that cannot be predicted


BAD = [
    ('{"text": " "}', "expected a non-empty 'text', got ' '"),
    ('{"text": null}', "expected a non-empty 'text', got None"),
    ('{"text": 5}', "expected a non-empty 'text', got 5"),
    ('{"txt": "red"}', "expected a non-empty 'text', got None; columns are ['txt']. Did you mean 'txt'?"),
    ('{"text": "\\ud83d"}', "the text holds a lone surrogate"),
    ('{"text": "red", "note": "\\ud83d"}', "the text holds a lone surrogate"),
    ('["red"]', "expected an object"),
    ('{"text": ', "invalid JSON"),
    ('{"text": "caf\udce9"}', "not UTF-8 (byte 0xe9)"),
    ('{"text": "a", "n": ' + "9" * 5000 + "}", "invalid JSON"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_bad_row_is_refused_before_anything_is_predicted(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, row: str, message: str
) -> None:
    content = f'{{"text": "red"}}\n\n{row}\n'.encode(errors="surrogateescape")
    (tmp_path / "rows.jsonl").write_bytes(content)
    monkeypatch.setattr(softprompt.Predictor, "_chunks", None)  # calling it would be a TypeError
    code, out, err = call("predict", adapter, stdin=content)
    where = "line 3, column" if "surrogate" in message else "line 3: "  # where one column is at fault, its name
    assert (code, out) == (2, "") and f"error: stdin, {where}" in err and message in err and "Traceback" not in err
    output = tmp_path / "found.csv"
    code, out, err = call("predict", adapter, "--input", tmp_path / "rows.jsonl", "--output", output)
    assert code == 2 and f"nothing was written to {output}" in err and f"rows.jsonl, {where}" in err and message in err
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_bad_rows_are_skipped_and_counted(adapter: Path, tmp_path: Path, call: Call) -> None:
    rows = ['{"text": "red", "id": 1}', *(row for row, _ in BAD), '{"text": "cat", "id": 2}']
    content = ("\n".join(rows) + "\n").encode(errors="surrogateescape")
    (tmp_path / "rows.jsonl").write_bytes(content)
    code, out, err = call("predict", adapter, "--skip-bad-rows", stdin=content)
    assert code == 0 and [row["id"] for row in lines(out)] == [1, 2]
    assert f"{len(BAD)} rows skipped" in err and err.count("skipped stdin, line") == 5
    assert "skipped stdin, line 2: expected a non-empty 'text', got ' '" in err
    code, _, err = call(
        "predict", adapter, "--skip-bad-rows", "--input", tmp_path / "rows.jsonl", "--output", tmp_path / "a.csv"
    )
    assert code == 0 and f"{len(BAD)} rows skipped" in err and "2 rows written" in err
    assert err.count("rows.jsonl, line") == 5


def test_nothing_that_was_predicted_is_lost(adapter: Path, tmp_path: Path, call: Call) -> None:
    """A bad row of stdin behind the first chunk comes too late to refuse all."""
    good = '{"text": "red dog"}\n' * CHUNK
    output = tmp_path / "found.csv"
    words = ("predict", adapter, "--batch-size", 1, "--output", output)
    code, _, err = call(*words, stdin=good + '{"text": ""}\n')
    partial = tmp_path / ".found.csv.partial"
    assert code == 2 and f"stdin, line {CHUNK + 1}: expected a non-empty 'text'" in err
    assert f"what was predicted before ({CHUNK} rows) is in {partial}, as JSON lines." in err
    assert not output.exists() and len(lines(partial.read_text())) == CHUNK
    assert call(*words, stdin=good)[0] == 0  # the next run takes its place
    assert output.exists() and not partial.exists()


def test_a_stopped_run_leaves_an_older_output_alone(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    output = tmp_path / "found.jsonl"
    output.write_text("old\n")
    whole = softprompt.Predictor.predict_checked

    def stops(*given: Any) -> Iterator[dict[str, Any]]:
        for number, prediction in enumerate(whole(*given)):
            if number == 1:
                raise NonFiniteError("row 2: no numbers.")
            yield prediction

    monkeypatch.setattr(softprompt.Predictor, "predict_checked", stops)
    code, _, err = call("predict", adapter, "--output", output, stdin='{"text": "red"}\n' * 3)
    assert code == 2 and "(1 row) is in" in err and output.read_text() == "old\n"
    assert len(lines((tmp_path / ".found.jsonl.partial").read_text())) == 1


def test_texts_that_are_no_utf8_are_named(adapter: Path, tmp_path: Path, call: Call) -> None:
    code, out, err = call("predict", adapter, "--plain", stdin=b"red\ncaf\xe9\n")
    assert (code, out) == (2, "") and "stdin, line 2: not UTF-8 (byte 0xe9)" in err
    (tmp_path / "rows.txt").write_bytes(b"\xef\xbb\xbfred dog\r\n\r\n blue cat \r\n")
    _, out, _ = call("predict", adapter, "--plain", "--input", tmp_path / "rows.txt")
    assert [row["text"] for row in lines(out)] == ["red dog", " blue cat "]
    code, _, err = call("predict", adapter, "--plain", "--input", tmp_path / "none.txt")
    assert code == 2 and "none.txt: expected a file of lines, got no such file" in err


# ---------------------------------------------------------------- options


def test_other_column_names(reviews: Path, data: Path, tmp_path: Path, call: Call) -> None:
    rows = write(tmp_path / "rows.jsonl", {"body": "red dog", "kind": "dog"}, {"body": "blue cat", "kind": "cat"})
    _, out, _ = call("predict", reviews, "--input", rows, "--set", "text_column=body")
    assert [set(row) >= {"body", "kind", "predicted_label"} and "text" not in row for row in lines(out)] == [True, True]
    named = ("--set", "text_column=body", "--set", "label_column=kind")
    code, out, _ = call("eval", reviews, "--data", rows, *named)
    assert code == 0 and json.loads(out)["rows"] == 2
    _, out, _ = call("eval", reviews, "--data", data, "--set", "text_column=text")
    assert json.loads(out)["rows"] == 24
    code, out, _ = call("inspect", reviews, "--data", rows, *named, "--json")
    assert code == 0 and all("importance" in token for token in json.loads(out)["tokens"])
    for command, setting, message in (
        (
            "eval",
            "text_colum=a",
            "unknown key of --set 'text_colum': expected one of text_column, text_pair_column, label_column",
        ),
        (
            "predict",
            "label_column=a",
            "unknown key of --set 'label_column': expected one of text_column, text_pair_column",
        ),
        ("predict", "text_column=3", "--set text_column=3: expected the name of a column, got 3"),
        ("predict", "text_column", "--set 'text_column': expected key=value"),
    ):
        source = ("--data", rows) if command == "eval" else ("--input", rows)
        code, out, err = call(command, reviews, *source, "--set", setting)
        assert (code, out) == (2, "") and message in err
    code, _, err = call("predict", reviews, "--plain", "--set", "text_column=a", stdin="red\n")
    assert code == 2 and "--plain: lines of text have no columns; leave --set out." in err


def test_batches_and_new_tokens_are_counted_from_one(
    adapter: Path, data: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    for words in (("predict", adapter, "--batch-size", 0), ("predict", adapter, "--max-new-tokens", 0)):
        code, _, err = call(*words, stdin='{"text": "red"}\n')
        assert code == 2 and "Traceback" not in err and words[2] in err
    sizes: list[int] = []
    logits = _texts.logits_of
    monkeypatch.setattr(
        _texts,
        "logits_of",
        lambda adapted, batch: sizes.append(len(batch["input_ids"])) or logits(adapted, batch),
    )
    call("predict", adapter, "--batch-size", 7, "--input", data / "test.jsonl")
    call("eval", adapter, "--batch-size", 9, "--data", data / "test.jsonl")
    assert sizes == [7, 7, 7, 3, 9, 9, 6]


def test_a_bar_is_for_terminals(adapter: Path, data: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    assert "predicting" not in call("predict", adapter, "--input", data / "test.jsonl")[2]
    for words, stdin, total in (
        (("--input", data / "test.jsonl"), "", "24/24"),
        ((), '{"text": "red"}\n', "1/?"),
    ):
        screen = io.StringIO()
        monkeypatch.setattr(predict_module, "err", Console(file=screen, force_terminal=True, width=120))
        assert call("predict", adapter, *words, stdin=stdin)[0] == 0
        assert "predicting" in screen.getvalue() and total in screen.getvalue()


# ---------------------------------------------------------------- eval


def test_eval_says_how_well_each_class_is_found(adapter: Path, data: Path, call: Call) -> None:
    code, out, err = call("eval", adapter, "--data", data)
    found = json.loads(out)
    assert code == 0 and len(out.splitlines()) == 1
    assert list(found)[:3] == ["data", "split", "accuracy"] and found["rows"] == 24 and found["split"] == "test"
    assert {"balanced_accuracy", "macro_f1"} <= set(found) and list(found["per_class"]) == list(CLASSES)
    assert set(found["per_class"]["cat"]) == {"precision", "recall", "f1", "support"}
    assert "precision" in err and "rows by true (down) and predicted class" in err


def drawn_alone(root: Path, name: str) -> Path:
    """A folder in which one file holds all rows."""
    folder = root / name
    folder.mkdir()
    (write_classification(root / "whole") / "train.jsonl").rename(folder / "train.jsonl")
    return folder


def test_eval_scores_the_rows_that_a_run_has_drawn_for_its_test(encoder: Path, tmp_path: Path, call: Call) -> None:
    """Drawn anew, most of them would be rows that have trained it."""
    data, folder = drawn_alone(tmp_path, "drawn"), tmp_path / "out"
    asked = {"seed": 13, "dev_fraction": 0.2}
    train_shortly(encoder, data, folder, **asked)
    code, out, err = call("eval", folder, "--data", data)
    info, found = json.loads((folder / "result.json").read_text())["train_info"], json.loads(out)
    assert code == 0 and "with seed 13" in err and "have trained it" not in err
    assert (found["accuracy"], found["rows"]) == (pytest.approx(info["test accuracy"]), 6)
    mine, run = rows_of_run(folder, str(data)), read_task(RunOptions.from_flat({"data": str(data), **asked}))
    assert mine is not None and mine.test is not None and run.test is not None
    assert mine.test["text"] == run.test["text"]
    assert rows_of_run(folder, str(data.parent)) is None  # other data
    code, out, _ = call("inspect", folder, "--data", data, "--json")  # on the same rows
    assert code == 0 and json.loads(out)["tokens"] == softprompt.look(folder, rows=mine.test)["tokens"]
    (folder / "run.json").unlink()
    code, _, err = call("eval", folder, "--data", data)
    assert (
        code == 0 and "with seed 42" in err and "test rows drawn from train.jsonl" in err and "have trained it" in err
    )
    assert "have trained it" not in call("eval", folder, "--data", data, "--split", "train")[2]


def test_eval_of_one_of_several_tasks_scores_its_own_rows(encoder: Path, tmp_path: Path, call: Call) -> None:
    data, folder = write_tasks(tmp_path / "tasks.jsonl").parent / "tasks", tmp_path / "out"
    data.mkdir()
    (tmp_path / "tasks.jsonl").rename(data / "train.jsonl")
    train_shortly(encoder, data, folder, task_column="task", method="prompt_tuning", seed=13)
    for task in ("animal", "sky"):
        said = json.loads((folder / task / "result.json").read_text())["train_info"]
        code, out, _ = call("eval", folder / task, "--data", data)
        assert code == 0 and json.loads(out)["accuracy"] == pytest.approx(said["test accuracy"])
    copied, lines = tmp_path / "copied", (data / "train.jsonl").read_text().splitlines(True)
    shutil.copytree(data, copied)
    own = [line for line in lines if '"task": "sky"' in line]
    assert 0 < len(own) < len(lines)
    for place, split in ((copied, ("--split", "train")), (copied / "train.jsonl", ())):  # data of which no run knows
        code, out, err = call("eval", folder / "sky", "--data", place, *split)
        assert code == 0 and f"{len(own)} of {len(lines)} rows of" in err and "that they are not 'sky'" in err
    assert json.loads(out)["rows"] == len(own)
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(line.replace('"task"', '"of"') for line in own))
    code, out, err = call("eval", folder / "sky", "--data", bare)
    assert code == 0 and json.loads(out)["rows"] == len(own) and " rows of" not in err
    bare.write_text("".join(line for line in lines if line not in own))
    code, out, err = call("eval", folder / "sky", "--data", bare)
    assert (code, out) == (2, "") and "no row of task 'sky', which the prompt was trained on; expected 'sky' in" in err
    kept = [line for line in lines if '"sky"' not in line]
    (data / "train.jsonl").write_text("".join(kept))
    code, out, err = call("eval", folder / "sky", "--data", data)
    assert (code, out) == (2, "") and "unknown task of the run 'sky': expected one of animal" in err


def test_eval_draws_its_confusions_and_says_first_what_it_cannot_draw(
    adapter: Path, data: Path, tmp_path: Path, call: Call
) -> None:
    assert call("eval", adapter, "--data", data, "--figure", tmp_path / "confusion.png")[0] == 0
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").touch()
    code, out, err = call("eval", adapter, "--data", data, "--figure", tmp_path / "file" / "confusion.png")
    assert code == 2 and "accuracy" in json.loads(out), "what was computed is not lost"
    code, out, err = call("eval", adapter, "--data", "nothing", "--figure", "confusion.gif")
    assert (code, out) == (2, "") and "--figure confusion.gif: expected a name that ends in .png or .svg" in err


def test_eval_of_many_classes_lists_what_is_taken_for_what(
    adapter: Path, data: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setattr(predict_module, "MATRIX", 2)
    err = call("eval", adapter, "--data", data / "test.jsonl")[2]
    assert "the most frequent confusions" in err and "rows by true" not in err


def test_eval_of_a_class_without_rows_is_json(adapter: Path, tmp_path: Path, call: Call) -> None:
    rows = write(tmp_path / "one.jsonl", {"text": "red dog", "label": "dog"})
    code, out, err = call("eval", adapter, "--data", rows)
    assert code == 0 and "NaN" not in out and json.loads(out)["per_class"]["cat"]["support"] == 0
    assert "warn" not in err.lower()


def test_eval_refuses_what_it_would_not_use(root: Path, adapter: Path, data: Path, call: Call) -> None:
    code, out, err = call("eval", adapter, "--data", data / "test.jsonl", "--split", "train")
    assert (code, out) == (2, "")
    assert f"--split train: {data / 'test.jsonl'} is one file, which is used whole; leave --split out." in err
    answers = write_completion(root / "answers")
    for source in (answers, answers / "test.jsonl"):
        code, out, err = call("eval", adapter, "--data", source)
        assert (code, out) == (2, "") and "label_names" not in err and "class_names" not in err
        assert (
            "line 1: expected the columns of text and label (text, label), found those of prompt and completion "
            "(prompt, completion)." in err
        )


def test_rows_with_more_columns_are_read_as_the_adapter_needs(adapter: Path, tmp_path: Path, call: Call) -> None:
    row = {"text": "red dog", "label": "dog", "prompt": "red", "completion": "dog"}
    code, out, _ = call("eval", adapter, "--data", write(tmp_path / "both.jsonl", row))
    assert code == 0 and json.loads(out)["rows"] == 1


def test_completions_as_a_table(root: Path, tmp_path: Path, call: Call) -> None:
    answers = write_completion(root / "more-answers")
    folder = train_shortly(save_backbone(root / "decoder", "decoder"), answers, root / "writer")
    path = tmp_path / "found.tsv"
    words = ("--input", answers / "test.jsonl", "--output", path, "--max-new-tokens", 2, "--batch-size", 3)
    assert call("predict", folder, *words)[0] == 0
    with path.open(newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    assert len(found) == 8 and list(found[0]) == ["prompt", "completion", "predicted_completion"]


def shown_classes(monkeypatch: pytest.MonkeyPatch, confusion: dict[str, dict[str, int]], matrix: int) -> Any:
    tables: list[Any] = []
    monkeypatch.setattr(
        predict_module, "table", lambda title, head, lines: tables.append((title, list(lines))) or title
    )
    monkeypatch.setattr(predict_module, "MATRIX", matrix)
    one = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 1}
    predict_module._show_classes({"per_class": {"a": one, "b": one}, "confusion": confusion}, ["a", "b"])
    return tables[-1]


def test_confusions_are_true_classes_down(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shown_classes(monkeypatch, {"a": {"a": 3, "b": 2}, "b": {"b": 4}}, 12)
    assert found == ("rows by true (down) and predicted class", [("a", "3", "2"), ("b", "0", "4")])
    found = shown_classes(monkeypatch, {"a": {"a": 3, "b": 2}, "b": {"b": 4, "a": 5}}, 1)
    assert found[1] == [("b", "a", "5"), ("a", "b", "2")]


def test_two_completions_are_a_list(
    writers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    rows, out = write(tmp_path / "in.jsonl", {"prompt": "red dog"}), tmp_path / "o.csv"
    drawn = ("--completions", 2, "--temperature", 1, "--max-new-tokens", 2)
    assert call("predict", writers["short"], "--input", rows, "--output", out, *drawn)[0] == 0
    (row,) = csv.DictReader(out.open(newline=""))
    assert list(row) == ["prompt", "predicted_completions"] and len(json.loads(row["predicted_completions"])) == 2
