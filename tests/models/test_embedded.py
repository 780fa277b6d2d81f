"""Embedded backbones: their weights are checked, a prompt on the encoder beats its probe, and one on the language model its template."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import softprompt
from softprompt.experiments.contenders import run_zero_shot
from softprompt.models.embedded import PACKAGES
from softprompt.training.keys.options import RunOptions

SHORT = {"max_length": 48, "train_sampling_strategy": "group_by_length", "disable_tqdm": True}
WORDS = {
    "backbone": "masked-lm",
    "head": "verbalizer",
    "template": "{text} It was {mask} .",
    "label_words": {
        "annoyed": ["terrible", "mad"],
        "neutral": ["standard", "recorded"],
        "grateful": ["wonderful", "nice"],
    },
}


def installed(name: str) -> Any:
    return pytest.importorskip(PACKAGES[name].module, reason="embedded backbones are the extra 'demo'")


def test_a_prompt_on_the_real_encoder_beats_its_linear_probe(tmp_path: Path) -> None:
    installed("minilm")
    flat = {"data": "messages", "label_column": "tone", "method": "prompt_tuning", "num_virtual_tokens": 8, "seed": 13}
    flat |= {**SHORT, "num_train_epochs": 1, "output_dir": str(tmp_path / "out")}
    result = softprompt.train(RunOptions.from_flat(flat))
    probe = result.document["train_info"]["probe"]
    assert result.metrics["test accuracy"] > probe["test"] + 0.04
    assert result.document["train_info"]["num_trainable_params"] == 8 * 384 + 3 * 384 + 3
    assert result.document["meta_info"]["model_info"]["pooling"] == "mean"


def test_a_prompt_on_the_masked_language_model_beats_the_template_alone(tmp_path: Path) -> None:
    """Nothing but the prompt moves, and what it adds is seen on test rows."""
    installed("masked-lm")
    flat = {
        "data": "messages",
        "label_column": "tone",
        "seed": 13,
        **WORDS,
        **SHORT,
        "max_length": 32,
        "dtype": "float32",
        "shots": 48,
        "test_limit": 90,
    }
    untouched = run_zero_shot({**flat, "output_dir": str(tmp_path / "none")})
    assert untouched.test > 1 / 3 + 0.05
    tuned = {
        **flat,
        "method": "deep_prompts",
        "num_virtual_tokens": 8,
        "num_train_epochs": 3,
        "eval_strategy": "no",
        "output_dir": str(tmp_path / "out"),
    }
    result = softprompt.train(RunOptions.from_flat(tuned))
    info = result.document["train_info"]
    losses = [entry["loss"] for entry in info["metrics"] if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    assert result.metrics["test accuracy"] > untouched.test + 0.03
    assert info["num_trainable_params"] == 6 * 8 * 384


def test_the_masked_language_model_is_a_stock_model_that_fills_gaps() -> None:
    installed("masked-lm")
    folder = softprompt.embedded_backbone("masked-lm")
    model, tokenizer = tf.AutoModelForMaskedLM.from_pretrained(folder), tf.AutoTokenizer.from_pretrained(folder)
    assert (
        type(model) is tf.BertForMaskedLM
        and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    assert len(tokenizer) == model.config.vocab_size == 16_000
    given = tokenizer("the capital of france [MASK] paris .", return_tensors="pt")
    place = given["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    best = model(**given).logits[0, place].topk(5).indices
    assert {"is", ",", "-", "in", "was"} & set(tokenizer.convert_ids_to_tokens(best))


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_embedded_weights_are_checked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = installed(name)
    assert (softprompt.embedded_backbone(name) / "config.json").is_file()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(package, "__file__", str(tmp_path / "__init__.py"))
    expected = rf"expected SHA-256 {PACKAGES[name].sha256}, got .*; reinstall {PACKAGES[name].requirement}"
    with pytest.raises(softprompt.SoftPromptError, match=expected):
        softprompt.embedded_backbone(name)


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_an_embedded_backbone_that_is_not_installed_says_how_to_get_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[name].module, None)
    with pytest.raises(
        softprompt.SoftPromptError, match=rf"'{name}' is not installed; run: pip install 'softprompt\[demo\]'"
    ):
        softprompt.embedded_backbone(name)


def test_an_unknown_embedded_backbone_is_refused() -> None:
    with pytest.raises(
        softprompt.SoftPromptError, match=r"unknown embedded backbone 'masked_lm': .* Did you mean 'masked-lm'"
    ):
        softprompt.embedded_backbone("masked_lm")


def test_the_sibling_packages_are_what_the_extra_asks_for() -> None:
    import tomllib

    root = Path(__file__).resolve().parents[2]
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["demo"]
    assert sorted(extra) == sorted(package.requirement for package in PACKAGES.values())
    for path in root.glob("backbones/*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        assert f"{project['name']}=={project['version']}" in extra
        assert f"-e {path.parent.relative_to(root)}" in (root / "Makefile").read_text()
        assert import_module(f"softprompt_{path.parent.name}").__file__


@torch.no_grad()
def test_the_causal_model_expects_english_and_ends_its_texts() -> None:
    installed("causal-lm")
    folder = softprompt.embedded_backbone("causal-lm")
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.sep_token_id
    ids = tokenizer("the film was directed by a young man from new york .", return_tensors="pt")["input_ids"]
    shuffled = ids[:, [0, *torch.randperm(ids.shape[1] - 2, generator=torch.Generator().manual_seed(0)) + 1, -1]]
    loss, other = (float(model(input_ids=one, labels=one).loss) for one in (ids, shuffled))
    assert loss < 5 < other - 1
