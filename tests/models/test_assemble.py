"""Loading: the trained model, frozen or trainable, and adapters that are broken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import softprompt
from house.runs import options
from house.tiny import save_backbone
from softprompt.models import load_beside


@pytest.fixture(scope="module")
def trained(encoder: Path, animals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    softprompt.train(options(encoder, animals, folder, num_train_epochs=1))
    return folder


def test_load_gives_the_trained_model_frozen_or_trainable(trained: Path, encoder: Path) -> None:
    model = softprompt.load(trained)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    again = softprompt.load(trained, backbone=str(encoder), is_trainable=True)
    assert {n.split(".")[-1] for n, p in again.named_parameters() if p.requires_grad} == {"embedding", "weight", "bias"}
    batch = {"input_ids": torch.randint(5, 30, (2, 6))}
    assert torch.equal(model(**batch).logits, again.eval()(**batch).logits)


def test_load_without_a_task_card_asks_the_peft_config(tmp_path: Path) -> None:
    backbone = save_backbone(tmp_path / "b", "decoder")
    base = tf.AutoModelForCausalLM.from_pretrained(backbone)
    model = get_peft_model(base, softprompt.prompt_tuning(3, task_type="CAUSAL_LM")).eval()
    model.save_pretrained(tmp_path / "a")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(softprompt.load(tmp_path / "a")(input_ids=ids).logits, model(input_ids=ids).logits)


def test_the_attention_may_be_named(encoder: Path, animals: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("eager", "sdpa"):
        given = options(
            encoder, animals, tmp_path / name, num_train_epochs=1, attn_implementation=name, dtype="float32"
        )
        done = softprompt.train(given)
        assert done.model.config._attn_implementation == name
        found[name] = load_file(tmp_path / name / "adapter_model.safetensors")
    for key, value in found["eager"].items():
        torch.testing.assert_close(value, found["sdpa"][key], rtol=1e-3, atol=1e-5)
    wrong = options(encoder, animals, tmp_path / "wrong", attn_implementation="sdqa")
    with pytest.raises(softprompt.SoftPromptError, match=r"cannot be loaded as AutoModel: .*\"sdqa\""):
        softprompt.train(wrong)


def test_a_loader_that_fails_without_a_word_is_named(
    trained: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a task card, and without one."""
    bare = get_peft_model(tf.AutoModel.from_pretrained(encoder), softprompt.prompt_tuning(3, task_type=None))
    bare.save_pretrained(tmp_path / "bare")

    def fail(*args: object, **kwargs: object) -> None:
        raise ImportError

    monkeypatch.setattr(tf.AutoModel, "from_pretrained", fail)
    for folder in (trained, tmp_path / "bare"):
        with pytest.raises(softprompt.SoftPromptError, match="cannot be loaded as AutoModel: ImportError"):
            softprompt.load(folder)


def test_an_adapter_of_another_family_is_refused_beside_another(tmp_path: Path) -> None:
    encoder, decoder = (save_backbone(tmp_path / kind, kind) for kind in ("encoder", "decoder"))
    for name, place in (("bert", encoder), ("llama", decoder)):
        modules = ["query"] if name == "bert" else ["q_proj"]
        model = get_peft_model(tf.AutoModel.from_pretrained(place), LoraConfig(target_modules=modules))
        model.save_pretrained(tmp_path / name)
    model = softprompt.load(tmp_path / "bert", backbone=str(encoder))
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids)[0]
    with pytest.raises(softprompt.SoftPromptError, match="PEFT cannot attach this LORA adapter to the backbone"):
        load_beside(model, tmp_path / "llama", "other")
    assert list(model.peft_config) == ["default"] and torch.equal(model(input_ids=ids)[0], before)


def test_broken_adapters_are_named(trained: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    def copy(name: str) -> Path:
        return Path(shutil.copytree(trained, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints")))

    missing, cut, poisoned, card = copy("missing"), copy("cut"), copy("poisoned"), copy("card")
    (missing / "adapter_model.safetensors").unlink()
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    tensors = load_file(poisoned / "adapter_model.safetensors")
    key = next(name for name in tensors if name.endswith("embedding"))
    tensors[key][0, 0, 0] = float("nan")
    save_file(tensors, poisoned / "adapter_model.safetensors")
    (card / "task.json").write_text("{")
    for folder, message in (
        (missing, r"expected an adapter's folder with adapter_model.safetensors"),
        (cut, r"adapter_model.safetensors: cannot be read"),
        (poisoned, rf"{key} holds values that are not finite"),
        (card, r"task.json: not a task card"),
        (tmp_path / "nowhere", r"expected an adapter's folder with adapter_config.json; there is no such file\.$"),
        (tmp_path, rf"there is no such file\. Adapters lie in {card}, {cut}, {missing}, {poisoned}; name one of them"),
    ):
        with pytest.raises(softprompt.SoftPromptError, match=message):
            softprompt.load(folder)
