"""Runs on tagged words: they learn, predict, and are refused where they cannot."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers as tf
from peft import get_peft_model
from safetensors.torch import load_file

import softprompt
from house.batches import tagged
from house.files import write_lines
from house.tiny import save_backbone, tokenizer
from softprompt import SoftPromptError, load_task
from softprompt.cli import main
from softprompt.models.tags import entities

NAMES = ["B-PET", "B-SKY", "I-PET", "O"]


def options(backbone: Path, data: Path, output: Path, **more: Any) -> softprompt.RunOptions:
    flat = {"backbone": str(backbone), "data": str(data), "output_dir": str(output), "method": "prompt_tuning"}
    small = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "max_length": 24,
        "dtype": "float32",
    }
    rates = {"head_learning_rate": 0.05, "disable_tqdm": True}
    prompt = {"num_virtual_tokens": 4} if more.get("method") != "peft:lora" else {}
    return softprompt.RunOptions.from_flat({**flat, **small, **rates, **prompt, **more})


def test_what_compares_classes_of_whole_texts_is_refused(encoder: Path, pets: Path, tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="rows of a tokens task do not have one class each"):
        softprompt.train(options(encoder, pets, tmp_path / "out", method="contrast"), progress=False)


def test_a_run_learns_tags(encoder: Path, pets: Path, tmp_path: Path, announced: Callable[[], list[str]]) -> None:
    result = softprompt.train(options(encoder, pets, tmp_path / "out", num_train_epochs=8))
    assert "head=stock: every word has a tag, so there is nothing to pool" in announced()
    assert list(result.metrics) == [
        f"{split} {score}" for split in ("dev", "test") for score in ("f1", "accuracy", "loss")
    ]
    assert result.metrics["test f1"] > 0.5 and result.metrics["test accuracy"] > 0.7
    assert result.model.peft_config["default"].task_type == "TOKEN_CLS"
    f1 = [entry["eval_f1"] for entry in result.document["train_info"]["metrics"] if "eval_f1" in entry]
    assert result.metrics["dev f1"] == max(f1)  # the best checkpoint is the one with the best F1
    saved = set(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    head = {f"base_model.model.classifier.{kind}" for kind in ("weight", "bias")}
    assert saved == head | {"base_model.model.softprompt.softprompt_prompts.embedding"}
    assert "token-classification" in (tmp_path / "out" / "README.md").read_text()

    predictor = softprompt.Predictor(tmp_path / "out", batch_size=7)
    test = load_task(pets).test
    scored = predictor.evaluate(test)
    assert scored == {key: pytest.approx(result.metrics[f"test {key}"]) for key in ("accuracy", "f1")} | {"rows": 24}
    found = predictor.predict(test.to_list())
    assert [len(row["tags"]) for row in found] == [len(tokens) for tokens in test["tokens"]]
    right = [
        tag == NAMES[true]
        for row, tags in zip(found, test["tags"], strict=True)
        for tag, true in zip(row["tags"], tags, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(result.metrics["test accuracy"])
    for row, words in zip(found, test["tokens"], strict=True):
        spans = [(e["type"], e["start"], e["end"]) for e in row["entities"]]
        assert spans == entities(row["tags"])
        assert [e["text"] for e in row["entities"]] == [" ".join(words[start:end]) for _, start, end in spans]


def test_predictor_takes_words_or_text_and_says_what_it_cuts(
    encoder: Path, pets: Path, tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    softprompt.train(options(encoder, pets, tmp_path / "out", max_length=6))
    predictor = softprompt.Predictor(tmp_path / "out")
    words = ["red", "dog", "runs", "now", "red", "cat"]
    both = predictor.predict([{"tokens": words}, {"text": " ".join(words)}, {"tokens": ["cat"], "text": "ignored"}])
    assert both[0] == both[1] and len(both[2]["tags"]) == 1 and both[0]["tags"][4:] == ["O", "O"]
    assert announced()[-1] == "4 words get the tag O: the model does not see them; raise max_length in training"
    alone = predictor.predict([{"tokens": words}])[0]
    assert alone == both[0] and predictor.predict([]) == []
    for row, message in (
        ({"txt": "a"}, r"row 1: expected 'tokens' \(a list of words\) or 'text'; columns are \['txt'\]"),
        ({"tokens": "a b"}, "row 1: expected a list of words, got str 'a b'"),
        ({"text": " "}, "row 1: there are no words"),
    ):
        with pytest.raises(SoftPromptError, match=message):
            predictor.predict([row])
    with pytest.raises(SoftPromptError, match=r"needs the columns \['tags', 'tokens'\]; missing: \['tags', 'tokens'\]"):
        predictor.evaluate(datasets.Dataset.from_dict({"text": ["a"], "label": [0]}))
    with pytest.raises(SoftPromptError, match="label 4 is not among the adapter's 4 classes"):
        predictor.evaluate(tagged([["a"]], [[4]]))


def test_tags_without_entities_are_scored_by_accuracy(
    encoder: Path, tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    kinds = {"dog": "NOUN", "cat": "NOUN", "runs": "VERB", "sits": "VERB"}
    rows = [
        {"tokens": [noun, verb], "tags": [kinds[noun], kinds[verb]]}
        for noun in ("dog", "cat")
        for verb in ("runs", "sits")
    ]
    write_lines(tmp_path / "data", rows * 6)
    result = softprompt.train(options(encoder, tmp_path / "data", tmp_path / "out"))
    assert set(result.metrics) == {f"{split} {score}" for split in ("dev", "test") for score in ("accuracy", "loss")}
    assert "score=accuracy: the tags are no BIO tags, so there are no entities to count" in announced()
    predictor = softprompt.Predictor(tmp_path / "out")
    assert set(predictor.predict(rows)[0]) == {"tags"} and set(
        predictor.evaluate(load_task(tmp_path / "data").test)
    ) == {"accuracy", "rows"}


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_other_backbones(kind: str, pets: Path, tmp_path: Path) -> None:
    backbone = save_backbone(tmp_path / "backbone", kind)
    grouped = {"train_sampling_strategy": "group_by_length", "head": "stock"}
    result = softprompt.train(options(backbone, pets, tmp_path / "out", **grouped))
    predictor = softprompt.Predictor(tmp_path / "out")
    right = predictor.evaluate(load_task(pets).test)
    assert right["f1"] == pytest.approx(result.metrics["test f1"])
    predictor.tokenizer.padding_side = "left"
    assert predictor.evaluate(load_task(pets).test) == pytest.approx(right)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("ept", {"rank": 2, "max_positions": 24}),
        ("spt", {"budget": 1, "bottleneck": 4}),
        ("peft:prefix_tuning", {}),
        ("peft:lora", {"r": 2}),
    ],
)
def test_other_methods(method: str, more: dict[str, Any], encoder: Path, pets: Path, tmp_path: Path) -> None:
    result = softprompt.train(options(encoder, pets, tmp_path / "out", method=method, **more))
    scored = softprompt.Predictor(tmp_path / "out").evaluate(load_task(pets).test)
    assert scored["accuracy"] == pytest.approx(result.metrics["test accuracy"])


def test_modules_of_the_head_that_the_checkpoint_lacks_are_saved(pets: Path, tmp_path: Path) -> None:
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    config = tf.ModernBertConfig(**sizes, vocab_size=40, pad_token_id=0, cls_token_id=2, sep_token_id=3)
    tf.ModernBertModel(config).save_pretrained(tmp_path / "backbone")  # no prediction head
    tokenizer().save_pretrained(tmp_path / "backbone")
    result = softprompt.train(options(tmp_path / "backbone", pets, tmp_path / "out"))
    saved = set(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert {f"base_model.model.{name}.weight" for name in ("classifier", "head.dense", "head.norm")} <= saved
    scored = softprompt.Predictor(tmp_path / "out").evaluate(load_task(pets).test)
    assert scored["accuracy"] == pytest.approx(result.metrics["test accuracy"])


def test_accumulated_gradients_are_those_of_the_whole_batch(encoder: Path, pets: Path, tmp_path: Path) -> None:
    """Transformers would add the losses of a stock head up: its forward takes keywords, but not the number of labels."""
    shared = {
        "max_steps": 2,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    norms = []
    for size, parts in ((12, 1), (6, 2)):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        fixed = {"load_best_model_at_end": False, "train_sampling_strategy": "sequential"}
        result = softprompt.train(options(encoder, pets, tmp_path / str(parts), **shared, **split, **fixed))
        norms.append([row["grad_norm"] for row in result.document["train_info"]["metrics"] if "grad_norm" in row])
    assert norms[1] == pytest.approx(norms[0], rel=0.1)  # means over batches of unlike numbers of words


def test_what_cannot_tag_words_is_refused(encoder: Path, pets: Path, tmp_path: Path) -> None:
    verbalizer = {"head": "verbalizer", "template": "{text} {mask}", "label_words": {"O": "red"}}
    with pytest.raises(
        SoftPromptError, match="head='verbalizer' classifies whole texts; for tagged words use head='stock'"
    ):
        softprompt.train(options(encoder, pets, tmp_path / "out", **verbalizer))
    for method in ("peft:prompt_tuning", "peft:p_tuning"):
        with pytest.raises(
            SoftPromptError, match=f"method '{method}' cannot tag words: PEFT leaves the virtual tokens"
        ):
            softprompt.train(options(encoder, pets, tmp_path / "out", method=method))
    sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4)
    tf.BartModel(tf.BartConfig(**sizes, vocab_size=40)).save_pretrained(tmp_path / "bart")
    tokenizer().save_pretrained(tmp_path / "bart")
    with pytest.raises(SoftPromptError, match="cannot be loaded as AutoModelForTokenClassification: Unrecognized"):
        softprompt.train(options(tmp_path / "bart", pets, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_load_without_a_task_card(encoder: Path, tmp_path: Path) -> None:
    base = tf.AutoModelForTokenClassification.from_pretrained(encoder)
    model = get_peft_model(base, softprompt.prompt_tuning(3, task_type="TOKEN_CLS")).eval()
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(softprompt.load(tmp_path, str(encoder))(input_ids=ids).logits, model(input_ids=ids).logits)


def test_the_command_line(
    encoder: Path, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (pets / f"{split}.jsonl").read_text().splitlines()]
        write_lines(data, [{"words": row["tokens"], "ner": row["tags"]} for row in rows], f"{split}.jsonl")

    def call(*words: object, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["softprompt", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().err
        return capsys.readouterr().out

    columns = ("--set", "tokens_column=words", "--set", "tags_column=ner", "--set", "max_length=24")
    named = ("--backbone", encoder, "--data", data, "--method", "prompt_tuning", "--output", tmp_path / "out")
    printed = call("train", *named, *columns, "--set", "num_train_epochs=1", "--set", "num_virtual_tokens=3")
    trained = json.loads(printed.splitlines()[-1])
    for source in (data, data / "test.jsonl"):
        scored = json.loads(call("eval", tmp_path / "out", "--data", source))
        assert scored["f1"] == pytest.approx(trained["test f1"]) and scored["rows"] == 24
    lines = call("predict", tmp_path / "out", "--input", data / "test.jsonl").splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 24 and all(len(row["predicted_tags"]) == len(row["words"]) for row in found)
    assert all(set(row["ner"]) <= set(NAMES) and "predicted_entities" in row for row in found)
    rows = call("predict", tmp_path / "out", stdin='{"text": "red dog"}\n{"words": ["red", "dog"]}\n').splitlines()
    plain = call("predict", tmp_path / "out", "--plain", stdin="red dog\n")
    one, two, three = (json.loads(row)["predicted_tags"] for row in (*rows, plain))
    assert one == two == three and len(one) == 2
