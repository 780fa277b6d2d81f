"""YAML as people type it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import softprompt
from softprompt import RunOptions, SoftPromptError
from softprompt.training import parse_setting, read_yaml


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


def test_a_key_stands_once_in_a_mapping(tmp_path: Path) -> None:
    with pytest.raises(
        SoftPromptError, match=r"the value is ambiguous: the key 'good' stands twice in line 1; keep one"
    ):
        parse_setting("label_words={good: a, bad: c, good: b}")
    path = tmp_path / "run.yaml"
    path.write_text("shots: 4\nseed: 1\n'shots': 8\n")
    with pytest.raises(
        SoftPromptError, match=r"run\.yaml: ambiguous: the key 'shots' stands in line 1 and again in line 3;"
    ):
        read_yaml(path)
    path.write_text("a: {x: 1}\nb: &b {x: 1, y: 2}\nc: &c {<<: *b, x: 3}\nd: {<<: *c, x: 4}\ne: *c\n")
    merged = {"x": 3, "y": 2}
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": merged, "d": {"x": 4, "y": 2}, "e": merged}


# ---------------------------------------------------------------- options


def test_yaml_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-3\nshots: 16\nlabel_words: {pos: good}\n")
    assert read_yaml(file) == {"learning_rate": 0.001, "shots": 16, "label_words": {"pos": "good"}}
    assert parse_setting("learning_rate=3e-2") == ("learning_rate", 0.03)
    assert parse_setting("label_words={a: b}") == ("label_words", {"a": "b"})
    with pytest.raises(softprompt.SoftPromptError, match="--set 'shots': expected key=value"):
        parse_setting("shots")
    file.write_text("- a\n")
    with pytest.raises(softprompt.SoftPromptError, match="expected flat 'key: value' lines, got list"):
        read_yaml(file)
    file.write_text("a: [\n")
    with pytest.raises(softprompt.SoftPromptError, match="not valid YAML"):
        read_yaml(file)
