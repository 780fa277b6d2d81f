"""`softprompt train` and `softprompt options`: words, dry runs, printed settings."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path

import pytest

import softprompt
from house.tiny import save_backbone, write_classification, write_completion
from softprompt import RunOptions
from softprompt.cli import main
from softprompt.training import read_yaml


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["softprompt", *map(str, words)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    save_backbone(folder / "bert")
    save_backbone(folder / "decoder", "decoder")
    write_classification(folder / "data")
    write_completion(folder / "lines")
    return folder


def words(place: Path, output: Path, *more: str, data: str = "data", backbone: str = "bert") -> tuple[object, ...]:
    base = ("train", "--backbone", place / backbone, "--data", place / data, "--method", "prompt_tuning")
    return (*base, "--output", output, *(part for setting in more for part in ("--set", setting)))


def test_no_training_without_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "train") == 2
    assert "no data: pass --data" in " ".join(capsys.readouterr().err.split())


def test_positions_are_checked_before_anything_is_computed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def computed(*_: object, **__: object) -> None:
        raise AssertionError("the probe ran")

    monkeypatch.setattr("softprompt.training.prepare.start_from_probe", computed)
    assert call(monkeypatch, *words(place, tmp_path / "a", "max_length=600", "num_virtual_tokens=4")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "max_length=600: bert has 64 positions, 4 of them for virtual tokens; set max_length=56." in said
    assert call(monkeypatch, *words(place, tmp_path / "b", "num_virtual_tokens=64")) == 2
    assert "num_virtual_tokens=64 leaves no room for text: bert has 64 positions" in " ".join(
        capsys.readouterr().err.split()
    )
    with pytest.raises(AssertionError, match="the probe ran"):  # the default gives way, and says so
        call(monkeypatch, *words(place, tmp_path / "c", "num_virtual_tokens=4"))
    assert "max_length=56: bert has 64 positions" in " ".join(capsys.readouterr().err.split())


def test_an_encoder_is_not_trained_to_complete(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *words(place, tmp_path / "a", data="lines")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "BertLMHeadModel (bert) is an encoder here: its positions see the text behind them" in said
    assert not (tmp_path / "a").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *words(place, tmp_path / "a", "max_length=24"), "--dry-run") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "prompt_tuning" and found["kind"] == "classification" and found["head"] == "pooled"
    assert sum(found["training rows of each class"].values()) == found["rows"]["train"] > 0
    assert not (tmp_path / "a").exists()
    assert call(monkeypatch, *words(place, tmp_path / "a", "max_length=600"), "--dry-run") == 2
    assert call(monkeypatch, *words(place, tmp_path / "a", data="lines", backbone="decoder"), "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "completion"


def test_the_printed_config_is_read_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        call(monkeypatch, *words(place, tmp_path / "a", "max_length=24", "learning_rate=1e-2"), "--print-config") == 0
    )
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    flat = read_yaml(path)
    assert flat["learning_rate"] == 1e-2 and flat["num_virtual_tokens"] == 20 and flat["text_column"] == "text"
    assert not (tmp_path / "a").exists()
    assert call(monkeypatch, "train", "--config", path, "--print-config") == 0
    assert read_yaml(path) == flat


def test_own_data_beside_a_recipe_drops_what_is_about_its_own(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--recipe", "spt_roberta_large_fewshot", "--print-config")
    assert call(monkeypatch, "train", *told) == 0
    hub = capsys.readouterr().out
    assert call(monkeypatch, "train", *told, "--data", place / "data") == 0
    found = capsys.readouterr()
    assert "hub_config: null" in found.out and "hub_config: null" not in hub
    assert "left out: they are about its own data, and you bring yours" in " ".join(found.err.split())


def test_options_lists_keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "options", "ept", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"run", "method ept", "TrainingArguments"} == set(found)
    rank = next(key for key in found["method ept"] if key["name"] == "rank")
    assert rank["type"] == "a whole number" and rank["default"] == "30" and rank["meaning"]
    assert call(monkeypatch, "options", "epx") == 2
    assert "Did you mean 'ept'?" in " ".join(capsys.readouterr().err.split())


def test_a_score_of_unbalanced_classes_chooses_the_checkpoint(place: Path, tmp_path: Path) -> None:
    flat = {"backbone": str(place / "bert"), "data": str(place / "data"), "method": "prompt_tuning", "max_length": 24}
    flat |= {"num_train_epochs": 2, "dtype": "float32", "disable_tqdm": True, "metric_for_best_model": "macro_f1"}
    done = softprompt.train(RunOptions.from_flat({**flat, "output_dir": str(tmp_path / "out")}), progress=False)
    scores = [entry for entry in done.document["train_info"]["metrics"] if "eval_macro_f1" in entry][
        :2
    ]  # then test rows
    assert all(0 <= entry["eval_balanced_accuracy"] <= 1 for entry in scores)
    best = max(entry["eval_macro_f1"] for entry in scores)
    chosen = next(e for e in scores if e["step"] == done.document["train_info"]["best_checkpoint_step"])
    assert chosen["eval_macro_f1"] == best


def test_the_verbalizer_command_of_the_docs_parses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[3] / "docs" / "options.md").read_text()
    line = next(line for line in text.splitlines() if "head=verbalizer" in line)
    assert call(monkeypatch, *shlex.split(line)[1:], "--print-config") == 0
    found = capsys.readouterr().out
    assert "template: '{text} It was {mask}.'" in found and "positive:" in found
