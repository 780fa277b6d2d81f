"""What many tests ask for: tiny backbones and data on disk, tokenizers, an oracle. No test writes to the user's cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, PreTrainedTokenizerFast

from house import tiny
from house.browser import chromium
from house.served import train_writers
from house.suites import QUICK, write_distinct
from house.tiny import save_backbone, write_classification, write_tasks, write_tokens
from softprompt.data import find
from softprompt.models.embedded import EMBEDDED, PACKAGES, Package, embedded_backbone
from softprompt.training.keys.options import RunOptions


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def suite_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tasks: "animals" with a test file, "hidden" without one and with a published split, "many" with 300 rows."""
    folder = tmp_path_factory.mktemp("data")
    write_classification(folder / "animals")
    write_distinct(folder / "hidden", train=90, validation=24)
    published = folder / "hidden" / "kshot" / "4-13"
    published.mkdir(parents=True)
    lines = (folder / "hidden" / "train.jsonl").read_text().splitlines(keepends=True)
    (published / "train.jsonl").write_text("".join(lines[12:24]))
    (published / "dev.jsonl").write_text("".join(lines[36:48]))
    (folder / "hidden" / "info.json").write_text('{"name": "hidden", "metric": "matthews_correlation"}')
    write_distinct(folder / "many", train=300, validation=30, test=40)
    return folder


@pytest.fixture
def suite_file(tmp_path: Path, backbone: Path, suite_data: Path) -> Any:
    """Write a suite file over a small valid one; a value of None takes a key out."""

    def written(**changes: Any) -> Path:
        document: dict[str, Any] = {
            "name": "tiny",
            "data": str(suite_data),
            "tasks": ["animals"],
            "shots": [4],
            "seeds": [13],
            "defaults": {"backbone": str(backbone), **QUICK},
            "methods": {"prompt_tuning": {"num_virtual_tokens": 3, "learning_rate": 0.01}},
        }
        document |= changes
        path = tmp_path / "suite.yaml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in document.items() if value is not None}, sort_keys=False)
        )
        return path

    return written


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("encoder"))


WORDS = ["it", "was", "great", "good", "bad", "terrible", "news", "the", "film", *"abcdefg.,?:"]


@pytest.fixture(scope="module")
def wordpiece():
    """BERT-like: [CLS] ... [SEP], token types, pieces without spaces; "awful" is two pieces."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOS]"]
    vocab = {token: i for i, token in enumerate([*specials, *WORDS, "aw", "##ful"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", eos_token="[EOS]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def byte_bpe():
    """RoBERTa-like pieces that carry the space in front; "great" in mid sentence is one piece, alone it is several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<mask>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the film was great, it was bad", "the film was bad, it was great"] * 50, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", mask_token="<mask>", unk_token="<unk>"
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def few_animals(tmp_path_factory):
    return tiny.write_classification(tmp_path_factory.mktemp("animals"), rows=24)


@pytest.fixture
def made_options(encoder: Path, few_animals: Path, tmp_path: Path) -> Callable[..., RunOptions]:
    """Options of a run of three steps an epoch into tmp_path/out."""

    def options(**more: Any) -> RunOptions:
        flat = {
            "backbone": str(encoder),
            "data": str(few_animals),
            "output_dir": str(tmp_path / "out"),
            "method": "prompt_tuning",
            "num_virtual_tokens": 4,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.05,
            "max_length": 24,
            "dtype": "float32",
            "disable_tqdm": True,
        }
        return RunOptions.from_flat({**flat, **more})

    return options


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("pets"))


@pytest.fixture(scope="module")
def gudhi():
    """The oracle; it has no wheels on some machines."""
    return pytest.importorskip("gudhi")


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classification(tmp_path_factory.mktemp("animals"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("mixed") / "mixed.jsonl")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_classification(tmp_path / "many", rows=256)


@pytest.fixture
def few_messages(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The word "messages" finds 6, 1 and 1 rows of each queue and tone: what runs commands as shown need not score all."""
    folder = tmp_path_factory.mktemp("shipped")
    (folder / "messages").mkdir()
    for split, most in (("train", 6), ("validation", 1), ("test", 1)):
        met, kept = Counter[tuple[str, str]](), []
        for line in Path(find.__file__).with_name("messages").joinpath(f"{split}.jsonl").read_text().splitlines():
            row = json.loads(line)
            met[kind := (row["queue"], row["tone"])] += 1
            kept += [line] * (met[kind] <= most)
        (folder / "messages" / f"{split}.jsonl").write_text("\n".join(kept))
    shutil.copy(Path(find.__file__).with_name("messages") / "info.json", folder / "messages")
    monkeypatch.setattr(find, "__file__", str(folder / "find.py"))


@pytest.fixture(scope="session")
def first_layers(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The embedded encoder's first two layers of six, as a package of their own."""
    pytest.importorskip(PACKAGES[EMBEDDED].module, reason="the embedded backbone is the extra 'demo'")
    whole, folder = embedded_backbone(), tmp_path_factory.mktemp("thin") / "model"
    shutil.copytree(whole, folder)
    model = AutoModel.from_pretrained(whole)
    model.encoder.layer, model.config.num_hidden_layers = model.encoder.layer[:2], 2
    model.save_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return Package(str(folder.parent), PACKAGES[EMBEDDED].requirement, digest)


@pytest.fixture
def thin_encoder(first_layers: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "minilm" is its first layers in this process: what shows that commands run need not compute all of them."""
    module = ModuleType(first_layers.module)
    module.__file__ = f"{first_layers.module}/__init__.py"
    monkeypatch.setitem(sys.modules, first_layers.module, module)
    monkeypatch.setitem(PACKAGES, EMBEDDED, first_layers)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train_writers(tmp_path_factory.mktemp("writers"))
