"""Several tasks in one data set."""

import json

import pytest

from house.files import write_jsonl
from house.tiny import write_tasks
from softprompt import SoftPromptError
from softprompt.data import load_task, load_tasks, read_rows


def written(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("asked", [{}, {"shots": 3, "seed": 7}, {"dev_fraction": 0.3}])
def test_each_task_is_what_its_rows_are_alone(asked, tmp_path):
    mixed = write_tasks(tmp_path / "mixed.jsonl")
    tasks = load_tasks(mixed, "task", **asked)
    assert list(tasks) == ["animal", "sky"]
    for name, task in tasks.items():
        own = [row for row in read_rows(mixed).rows if row["task"] == name]
        alone = load_task(written(tmp_path / f"{name}.jsonl", own), **asked)
        assert task.name == name and task.label_names == alone.label_names and task.kind == "classification"
        for split in ("train", "dev", "test"):
            assert getattr(task, split).to_list() == getattr(alone, split).to_list()
        assert task.origin["task"] == name and task.origin["source"] == str(mixed)


def test_files_of_a_folder_are_parted_too_and_a_task_without_test_rows_draws_some(tmp_path):
    for split in ("train", "validation", "test"):
        rows = read_rows(write_tasks(tmp_path / f"{split}.jsonl", rows=30)).rows
        written(tmp_path / f"{split}.jsonl", [row for row in rows if split != "test" or row["task"] == "animal"])
    tasks = load_tasks(tmp_path, "task")
    assert dict(tasks["animal"].origin["files"]) == {
        "train": "train.jsonl",
        "dev": "validation.jsonl",
        "test": "test.jsonl",
    }
    assert tasks["sky"].origin["files"]["test"] == "validation.jsonl" and len(tasks["sky"].test) == 20


def row(task, **more):
    return {"task": task, "text": "red dog", "label": "dog", **more}


@pytest.mark.parametrize(
    "rows, message",
    [
        ([row("a"), row(" ")], "line 2: expected the name of a task in column 'task', got ' '"),
        ([row("a"), row(None)], "line 2: expected the name of a task in column 'task', got None"),
        ([row("a"), row(["a"])], r"line 2: expected the name of a task in column 'task', got \['a'\]"),
        ([row("a/b")], "task 'a/b' .*as a folder is made of the name"),
        ([row(".a")], "task '.a' .*as a folder is made of the name"),
        ([row("a"), row("A")], "tasks a, A .*differ in capitals alone"),
        ([{"tsk": "a", "text": "x", "label": "y"}], "no column 'task'; .*Did you mean 'tsk'.*Set task_column"),
    ],
    ids=str,
)
def test_names_that_are_none(rows, message, tmp_path):
    with pytest.raises(SoftPromptError, match=message):
        load_tasks(written(tmp_path / "rows.jsonl", rows), "task")


def test_rows_to_test_of_a_task_that_nobody_learns(tmp_path):
    written(tmp_path / "train.jsonl", [row("a"), row("b")])
    written(tmp_path / "test.jsonl", [row("a"), row("c")])
    with pytest.raises(SoftPromptError, match=r"test.jsonl: rows of task 'c', of which the training rows have none"):
        load_tasks(tmp_path, "task")


def test_a_published_split_is_not_taken_and_said_so(tmp_path, caplog):
    caplog.set_level("INFO")
    write_tasks(tmp_path / "train.jsonl")
    (tmp_path / "kshot" / "3-1").mkdir(parents=True)
    tasks = load_tasks(tmp_path, "task", shots=3, seed=1)
    assert len(tasks["sky"].train) == 6 and "the published splits in kshot are not taken" in caplog.text


def test_a_task_without_rows_in_the_dev_file_draws_its_own(tmp_path):
    for split in ("train", "validation", "test"):
        rows = read_rows(write_tasks(tmp_path / f"{split}.jsonl", rows=30)).rows
        write_jsonl(
            tmp_path / f"{split}.jsonl", [row for row in rows if split != "validation" or row["task"] == "animal"]
        )
    tasks = load_tasks(tmp_path, "task")
    assert tasks["sky"].origin["files"]["dev"] == "train.jsonl" and len(tasks["sky"].dev) > 0
