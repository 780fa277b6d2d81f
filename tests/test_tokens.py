"""Tagged words: rows of tokens and tags, their labels, the entities and scores, and runs that learn them."""

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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import softprompt
from softprompt import SoftPromptError, load_rows, load_task
from softprompt.cli import main
from softprompt.data import collator, encode_tokens
from softprompt.models.tags import entities, mark_entities, tag_scores
from tiny import save_backbone, tokenizer, write_tokens

NAMES = ["B-PET", "B-SKY", "I-PET", "O"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("pets"))


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


# Entities and scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", []),
        ("O O", []),
        ("B-A", [("A", 0, 1)]),
        ("O B-A I-A O B-B", [("A", 1, 3), ("B", 4, 5)]),
        ("B-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),  # a B- always begins
        ("I-A I-A O I-A", [("A", 0, 2), ("A", 3, 4)]),  # an I- after O begins
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),  # and so does one of another type
        ("B-A-1 I-A-1", [("A-1", 0, 2)]),
    ],
)
def test_entities_are_those_of_conlleval(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


def test_bio_tags_are_told_from_others() -> None:
    assert mark_entities(NAMES) and mark_entities(["B-X", "I-X"])
    assert not mark_entities(["NOUN", "VERB"]) and not mark_entities(["O", "B-X", "S-X"]) and not mark_entities(["O"])


def test_scores_are_counted_over_all_rows() -> None:
    names = ["O", "B-A", "I-A", "B-B"]
    true = [[1, 2, 0, 3], [1, 0], [0]]  # three entities in seven words
    found = [[1, 2, 0, 1], [1, 2], [1]]  # four, of which one is right: a wrong type, a wrong end, none there
    assert tag_scores(names, true, found) == {"accuracy": 4 / 7, "f1": pytest.approx(2 * 1 / (3 + 4))}
    assert tag_scores(names, true, true) == {"accuracy": 1.0, "f1": 1.0}
    assert tag_scores(names, [[0]], [[0]]) == {"accuracy": 1.0, "f1": 0.0}  # nothing to find
    assert tag_scores(["NOUN", "VERB"], [[0, 1]], [[0, 0]]) == {"accuracy": 0.5}


# Rows ----------------------------------------------------------------------------------------------------------------


def write(folder: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


GOOD = [{"tokens": ["EU", f"row{i}"], "tags": ["B-ORG", "O"]} for i in range(20)]


def test_a_task_of_tagged_words(pets: Path, announced: Callable[[], list[str]]) -> None:
    task = load_task(pets)
    assert (task.kind, task.label_names, task.train.column_names) == ("tokens", NAMES, ["tokens", "tags"])
    first = json.loads((pets / "train.jsonl").read_text().splitlines()[0])
    assert task.train[0] == {"tokens": first["tokens"], "tags": [NAMES.index(tag) for tag in first["tags"]]}
    assert task.origin["columns"] == {"tokens": "tokens", "tags": "tags"} and json.dumps(task.origin)
    # without a test file validation is the test, and dev comes from train
    assert task.origin["rows"] == {"train": 60, "dev": 18, "test": 24}
    assert announced() == [
        "classes = B-PET, B-SKY, I-PET, O: the 4 different labels of train, sorted; no class_names (Python: label_names) were given"
    ]
    assert load_rows(pets / "test.jsonl", label_names=NAMES).to_list() == task.test.to_list()
    with pytest.raises(SoftPromptError, match="has labels, but the class names are not known"):
        load_rows(pets / "test.jsonl")


def test_every_format_that_holds_lists(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(GOOD)
    rows.to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    write(tmp_path, GOOD, "a.jsonl")
    loaded = [load_task(tmp_path / f"a.{suffix}").train.to_list() for suffix in ("jsonl", "json", "parquet")]
    assert loaded[0] == loaded[1] == loaded[2]
    (tmp_path / "a.csv").write_text("tokens,tags\nEU rejects,B-ORG O\n")
    message = r"a.csv, line 2, column 'tokens': expected a list of words, got str 'EU rejects'; lists stand in .jsonl, .json and .parquet files, .csv and .tsv cannot hold them"
    with pytest.raises(SoftPromptError, match=message):
        load_task(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 21: expected a tag for each word, got 2 words in column 'tokens' and 1 tags in column 'tags'."),
        ({"tokens": [], "tags": []}, "line 21, column 'tokens': there are no words; add some or remove the row."),
        ({"tokens": [" "], "tags": ["O"]}, "line 21, column 'tokens': there are no words;"),
        ({"tokens": ["a", 7], "tags": ["O", "O"]}, "line 21, column 'tokens': expected words, got int 7 as word 2."),
        ({"tokens": ["a"], "tags": "O"}, "line 21, column 'tags': expected a list of tags, got str 'O'; lists stand in"),
        ({"tokens": ["a"], "tags": [["O"]]}, "line 21: expected a class name or number in column 'tags', got list ['O']."),
        ({"tokens": ["a"], "tags": [None]}, "line 21: the label in column 'tags' is missing."),
        ({"tokens": ["a"], "tags": [0.5]}, "line 21: the label 0.5 in column 'tags' is a float"),
        ({"tokens": ["a"]}, "line 21: no column 'tags'; columns there: tokens."),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_their_line(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(SoftPromptError) as error:
        load_task(write(tmp_path, [*GOOD, row]))
    assert f"train.jsonl, {expected}" in str(error.value)


def test_unknown_tags_and_other_columns(tmp_path: Path, announced: Callable[[], list[str]]) -> None:
    write(tmp_path, GOOD)
    write(tmp_path, GOOD[:4], "dev.jsonl")
    write(tmp_path, [*GOOD[:2], {"tokens": ["EU", "a"], "tags": ["B-ORGG", "O"]}], "test.jsonl")
    with pytest.raises(SoftPromptError) as error:
        load_task(tmp_path)
    assert "test.jsonl, line 3: unknown label 'B-ORGG'; known labels: B-ORG, O. Did you mean 'B-ORG'?" in str(
        error.value
    )
    task = load_task(tmp_path, label_names=["O", "B-ORG", "B-ORGG"])
    assert task.test[2]["tags"] == [2, 0] and task.origin["overlap"] == {"train/dev": 4, "train/test": 2, "dev/test": 2}
    assert "class 'B-ORGG' cannot be learned: train (train.jsonl) has no row of it" in announced()
    renamed = [{"words": row["tokens"], "ner_tags": [1, 0], "id": "7"} for row in GOOD]
    path = write(tmp_path / "other", renamed)
    named = {"tokens_column": "words", "tags_column": "ner_tags"}
    assert load_task(path, **named, label_names=["O", "B-ORG"]).train[0]["tags"] == [1, 0]
    assert load_task(path, **named).label_names == ["0", "1"]
    (path.parent / "info.json").write_text('{"labels": {"ner_tags": ["O", "B-ORG"]}}')
    task = load_task(path.parent, **named)
    assert (task.name, task.label_names) == ("other-ner_tags", ["O", "B-ORG"])
    with pytest.raises(SoftPromptError, match=r"to tag words; columns there: id, ner_tags, words.*'ner_tags'\?"):
        load_task(path, tokens_column="words")
    both = write(tmp_path / "both", [{**GOOD[0], "text": "a", "label": "b"}])
    with pytest.raises(SoftPromptError, match=r"found text and label \(text, label\) as well as tokens and tags"):
        load_task(both)


def test_shots_are_rows(pets: Path) -> None:
    task = load_task(pets, shots=5, seed=3)
    assert (len(task.train), len(task.dev), len(task.test)) == (5, 5, 24)
    assert set(map(str, task.train.to_list())).isdisjoint(map(str, task.dev.to_list()))
    with pytest.raises(SoftPromptError, match="class 'tokens' has 60 rows, 61 shots want 61"):
        load_task(pets, shots=61)


def test_a_hub_dataset_names_its_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-ORG"]))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags})
    columns = {"tokens": [row["tokens"] for row in GOOD], "ner_tags": [[1, 0]] * len(GOOD)}
    hub = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: hub)
    task = load_task("owner/news", tags_column="ner_tags")
    assert (task.kind, task.label_names, task.train[0]["tags"]) == ("tokens", ["O", "B-ORG"], [1, 0])


# Labels of tokens ----------------------------------------------------------------------------------------------------


def table(tokens: list[list[str]], tags: list[list[int]]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"tokens": tokens, "tags": tags})


def test_the_first_token_of_a_word_carries_its_tag(announced: Callable[[], list[str]]) -> None:
    rows = table([["red", "dog.", "runs"], ["cat"], ["red", "", "sun", "now"]], [[0, 1, 2], [3], [0, 1, 2, 3]])
    encoded = encode_tokens(tokenizer(), rows, max_length=5)
    assert set(encoded.column_names) == {"input_ids", "attention_mask", "labels"}
    assert tokenizer().convert_ids_to_tokens(encoded["input_ids"][0]) == ["[CLS]", "red", "dog", ".", "[SEP]"]
    assert encoded["labels"][:] == [[-100, 0, 1, -100, -100], [-100, 3, -100], [-100, 0, 2, 3, -100]]
    assert announced() == [
        "cut 1 of 3 rows: they are longer than max_length=5 tokens",
        "2 of 8 words have no token, so they are neither learned nor scored: they are cut off, or nothing that the tokenizer knows is in them",
    ]
    with pytest.raises(SoftPromptError, match="expected a dataset with columns tokens, tags, got tokens"):
        encode_tokens(tokenizer(), rows.remove_columns("tags"), 5)
    with pytest.raises(SoftPromptError, match="expected a whole number above 2"):
        encode_tokens(tokenizer(), rows, 2)


@pytest.mark.parametrize("trim", [True, False])
def test_pieces_that_carry_the_space(trim: bool) -> None:
    """RoBERTa, GPT-2, Llama and Qwen: words are read as in running text, and found again."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(["the film was great, it was bad"] * 50, trainer)
    raw.decoder = decoders.ByteLevel()
    if trim:
        raw.post_processor = processors.ByteLevel(trim_offsets=True)
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=raw)
    encoded = encode_tokens(fast, table([["it", "was", "gré😀", "New York"]], [[0, 1, 2, 3]]), 64)
    ids, labels = encoded["input_ids"][0], encoded["labels"][0]
    assert ids == fast("it was gré😀 New York")["input_ids"]
    starts = [i for i, label in enumerate(labels) if label != -100]
    assert [labels[i] for i in starts] == [0, 1, 2, 3]
    assert [fast.decode(ids[i:j]).strip() for i, j in zip(starts, [*starts[1:], None], strict=True)] == [
        "it",
        "was",
        "gré😀",
        "New York",
    ]


def test_slow_tokenizers_are_refused() -> None:
    class Slow(tf.PreTrainedTokenizerFast):
        is_fast = property(lambda self: False)

    slow = Slow(tokenizer_object=tokenizer().backend_tokenizer)
    with pytest.raises(SoftPromptError, match="Slow is a slow tokenizer; words are found by its offsets"):
        encode_tokens(slow, table([["a"]], [[0]]), 8)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_collator_pads_labels_on_the_side_of_the_tokens(side: str) -> None:
    words = tokenizer()
    words.padding_side = side
    encoded = encode_tokens(words, table([["red", "dog"], ["cat"]], [[1, 2], [3]]), 24)
    batch = collator(words, "tokens")(encoded.to_list())
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 8)
    assert (batch["labels"] != -100).sum() == 3
    vocabulary = words.get_vocab()
    for word, tag in (("red", 1), ("dog", 2), ("cat", 3)):
        assert batch["input_ids"][batch["labels"] == tag].tolist() == [vocabulary[word]]


# Runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_learns_tags(encoder: Path, pets: Path, tmp_path: Path, announced: Callable[[], list[str]]) -> None:
    result = softprompt.train(options(encoder, pets, tmp_path / "out", num_train_epochs=8))
    assert "head=stock: every word has a tag, so there is nothing to pool" in announced()
    assert list(result.metrics) == [
        f"{split} {score}" for split in ("dev", "test") for score in ("accuracy", "f1", "loss")
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
        predictor.evaluate(table([["a"]], [[4]]))


def test_tags_without_entities_are_scored_by_accuracy(
    encoder: Path, tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    kinds = {"dog": "NOUN", "cat": "NOUN", "runs": "VERB", "sits": "VERB"}
    rows = [
        {"tokens": [noun, verb], "tags": [kinds[noun], kinds[verb]]}
        for noun in ("dog", "cat")
        for verb in ("runs", "sits")
    ]
    write(tmp_path / "data", rows * 6)
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
        write(data, [{"words": row["tokens"], "ner": row["tags"]} for row in rows], f"{split}.jsonl")

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
