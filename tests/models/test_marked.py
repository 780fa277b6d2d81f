"""A token that marks in texts where the prompt stands: one token, in every row, in training and in prediction."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import softprompt
from house.runs import call, options
from softprompt import SoftPromptError
from softprompt.models import load_tokenizer
from softprompt.models.marked import know_marker
from softprompt.training.keys.options import parse_setting

TEMPLATE = "? {text} It was {mask} ."
HEAD = {"head": "verbalizer", "label_words": {"dog": "warm", "cat": "cold", "bird": "good"}}


def test_a_reserved_word_becomes_one_token():
    tokenizer = load_tokenizer("minilm")
    before = tokenizer("you are [unused1] kind", add_special_tokens=False)["input_ids"]
    marker = know_marker(tokenizer, "[unused1]")
    after = tokenizer("you are [unused1] kind", add_special_tokens=False)["input_ids"]
    assert marker not in before and after.count(marker) == 1 and len(after) == 4
    assert len(tokenizer) == 30522, "no token is new"
    with pytest.raises(
        SoftPromptError,
        match=r"marker='<\|softprompt\|>': expected a token that the tokenizer has, such as '\[unused0\]'",
    ):
        know_marker(tokenizer, "<|softprompt|>")


def test_a_run_trains_at_the_marker_and_its_adapter_predicts_there(encoder: Path, animals: Path, tmp_path: Path):
    told = options(encoder, animals, tmp_path / "run", marker="?", template=TEMPLATE, **HEAD)
    softprompt.train(told, progress=False)
    saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    predictor = softprompt.Predictor(tmp_path / "run")
    assert saved["marker_token_id"] == predictor.tokenizer.get_vocab()["?"]
    assert "?" in predictor.tokenizer.extra_special_tokens
    rows = [{"text": "red dog runs"}, {"text": "blue cat sits here now"}]
    made = predictor.predict(rows)
    softprompt.prompts_of(predictor.model).active_prompt().marker = None
    assert predictor.predict(rows)[0]["scores"] != made[0]["scores"], "in front of the text it says something else"


def test_rows_without_it_are_refused_before_training(encoder: Path, animals: Path, tmp_path: Path, monkeypatch, capsys):
    words = [
        "--backbone",
        encoder,
        "--data",
        animals,
        "--output",
        tmp_path / "run",
        "--set",
        "max_length=24",
        "--set",
        "marker=[UNK]",
        "--set",
        "num_virtual_tokens=3",
    ]
    assert call(monkeypatch, "train", "--method", "prompt_tuning", *words) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(r"marker='\[UNK\]': \d+ of 60 rows of train do not have it \(the first is row \d+\)", told)


def test_tokens_that_mean_something_in_yaml_are_taken_as_they_stand():
    for text, want in (("[unused1]", "[unused1]"), ("?", "?"), ("'[X]'", "[X]"), ('"?"', "?"), ("", None)):
        assert parse_setting(f"marker={text}") == ("marker", want)


def test_what_a_run_cannot_mark_is_refused(encoder: Path, animals: Path, tmp_path: Path):
    with pytest.raises(SoftPromptError, match="is PEFT's and places no prompt inside a text"):
        options(encoder, animals, tmp_path, marker="?", method="peft:prompt_tuning")
    with pytest.raises(SoftPromptError, match="a run names the token itself, such as marker="):
        options(encoder, animals, tmp_path, marker_token_id=3)
    with pytest.raises(SoftPromptError, match=r"\(in a run: marker\) out for a compiled prompt, a search of layers"):
        softprompt.train(
            options(encoder, animals, tmp_path / "out", marker="?", template=TEMPLATE, method="spt", budget=1, **HEAD)
        )
    assert not list(tmp_path.iterdir())
