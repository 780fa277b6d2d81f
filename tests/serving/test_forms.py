"""An adapter's folder compiled or written for PEFT: predictions stay the same, and nothing half-made stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import softprompt
from house.runs import call, train_shortly
from house.tiny import save_backbone, write_classification, write_completion
from softprompt import SoftPromptError
from softprompt.serving import compile_adapter, export_adapter

ROWS = [{"text": "red dog sun"}, {"text": "blue cat"}, {"text": "green bird now then here"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forms")


@pytest.fixture(scope="module")
def animals(root: Path, encoder: Path) -> Path:
    return train_shortly(encoder, write_classification(root / "animals-data"), root / "animals", method="deep_prompts")


@pytest.fixture(scope="module")
def decoder(root: Path) -> Path:
    return save_backbone(root / "decoder", "decoder")


@pytest.fixture(scope="module")
def writer(root: Path, decoder: Path) -> Path:
    data = write_completion(root / "words-data")
    return train_shortly(decoder, data, root / "words", method="prompt_tuning", num_virtual_tokens=3)


def test_a_compiled_classifier_predicts_the_same(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "compile", animals, "-o", tmp_path / "compiled") == 0
    assert capsys.readouterr().out.strip().endswith("2 layers of 4 heads")
    assert {key.rsplit(".", 1)[1] for key in load_file(tmp_path / "compiled" / "adapter_model.safetensors")} == {
        "keys",
        "values",
        "weight",
        "bias",
    }
    before, after = (softprompt.Predictor(folder).predict(ROWS) for folder in (animals, tmp_path / "compiled"))
    for one, other in zip(before, after, strict=True):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert call(monkeypatch, "compile", animals, "-o", tmp_path / "compiled") == 2
    assert "expected a folder that is new or empty" in capsys.readouterr().err


def test_peft_alone_completes_as_we_do(
    writer: Path, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "export", writer, "-o", tmp_path / "theirs") == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path / 'theirs'}: PROMPT_TUNING"
    compile_adapter(writer, tmp_path / "compiled")
    assert export_adapter(tmp_path / "compiled", tmp_path / "prefix", "peft") == "PREFIX_TUNING"
    ours, ids = softprompt.load(writer), torch.tensor([[7, 8, 9, 6]])
    with torch.no_grad():
        want = ours(input_ids=ids).logits
        for name, skip in (("theirs", 3), ("prefix", 0)):
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(decoder), tmp_path / name).eval()
            torch.testing.assert_close(model(input_ids=ids).logits[:, skip:], want)


def test_nothing_is_left_of_what_is_refused(animals: Path, writer: Path, tmp_path: Path) -> None:
    for act, message in (
        (lambda: export_adapter(animals, tmp_path / "out", "peft"), r"its head \(pooled\) is softprompt's own"),
        (lambda: export_adapter(writer, tmp_path / "out", "pfet"), "unknown format 'pfet': expected one of peft"),
        (lambda: compile_adapter(tmp_path / "none", tmp_path / "out"), "expected an adapter's folder with"),
    ):
        with pytest.raises(SoftPromptError, match=message):
            act()
        assert not list(tmp_path.iterdir())
