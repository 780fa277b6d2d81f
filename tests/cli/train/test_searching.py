"""`softprompt train --search`: words, refusals, what is printed, and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from house.runs import call
from softprompt import SoftPromptError
from softprompt.cli.train.searching import parse_search
from softprompt.experiments import Range


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=1e-3,3e-3, 1e-2", {"learning_rate": [1e-3, 3e-3, 1e-2]}),
        ("layers=[0, 1],[1]", {"layers": [[0, 1], [1]]}),
        ("head=pooled,stock", {"head": ["pooled", "stock"]}),
        ("marker=[unused1],[unused2]", {"marker": ["[unused1]", "[unused2]"]}),
        ("learning_rate=", {"learning_rate": []}),
        ("learning_rate=1e-4..1e-2", {"learning_rate": Range(1e-4, 1e-2)}),
        ("num_virtual_tokens=5..50", {"num_virtual_tokens": Range(5, 50)}),
        ("data=../a,../b", {"data": ["../a", "../b"]}),
        (
            "template='{text} It, {mask}.','{text} was {mask}.'",
            {"template": ["{text} It, {mask}.", "{text} was {mask}."]},
        ),
    ],
)
def test_values_are_read_as_after_set(text: str, expected: dict[str, list[object]]) -> None:
    assert parse_search([text], {}) == expected


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["learning_rate"], r"--search 'learning_rate': expected key=value,value"),
        (["=1,2"], r"--search '=1,2': expected key=value,value"),
        (["seed=1,2", "seed=3,4"], r"--search seed stands there twice; write all its values in one"),
        (["method=ept,spt"], r"method is set \(--set method or --method\) and searched; take one of the two out"),
        (["learning_rate=2..1"], r"2..1: expected a lower and then a higher number"),
        (["layers=[1,2"], r"--search 'layers=\[1,2': the values are not valid YAML"),
    ],
)
def test_what_cannot_be_read_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(SoftPromptError, match=said):
        parse_search(texts, {"method": "ept"})


def words(encoder: Path, animals: Path, output: Path, *more: object) -> tuple[object, ...]:
    base = ("train", "--backbone", encoder, "--data", animals, "--method", "prompt_tuning", "--output", output)
    settings = ("max_length=24", "num_train_epochs=1", "per_device_train_batch_size=8", "dtype=float32")
    return (*base, *(word for each in settings for word in ("--set", each)), *more)


def test_a_search_on_the_command_line(
    encoder: Path,
    few_animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = words(
        encoder,
        few_animals,
        tmp_path / "out",
        "--search",
        "learning_rate=1e-4,0.05",
        "--search",
        "num_virtual_tokens=3,64",
    )
    assert call(monkeypatch, *asked, "--dry-run") == 0
    told = json.loads(capsys.readouterr().out)
    rates, tokens = (1e-4, 0.05), (3, 64)
    settings = [{"learning_rate": rate, "num_virtual_tokens": count} for rate in rates for count in tokens]
    assert [trial["setting"] for trial in told["trials"]] == settings and told["rows"]["train"] == 24
    assert told["trials"][0]["folder"] == str(tmp_path / "out" / "trials" / "learning_rate=0.0001,num_virtual_tokens=3")
    assert not (tmp_path / "out").exists()

    assert call(monkeypatch, *asked) == 0
    *progress, last = capsys.readouterr().out.strip().splitlines()
    printed, document = json.loads(last), json.loads((tmp_path / "out" / "result.json").read_text())
    assert progress[0] == f"search {tmp_path / 'out'}: 4 trials to run" and len(progress) == 5
    assert all(" test " not in line for line in progress) and "dev accuracy 0." in progress[1]
    assert "FAILED num_virtual_tokens=64 leaves no room" in progress[2] and "2 failed" in progress[4]
    (chosen,) = (trial["setting"] for trial in document["trials"] if trial["chosen"])
    second = 1 if chosen["learning_rate"] == 0.05 else 2
    assert ", rank 1 so far (" in progress[1] and f", rank {second} so far (" in progress[3]
    assert printed["setting"] == chosen and (printed["trials"], printed["failed"]) == (4, 2)
    assert printed["test accuracy"] == document["train_info"]["test accuracy"]

    assert call(monkeypatch, *asked) == 2
    assert "is not empty; pass --resume" in " ".join(capsys.readouterr().err.split())
    assert call(monkeypatch, *asked, "--resume") == 0  # trials that are done are not run again; those that failed are
    *progress, last = capsys.readouterr().out.strip().splitlines()
    assert progress[0].endswith(": 2 trials to run (2 done before)") and json.loads(last) == printed
    assert call(monkeypatch, "eval", tmp_path / "out", "--data", few_animals) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--search", "learning_rate=1e-3,abc"), "learning_rate: expected a positive number, got 'abc'"),
        (("--search", "learning_rat=1,2"), "unknown key 'learning_rat'"),
        (("--search", "learning_rate=1e-3"), "expected at least two values to search, got the one value 0.001"),
        (("--search", "max_length=16,24"), "max_length is set (--set max_length or --max_length) and searched"),
        (("--search", "learning_rate=1,2", "--log", "log.jsonl"), "--log follows one run, and a search has many"),
        (("--search", "learning_rate=1,2", "--print-config"), "--print-config prints one run"),
        (("--search", "learning_rate=1,2", "--executor", "poll"), "unknown executor 'poll'"),
        (("--search", "learning_rate=1e-3..1e-1"), "a range holds too many values to try all"),
        (("--search-trials", "2"), "--search-trials is about the trials of a search; add --search"),
        (("--workers", "2"), "--workers is about the trials of a search; add --search key=value,value."),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_computed(
    more: tuple[str, ...],
    said: str,
    encoder: Path,
    few_animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *words(encoder, few_animals, tmp_path / "out", *more)) == 2
    found = capsys.readouterr()
    assert said in " ".join(found.err.split()) and found.out == ""
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_trials_on_different_dev_rows(
    encoder: Path,
    few_animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text((few_animals / "train.jsonl").read_text())  # no dev file: dev rows are drawn by the seed
    asked = words(encoder, rows, tmp_path / "out", "--search", "seed=1,2", "--dry-run")
    assert call(monkeypatch, *asked) == 2
    told = capsys.readouterr()
    assert told.out == "" and "seed: the trials would be compared on different dev rows" in told.err
