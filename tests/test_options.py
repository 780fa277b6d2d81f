"""Every key has a type and bounds, and is refused by one message before anything is loaded."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import softprompt
from softprompt import RunOptions, SoftPromptError
from softprompt.catalog import CATALOG
from softprompt.cli import main
from softprompt.training import parse_setting, read_yaml, to_yaml
from softprompt.training.describe import method_keys, run_keys, training_keys
from softprompt.typed import conform, describe
from tiny import save_backbone, write_classification, write_completion

PLAIN = {"method": "prompt_tuning", "data": "somewhere"}


def refused(message: str, **keys: Any) -> None:
    with pytest.raises(SoftPromptError) as error:
        RunOptions.from_flat({**PLAIN, **keys})
    assert message in str(error.value), str(error.value)


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["softprompt", *map(str, words)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


NONSENSE: list[tuple[str, Any, str]] = [
    ("num_virtual_tokens", 2.5, "a whole number of at least 1, got 2.5"),
    ("num_virtual_tokens", "abc", "a whole number of at least 1, got 'abc'"),
    ("num_virtual_tokens", True, "a whole number of at least 1, got True"),
    ("num_virtual_tokens", 0, "a whole number of at least 1, got 0"),
    ("per_device_train_batch_size", 0, "a whole number of at least 1, got 0"),
    ("per_device_train_batch_size", -4, "a whole number of at least 1, got -4"),
    ("gradient_accumulation_steps", 0, "a whole number of at least 1, got 0"),
    ("seed", -1, "a whole number of at least 0, got -1"),
    ("max_steps", "abc", "a whole number of at least 1, got 'abc'"),
    ("max_steps", -5, "a whole number of at least 1, got -5"),
    ("head_learning_rate", "abc", "a number of at least 0, got 'abc'"),
    ("head_learning_rate", -1, "a number of at least 0, got -1"),
    ("learning_rate", float("nan"), "a positive number, got nan"),
    ("learning_rate", -1, "a positive number, got -1"),
    ("weight_decay", -1, "a number of at least 0, got -1"),
    ("max_grad_norm", -1, "a number of at least 0, got -1"),
    ("dev_fraction", "abc", "a number, got 'abc'"),
    ("dev_fraction", 1, "a number between 0 and 1, got 1"),
    ("init_text", 5, "a text or a list of texts, got 5"),
    ("backbone_dropout", "maybe", "true or false, got 'maybe'"),
    ("data", ["a"], "a text, got ['a']"),
    ("data", None, "a text, got None"),
    ("output_dir", None, "a text, got None"),
    ("text_column", 5, "a text, got 5"),
    ("class_names", "neg,pos", "a list of texts, got 'neg,pos'"),
    ("class_names", [0, 1], "a list of texts, got [0, 1]"),
    ("shots", 0, "a whole number of at least 1, got 0"),
    ("label_words", "abc", "a mapping, got 'abc'"),
    ("adam_beta1", 2, "a number of at least 0 and below 1, got 2"),
    ("label_smoothing_factor", 7, "a number of at least 0 and below 1, got 7"),
    ("init_seed", -3, "a whole number of at least 0, got -3"),
]


@pytest.mark.parametrize(("key", "value", "expected"), NONSENSE, ids=lambda value: str(value)[:20])
def test_a_value_of_another_kind_is_refused_by_its_key(key: str, value: Any, expected: str) -> None:
    refused(f"{key}: expected {expected}", **{key: value})


def test_values_inside_a_mapping_are_checked_too() -> None:
    refused("learning_rates of 'prompt': expected a number of at least 0, got -1", learning_rates={"prompt": -1})
    refused("learning_rates: expected a mapping, got 3", learning_rates=3)
    refused("alpha: expected a positive number, got 0", method="dept", alpha=0)
    refused("alpha: expected a number, got 'abc'", method="dept", alpha="abc")


def test_what_a_prompt_makes_no_use_of_is_refused() -> None:
    refused("budget=3: a prompt of method 'prompt_tuning' makes no use of it here", budget=3)
    refused("bottleneck=3, rank=2: a prompt of method 'deep_prompts'", method="deep_prompts", rank=2, bottleneck=3)
    assert RunOptions.from_flat({**PLAIN, "method": "spt", "budget": 3}).method_options == {"budget": 3}


def test_keys_that_a_run_decides_say_why() -> None:
    refused("label_names=['neg', 'pos']: the names of the classes are class_names here", label_names=["neg", "pos"])
    refused("remove_unused_columns=False: softprompt train hands over", remove_unused_columns=False)
    refused("resume_from_checkpoint='x': a run goes on with --resume", resume_from_checkpoint="x")
    refused("do_train=False: softprompt train trains", do_train=False)
    refused("report_to=wandb: its package is not installed", report_to="wandb")
    refused("unknown report_to 'wandbb': expected one of none, all", report_to=["wandbb"])
    refused("unknown key 'lern_rate'", lern_rate=1)


def test_layers_that_are_none_are_refused_before_anything_is_loaded() -> None:
    refused("layers=[] enters no layer, so nothing would be prompted", method="deep_prompts", layers=[])
    refused("layers: expected ascending layer numbers", method="deep_prompts", layers=[2, 1])


def test_what_people_type_is_taken_as_they_mean_it() -> None:
    options = RunOptions.from_flat(
        {**PLAIN, "shots": 4.0, "backbone_dropout": "yes", "learning_rate": "1e-3", "seed": "7"}
    )
    assert (options.shots, options.backbone_dropout, options.training["learning_rate"], options.seed) == (
        4,
        True,
        1e-3,
        7,
    )
    assert RunOptions.from_flat({**PLAIN, "max_steps": -1}).training["max_steps"] == -1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("save_strategy=no", "no"),
        ("class_names=[no, yes, on, Off]", ["no", "yes", "on", "Off"]),
        ("label_words={no: bad, yes: good}", {"no": "bad", "yes": "good"}),
        ("learning_rate=1e-3", 1e-3),
        ("learning_rate=-2.5E+2", -250.0),
        ("backbone_dropout=true", True),
        ("init_text=2026-01-02", "2026-01-02"),
        ("shots=16", 16),
        ("layers=[0, 3]", [0, 3]),
        ("learning_rate=.nan", pytest.approx(float("nan"), nan_ok=True)),
        ("shots=", None),
    ],
)
def test_yaml_is_read_as_people_type_it(text: str, value: Any) -> None:
    assert parse_setting(text)[1] == value


def test_yaml_that_is_none_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match=r"--set .*template.*: the value is not valid YAML .* goes into quotes"):
        parse_setting("template={text} It was {mask}.")
    path = tmp_path / "run.yaml"
    for text, message in (
        ("a: [1", "run.yaml: not valid YAML"),
        ("a: !!timestamp 1", "run.yaml: not valid YAML"),
        ("- a", "expected flat 'key: value' lines"),
        ("a: " + "[" * 5000, "not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(SoftPromptError, match=message):
            read_yaml(path)
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(SoftPromptError, match="cannot be read as UTF-8 text"):
        read_yaml(path)
    path.write_text("data: &a [*a]\nmethod: prompt_tuning")
    with pytest.raises(SoftPromptError, match="data: expected a text, got"):
        RunOptions.from_flat(read_yaml(path))


@pytest.mark.parametrize("method", CATALOG)
def test_every_key_has_a_type_a_default_and_a_meaning(method: str) -> None:
    assert {key.name for key in run_keys()} == RunOptions.hints().keys()
    assert all(key.type and key.meaning for key in run_keys())
    keys = method_keys(method)
    assert [key.name for key in keys][: len(CATALOG[method].parameters)] == list(CATALOG[method].parameters)
    if not method.startswith("peft:"):
        assert not [key.name for key in keys if not key.meaning or not key.type]
    assert {"learning_rate", "max_steps"} <= {key.name for key in training_keys()}
    assert len(training_keys(every=True)) > 60


@pytest.mark.parametrize("method", CATALOG)
def test_printed_settings_make_the_same_run(method: str, tmp_path: Path) -> None:
    options = RunOptions.from_flat({"method": method, "data": "x", "learning_rate": 0.1, "class_names": ["no", "yes"]})
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(options))
    again = RunOptions.from_flat(read_yaml(path))
    assert again.training == options.training and again.class_names == ["no", "yes"]
    assert {**again.method_options} == {**softprompt.methods.METHODS[method].parameters, **options.method_options}


def test_conform_lets_types_of_others_through() -> None:
    marker = object()
    assert conform("x", marker, object) is marker
    assert describe(list[str] | None) == "a list of texts" and describe(dict[str, int]) == "a mapping"


# ---------------------------------------------------------------------- on the command line


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
    text = (Path(__file__).parent.parent / "docs" / "options.md").read_text()
    line = next(line for line in text.splitlines() if "head=verbalizer" in line)
    assert call(monkeypatch, *shlex.split(line)[1:], "--print-config") == 0
    found = capsys.readouterr().out
    assert "template: '{text} It was {mask}.'" in found and "positive:" in found
