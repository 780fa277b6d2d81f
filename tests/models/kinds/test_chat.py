"""Conversations: what is learned of them, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt
from house.files import write_lines
from house.runs import call, options
from house.tiny import save_backbone, save_talker, write_chat
from softprompt import SoftPromptError, load_task


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat(tmp_path_factory.mktemp("talks"))


def test_a_run_learns_to_answer(talker: Path, talks: Path, tmp_path: Path) -> None:
    result = softprompt.train(options(talker, talks, tmp_path / "out", num_train_epochs=30), progress=False)
    assert load_task(talks).kind == "chat"
    losses = [entry["eval_loss"] for entry in result.document["train_info"]["metrics"] if "eval_loss" in entry]
    assert result.metrics["dev loss"] < losses[0] / 2
    predictor = softprompt.Predictor(tmp_path / "out")
    test = load_task(talks).test
    assert predictor.evaluate(test, ["rouge1"])["accuracy"] == result.metrics["test accuracy"]
    found = predictor.predict(test.to_list(), max_new_tokens=3)  # its own answers stand at the end of these rows
    right = sum(
        row["completion"] == messages[-1]["content"] for row, messages in zip(found, test["messages"], strict=True)
    )
    assert right / len(test) == result.metrics["test accuracy"]
    asked = {"messages": [{"role": "user", "content": "red dog sits"}]}
    assert predictor.predict([asked]) == predictor.predict([{"messages": "red dog sits"}])


def test_a_rendered_prompt_gets_no_further_special_tokens(talker: Path, talks: Path, tmp_path: Path) -> None:
    softprompt.train(options(talker, talks, tmp_path / "out"), progress=False)
    predictor = softprompt.Predictor(tmp_path / "out")
    predictor.tokenizer.add_bos_token = True
    row = predictor.check({"messages": "red dog"}, "row 1")
    ids = predictor.kind.encoded(predictor, [("row 1", row)])[0]["input_ids"]
    assert predictor.tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "It", "red", "dog", "[SEP]", "was"]


def test_a_completion_reads_messages_too(talker: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "red dog", "completion": "dog"}] * 12
    for split in ("train", "validation", "test"):
        write_lines(tmp_path / "data", rows, f"{split}.jsonl")
    softprompt.train(options(talker, tmp_path / "data", tmp_path / "out"), progress=False)
    predictor = softprompt.Predictor(tmp_path / "out")
    seen = predictor.check({"messages": [{"role": "user", "content": "cat"}]}, "row 1")
    assert seen["prompt"] == "[CLS] It cat [SEP] was"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("red", "line 2, column 'messages': expected a list of at least one message, got str 'red'."),
        ([], "line 2, column 'messages': expected a list of at least one message, got none."),
        (["red"], "message 1: expected an object with role and content, got 'red'."),
        ([{"role": "robot", "content": "a"}], "message 1: expected one of the roles system, user, assistant, got 'robot'."),
        ([{"role": "user", "content": " "}], "message 1: expected a text as content, got ' '."),
        ([{"role": "user", "content": "a"}], "expected the assistant's message at the end, which is learned, got one of 'user'."),
        ([{"role": "assistant", "content": "a"}], "expected a message to answer before the assistant's, got none."),
        ([{"role": "user", "content": "a", "tool_calls": [1]}], "message 1: 'tool_calls' is not supported; expected role and content alone."),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused(messages: Any, message: str, tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(SoftPromptError) as error:
        load_task(write_lines(tmp_path, [good, {"messages": messages}, *[good] * 20]))
    assert message in str(error.value)


def test_what_compares_classes_of_whole_texts_is_refused(talker: Path, talks: Path, tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="rows of a chat task do not have one class each"):
        softprompt.train(options(talker, talks, tmp_path / "out", method="contrast"), progress=False)


def test_a_backbone_that_does_not_chat_is_refused(encoder: Path, talks: Path, tmp_path: Path) -> None:
    plain = save_backbone(tmp_path / "plain", "decoder")
    for backbone, message in (
        (plain, "the tokenizer of this backbone has no chat template"),
        (save_backbone(tmp_path / "t5", "encoder_decoder"), "rows of messages are learned by causal language models"),
    ):
        with pytest.raises(SoftPromptError) as error:
            softprompt.train(options(backbone, talks, tmp_path / "out"), progress=False)
        assert message in str(error.value)


def test_completions_are_drawn_and_stopped(talker: Path, talks: Path, tmp_path: Path) -> None:
    softprompt.train(options(talker, talks, tmp_path / "out"), progress=False)
    predictor = softprompt.Predictor(tmp_path / "out")
    rows = [{"messages": text} for text in ("red dog", "cat runs now", "bird")]
    greedy = predictor.predict(rows, max_new_tokens=8)
    drawn = [predictor.predict(rows, 8, temperature=1.5, completions=3, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(row["completions"]) for row in drawn[0]] == [3, 3, 3]
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    predictor.predict(rows, 8, temperature=1.5, seed=1)
    assert torch.rand(1) == before  # a seed of its own leaves nothing behind
    assert predictor.predict(rows, 8, temperature=1.5, top_p=1e-6, seed=5) == greedy
    at = max(range(3), key=lambda i: len(drawn[0][i]["completions"][0].split()))
    words = drawn[0][at]["completions"][0].split()
    assert len(words) > 1
    stopped = predictor.predict(rows, 8, temperature=1.5, completions=3, seed=1, stop=[words[1]])
    assert stopped[at]["completions"][0].split() == words[: words.index(words[1])]
    for bad, message in (
        ({"completions": 2}, "completions=2: without a temperature all of them are the same"),
        ({"temperature": -1}, "temperature: expected a number from 0, got -1."),
        ({"top_p": 0}, "top_p: expected a number above 0 and at most 1, got 0."),
        ({"stop": [""]}, "stop: expected texts that are not empty, got ['']."),
        ({"temprature": 1}, "unknown setting 'temprature' of a prediction: expected completions"),
    ):
        with pytest.raises(SoftPromptError) as error:
            predictor.predict(rows, 8, **bad)
        assert message in str(error.value)


def test_settings_of_completions_are_none_of_classes(encoder: Path, animals: Path, tmp_path: Path) -> None:
    softprompt.train(options(encoder, animals, tmp_path / "out", num_train_epochs=1), progress=False)
    predictor = softprompt.Predictor(tmp_path / "out")
    with pytest.raises(SoftPromptError) as error:
        predictor.predict([{"text": "red"}], temperature=1.0)
    assert "temperature: settings of completions, but this adapter is for classification" in str(error.value)
    with pytest.raises(SoftPromptError) as error:
        predictor.evaluate(load_task(animals).test, ["rouge1"])
    assert "score 'rouge1': only completions take further scores" in str(error.value)


def test_the_card_shows_how_to_ask(talker: Path, talks: Path, tmp_path: Path) -> None:
    softprompt.train(options(talker, talks, tmp_path / "out"), progress=False)
    assert '{"messages": [{"role": "user", "content": "..."}]}' in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "task.json").read_text())["kind"] == "chat"


def test_a_column_that_predict_would_write_is_refused(
    talker: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    softprompt.train(options(talker, talks, tmp_path / "out"), progress=False)
    capsys.readouterr()
    row = json.dumps({"messages": "red dog", "predicted_completions": "mine"}) + "\n"
    drawn = ("--completions", 2, "--temperature", 1, "--max-new-tokens", 2)
    assert call(monkeypatch, "predict", tmp_path / "out", *drawn, stdin=row) == 2
    assert "the column 'predicted_completions' has the name of what predict writes" in capsys.readouterr().err
    assert call(monkeypatch, "predict", tmp_path / "out", *drawn, "--columns", "none", stdin=row) == 0
    assert len(json.loads(capsys.readouterr().out)["predicted_completions"]) == 2
