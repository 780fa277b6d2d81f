"""task.json: checked field by field, sealed with the hashes of what training wrote, and portable with its backbone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt
from house.refusals import BYTES
from house.tiny import save_backbone, write_classification
from softprompt import SoftPromptError
from softprompt.models import TaskCard
from softprompt.serving import Predictor

ROW = [{"text": "red dog runs"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, data, and a run that was trained from inside it with relative names."""
    folder = tmp_path_factory.mktemp("cards")
    save_backbone(folder / "bb" / "bert")
    write_classification(folder / "data", rows=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flat = {"backbone": "bb/bert", "data": "data", "output_dir": "run", "method": "prompt_tuning"}
        short = {"num_virtual_tokens": 3, "max_steps": 1, "max_length": 24, "dtype": "float32", "disable_tqdm": True}
        softprompt.train(softprompt.RunOptions.from_flat({**flat, **short}), progress=False)
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))


def edit(folder: Path, name: str = "task.json", **changes: Any) -> None:
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**found, **changes}))


def refused(folder: Path, *words: str) -> None:
    """Every door that reads the card refuses with one message that holds all of ``words``."""
    for door in (softprompt.load, Predictor, softprompt.look):
        with pytest.raises(SoftPromptError) as caught:
            door(folder)
        assert all(word in str(caught.value) for word in words), str(caught.value)


# ---------------------------------------------------------------------- fields


FIELDS = [
    ("kind", None, "kind: expected a text, got null"),
    ("kind", "classificaton", "unknown kind 'classificaton': expected one of classification, multilabel, regression, completion, chat, tokens. Did you mean 'classification'?"),
    ("head", "lm", "unknown head of a card for classification 'lm': expected one of pooled, stock, verbalizer"),
    ("pooling", "men", "unknown pooling 'men'"),
    ("pairs", 3, "pairs: expected a text or null, got 3"),
    ("pairs", "both", "unknown pairs 'both'"),
    ("backbone", "", "backbone: expected a name or folder, got an empty string"),
    ("backbone", ["a"], 'backbone: expected a text, got ["a"]'),
    ("label_names", None, "label_names: expected a list of texts, got null"),
    ("label_names", [1, 2, 3], "label_names: expected a list of texts, got [1, 2, 3]"),
    ("label_names", [], "label_names: expected the names of the classes, got []"),
    ("label_names", ["a", "a", "b"], 'label_names: expected the names of the classes, got ["a", "a", "b"]'),
    ("max_length", 12.5, "max_length: expected a whole number, got 12.5"),
    ("max_length", True, "max_length: expected a whole number, got true"),
    ("max_length", 0, "max_length: expected a whole number of at least 1, got 0"),
    ("max_length", 10**20, "max_length: expected a whole number of at least 1, got 1000"),
    ("dtype", None, "dtype: expected a text, got null"),
    ("dtype", "float8_e4m3fn", "dtype: expected the name of a floating-point dtype of torch"),
    ("dtype", "int8", "dtype: expected the name of a floating-point dtype of torch, such as 'float32', got 'int8'"),
    ("dtype", "nn", "dtype: expected the name of a floating-point dtype of torch, such as 'float32', got 'nn'"),
    ("columns", [1], "columns: expected a mapping of texts or null, got [1]"),
    ("columns", {"text_colum": "a"}, "unknown column 'text_colum'"),
    ("verbalizer", "x", 'verbalizer: expected a mapping or null, got "x"'),
    ("verbalizer", {"template": "a"}, "verbalizer: expected template and label words for head='verbalizer' and null otherwise"),
    ("backbone_dropout", "no", 'backbone_dropout: expected true or false, got "no"'),
    ("backbone_folder", 1, "backbone_folder: expected a text or null, got 1"),
    ("sha256", ["x"], "sha256: expected a mapping of texts or null"),
    ("labels", [], "labels: there is no such field. Did you mean 'label_names'?"),
]  # fmt: skip


@pytest.mark.parametrize("name, value, message", FIELDS, ids=lambda value: json.dumps(value)[:30])
def test_a_damaged_field_is_named_with_its_file(name: str, value: Any, message: str, run: Path) -> None:
    edit(run, **{name: value})
    refused(run, str(run / "task.json"), message)


@pytest.mark.parametrize("name", ["kind", "backbone", "head", "label_names", "max_length"])
def test_a_missing_field_is_named(name: str, run: Path) -> None:
    card = json.loads((run / "task.json").read_text())
    del card[name]
    (run / "task.json").write_text(json.dumps(card))
    refused(run, f"{run / 'task.json'}: not a task card: {name}: expected a value, got no such field")


@pytest.mark.parametrize("damage", BYTES)
def test_a_card_that_is_no_json_object_is_named(damage: str, run: Path) -> None:
    content, message = BYTES[damage]
    (run / "task.json").write_bytes(content)
    refused(run, f"{run / 'task.json'}: not a task card: ", message)


def test_the_card_of_a_verbalizer_is_checked(run: Path) -> None:
    words = {"bird": "bird", "cat": "cat", "dog": ["dog"]}
    whole = {"template": "{text} It was {mask}", "label_words": words, "label_names": ["bird", "cat", "dog"]}
    for damaged, message in (
        (None, "verbalizer: expected template and label words for head='verbalizer'"),
        ({"template": "{text} {mask}"}, "verbalizer: expected the keys template, label_words, label_names, got template"),
        ({**whole, "template": 3}, "verbalizer: template: expected a text, got 3"),
        ({**whole, "label_words": {"bird": 1}}, "verbalizer: label_words: expected a mapping whose values are each a text or a list of texts"),
        ({**whole, "label_names": ["cat", "bird", "dog"]}, "verbalizer: label_names: expected those of the card"),
    ):  # fmt: skip
        edit(run, head="verbalizer", verbalizer=damaged)
        refused(run, message)


# ---------------------------------------------------------------------- hashes


def test_training_seals_weights_config_and_labels(run: Path) -> None:
    card = json.loads((run / "task.json").read_text())
    weights = hashlib.sha256((run / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert card["sha256"]["adapter_model.safetensors"] == weights
    assert card["sha256"].keys() >= {"adapter_config.json", "label_names", "kind", "head", "pooling", "pairs"}


def test_a_flipped_bit_of_the_weights_is_refused(run: Path) -> None:
    weights = run / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # the sign or a mantissa's bit of the last number: nothing but the hash shows it
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.write_bytes(bytes(content))
    after = hashlib.sha256(bytes(content)).hexdigest()
    advice = f"remove the entry 'adapter_model.safetensors' under \"sha256\" in {run / 'task.json'}"
    refused(run, f"{weights}: changed since task.json was written: expected SHA-256 {before}, got {after}", advice)
    sealed = json.loads((run / "task.json").read_text())["sha256"]
    del sealed["adapter_model.safetensors"]
    edit(run, sha256=sealed)  # what the message advises
    assert Predictor(run).predict(ROW)


@pytest.mark.parametrize(
    "changes",
    [{"label_names": ["cat", "bird", "dog"]}, {"label_names": ["Bird", "cat", "dog"]}, {"pooling": "cls"}, {"head": "stock"}],
    ids=["order", "name", "pooling", "head"],
)  # fmt: skip
def test_what_the_trained_numbers_mean_is_sealed(changes: dict[str, Any], run: Path) -> None:
    edit(run, **changes)
    (name,) = changes
    message = f"{run / 'task.json'}: {name}: changed since task.json was written: expected SHA-256"
    if name != "head":
        refused(run, message, f'remove the entry {name!r} under "sha256"')
        return
    with pytest.raises(SoftPromptError):  # the stock head of this backbone has other names
        Predictor(run)


def test_the_settings_of_the_prompt_are_sealed_but_not_where_its_backbone_lies(run: Path) -> None:
    expected = Predictor(run).predict(ROW)
    edit(run, "adapter_config.json", base_model_name_or_path="somewhere/else", peft_version="0")
    assert Predictor(run).predict(ROW) == expected
    edit(run, "adapter_config.json", shared_prefix=False)
    refused(run, f"{run / 'adapter_config.json'}: changed since task.json was written")


def test_saving_into_the_folder_again(run: Path) -> None:
    model = softprompt.load(run)
    model.save_pretrained(run)  # the same adapter: no alarm
    expected = Predictor(run).predict(ROW)
    collapsed = softprompt.collapse(model)
    collapsed.save_pretrained(run, selected_adapters=["collapsed"])  # goes into a folder of its own
    assert Predictor(run).predict(ROW) == expected
    model.set_adapter("default")
    with torch.no_grad():
        softprompt.active_prompt(model)[0].embedding += 1
    model.save_pretrained(run, selected_adapters=["default"])
    refused(run, "If you changed it on purpose (save_pretrained into this folder does), remove the entry")
    TaskCard.read(run).write(run)  # the other way: seal it again
    assert Predictor(run).predict(ROW) != expected


def test_cards_without_the_new_fields_still_load(run: Path) -> None:
    expected = Predictor(run).predict(ROW)
    card = json.loads((run / "task.json").read_text())
    backbone = card.pop("backbone_folder")
    del card["sha256"]
    (run / "task.json").write_text(json.dumps({**card, "backbone": backbone}))
    assert Predictor(run).predict(ROW) == expected


# ---------------------------------------------------------------------- where the backbone lies


def test_a_run_works_from_everywhere(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = json.loads((place / "run" / "task.json").read_text())
    assert card["backbone"] == "bb/bert" and card["backbone_folder"] == str((place / "bb" / "bert").resolve())
    monkeypatch.chdir(tmp_path)
    expected = Predictor(place / "run").predict(ROW)  # the absolute path
    assert softprompt.look(place / "run")["tokens"]
    monkeypatch.chdir(place)
    assert Predictor("run").predict(ROW) == expected  # as it was typed


def test_a_run_that_takes_its_backbone_with_it(place: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Predictor(run).predict(ROW)
    shutil.copytree(place / "bb", run / "bb")
    edit(run, backbone_folder="/gone")
    monkeypatch.chdir(run.parent)
    assert Predictor("run").predict(ROW) == expected
    (run / "task.json").unlink()  # a bare adapter finds the same folder, by its config
    edit(run, "adapter_config.json", modules_to_save=None, task_type=None)
    with pytest.raises(SoftPromptError, match=r"unexpected tensors: .*classifier"):
        softprompt.load("run")


def test_a_backbone_that_is_gone(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone" / "bert")
    edit(run, backbone="bb/bert", backbone_folder=gone)
    monkeypatch.chdir(tmp_path)
    message = f"{run}: the adapter's backbone 'bb/bert' is not there any more; tried bb/bert, {run / 'bb/bert'}, {gone}. Pass --backbone (in Python, backbone=...)"
    refused(run, message)
    with pytest.raises(SoftPromptError) as caught:
        softprompt.load(run, backbone=gone)
    assert str(caught.value) == (
        f"backbone {gone!r}: expected 'minilm', 'masked-lm', 'causal-lm', a folder with config.json, or a hub name that can be reached; got: no such folder."
    )


@pytest.mark.parametrize("name", ["./bert", "../bert", "/no/bert", "a/b/bert", "~/bert"])
def test_a_path_is_not_looked_for_on_the_hub(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edit(run, backbone=name, backbone_folder=None)
    for door in (softprompt.load, Predictor):
        with pytest.raises(
            SoftPromptError, match=r"or a hub name that can be reached; got: no such folder\."
        ) as caught:
            door(run)
        assert "huggingface.co" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    edit(run, backbone=str(tmp_path / "empty"))
    with pytest.raises(SoftPromptError, match=r"got: a folder without config\.json\."):
        Predictor(run)
