"""The command line as a user meets it: what it writes, what it prints, and one clear message with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import softprompt
from house.runs import call
from house.tiny import save_backbone, write_classification, write_completion
from softprompt.methods import METHODS


def train_words(backbone: Path, data: Path, output: Path, setting: str) -> tuple[object, ...]:
    """A short training of one epoch, as a command line."""
    named = ("--backbone", backbone, "--data", data, "--method", "prompt_tuning", "--output", output)
    return ("train", *named, "--set", "num_train_epochs=1", "--set", setting)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classification(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def adapter(backbone: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "adapter"
    options = {
        "backbone": str(backbone),
        "data": str(data),
        "output_dir": str(output),
        "method": "deep_prompts",
        "num_virtual_tokens": 3,
    }
    softprompt.train(
        softprompt.RunOptions.from_flat(
            {**options, "num_train_epochs": 1, "max_length": 24, "dtype": "float32", "disable_tqdm": True}
        )
    )
    return output


def test_train_eval_predict(
    backbone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = tmp_path / "run.yaml", tmp_path / "out"
    run.write_text(
        f"backbone: {backbone}\ndata: {data}\nmethod: ept\nrank: 2\nmax_positions: 24\nnum_virtual_tokens: 8\nlearning_rate: 1e-2\nmax_length: 24\nnum_train_epochs: 3\n"
    )
    code = call(
        monkeypatch,
        "train",
        "--config",
        run,
        "--output",
        output,
        "--shots",
        4,
        "--seed",
        7,
        "--set",
        "num_train_epochs=1",
        "--set",
        "num_virtual_tokens=3",
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    line = json.loads(printed.out.strip().splitlines()[-1])
    document = json.loads((output / "result.json").read_text())
    assert line["test accuracy"] == document["train_info"]["test accuracy"]
    settings = document["run_info"]["train_config"]
    assert (settings["num_virtual_tokens"], settings["num_train_epochs"], settings["shots"], settings["seed"]) == (
        3,
        1,
        4,
        7,
    )  # --set wins
    assert document["meta_info"]["dataset_info"]["rows"]["train"] == 12
    assert "pooling=mean" in printed.err and "head_init=probe" in printed.err  # automatic choices say why
    assert {p.name for p in output.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "result.json",
        "run.json",
        "task.json",
    }

    assert call(monkeypatch, "eval", output, "--data", data) == 0
    scored = json.loads(capsys.readouterr().out)
    assert (
        scored["accuracy"] == pytest.approx(line["test accuracy"])
        and scored["rows"] == 24
        and scored["split"] == "test"
    )
    assert call(monkeypatch, "eval", output, "--data", data / "test.jsonl") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(line["test accuracy"])

    assert (
        call(monkeypatch, "predict", output, "--input", data / "test.jsonl", "--output", tmp_path / "found.jsonl") == 0
    )
    found = [json.loads(row) for row in (tmp_path / "found.jsonl").read_text().splitlines()]
    given = [json.loads(row) for row in (data / "test.jsonl").read_text().splitlines()]
    assert [row["text"] for row in found] == [row["text"] for row in given]
    assert sum(f["predicted_label"] == g["label"] for f, g in zip(found, given, strict=True)) / 24 == pytest.approx(
        line["test accuracy"]
    )


def test_predict_reads_stdin(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "predict", adapter, stdin='{"text": "red dog", "id": 7}\n{"text": "blue cat"}\n') == 0
    json_rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert json_rows[0]["id"] == 7 and json_rows[0]["predicted_label"] in ("bird", "cat", "dog")
    assert call(monkeypatch, "predict", adapter, "--plain", stdin="red dog\nblue cat\n") == 0
    plain_rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["predicted_scores"] for row in plain_rows] == [row["predicted_scores"] for row in json_rows]


def test_completions_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, data = save_backbone(tmp_path / "b", "decoder"), write_completion(tmp_path / "d")
    words = train_words(backbone, data, tmp_path / "o", "num_virtual_tokens=3")
    assert call(monkeypatch, *words) == 0
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["test accuracy"] <= 1
    assert call(monkeypatch, "predict", tmp_path / "o", "--max-new-tokens", 2, stdin='{"prompt": "red dog"}\n') == 0
    assert isinstance(json.loads(capsys.readouterr().out)["predicted_completion"], str)


def test_methods_lists_every_method(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "methods", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert (
        list(listed)
        == list(METHODS)
        == [
            "prompt_tuning",
            "deep_prompts",
            "dept",
            "ept",
            "spt",
            "infoprompt",
            "tsloss",
            "ulpt",
            "contrast",
            "peft:prompt_tuning",
            "peft:p_tuning",
            "peft:prefix_tuning",
            "peft:lora",
            "peft:ia3",
        ]
    )
    assert listed["ept"]["parameters"]["num_spaces"] == 4 and "2405.11464" in listed["ept"]["paper"]
    assert call(monkeypatch, "methods") == 0
    assert "arXiv" in capsys.readouterr().out


def test_bad_input_is_one_message_and_exit_code_2(
    backbone: Path,
    data: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad"
    write_classification(bad)
    with (bad / "train.jsonl").open("a") as file:
        file.write('{"text": "red dog", "label": \n')
    unknown = write_classification(tmp_path / "unknown")
    with (unknown / "test.jsonl").open("a") as file:
        file.write('{"text": "red dgo", "label": "dgo"}\n')
    lonely = write_classification(tmp_path / "lonely", rows=9)
    other = save_backbone(tmp_path / "llama", "decoder")
    base = (
        "train",
        "--backbone",
        backbone,
        "--method",
        "prompt_tuning",
        "--output",
        tmp_path / "never",
        "--set",
        "max_length=24",
    )
    cases = [
        ((*base, "--data", bad), "train.jsonl, line 61: invalid JSON"),
        (
            (*base, "--data", unknown),
            "test.jsonl, line 25: unknown label 'dgo'; known labels: bird, cat, dog. Did you mean 'dog'?",
        ),
        (
            (*base, "--data", lonely, "--shots", 16),
            "class 'bird' has 3 rows, 16 shots want 16; lower shots or add rows",
        ),
        ((*base, "--data", tmp_path / "nowhere"), "nowhere"),
        (
            (*base, "--data", data, "--set", "num_virtual_tokens=64"),
            "num_virtual_tokens=64 leaves no room for text: bert has 64 positions",
        ),
        ((*base, "--data", data, "--set", "num_virtual_tokens=46"), "set max_length=16"),
        (
            (*base, "--data", data, "--set", "learning_rte=1"),
            "unknown key 'learning_rte': expected an option of the run, of method 'prompt_tuning' or of TrainingArguments. Did you mean 'learning_rate'?",
        ),
        (("train", "--method", "dpt"), "unknown method 'dpt'"),
        (
            (*base[:2], tmp_path / "no-model", *base[3:], "--data", data),
            "expected 'minilm', 'masked-lm', 'causal-lm', a folder with config.json",
        ),
        (
            ("eval", adapter, "--data", data, "--backbone", other),
            "made for another backbone: expected backbone_type=bert, got backbone_type=llama",
        ),
        (("eval", tmp_path, "--data", data), "it has no task.json"),
        (
            ("eval", adapter, "--data", data, "--split", "tset"),
            "unknown split 'tset': expected one of train, dev, test. Did you mean 'test'?",
        ),
        (("predict", adapter, "--input", tmp_path / "none.jsonl"), "no such file"),
        (("train", "--config", tmp_path / "none.yaml"), "no such file"),
    ]
    for words, message in cases:
        assert call(monkeypatch, *words) == 2, words
        printed = capsys.readouterr()
        flat = " ".join(printed.err.split())
        assert message in flat, (message, flat)
        assert "Traceback" not in printed.err and printed.out == ""
        assert printed.err.count("error: ") == 1
    assert call(monkeypatch, "predict", adapter, stdin='{"txt": "red"}\n') == 2
    assert "stdin, line 1: expected a non-empty 'text', got None; columns are ['txt']. Did you mean 'txt'?" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "never" / "result.json").exists()


def test_resume_on_the_command_line(
    backbone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = train_words(backbone, data, tmp_path / "o", "max_length=24")
    assert call(monkeypatch, *words) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert call(monkeypatch, *words) == 2
    assert "is not empty; pass --resume" in " ".join(capsys.readouterr().err.split())
    assert call(monkeypatch, *words, "--resume") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first


def test_help_of_the_installed_command_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "softprompt", "--help"], capture_output=True, text=True, check=True)
    assert all(
        name in done.stdout for name in ("train", "eval", "predict", "inspect", "methods", "bench", "compare", "demo")
    )
    for command in ([sys.executable, "-m", "softprompt"], [Path(sys.executable).with_name("softprompt")]):
        version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert version.stdout.strip() == softprompt.__version__
