"""Weights of the same shapes are told apart by a few numbers of the input embedding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from peft import PeftModel, get_peft_model

import softprompt
from house.families import FAMILIES, backbone
from softprompt.tuner import SoftPromptConfig
from softprompt.tuner.backbone import find_backbone
from softprompt.tuner.saved.fingerprint import check_weights

OTHER = "this adapter was trained on other weights"


def bare() -> tf.PreTrainedModel:
    model: tf.PreTrainedModel = backbone(FAMILIES["bert"], "seq_cls")
    return model


def saved(folder: Path) -> Path:
    get_peft_model(bare(), softprompt.prompt_tuning(2, task_type="SEQ_CLS")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trained", [False, True])
def test_an_adapter_warns_on_other_weights_alone(
    trained: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        PeftModel.from_pretrained(bare().to(dtype), folder, is_trainable=trained)
    longer = bare()
    longer.resize_token_embeddings(longer.config.vocab_size + 8)
    PeftModel.from_pretrained(longer, folder)
    assert OTHER not in caplog.text
    other = bare()
    torch.nn.init.normal_(other.get_input_embeddings().weight)
    model = PeftModel.from_pretrained(other, folder, is_trainable=trained)
    assert f"{OTHER}: " in caplog.text and "Load it on the backbone it was trained on" in caplog.text
    caplog.clear()
    model.save_pretrained(tmp_path / "again")
    PeftModel.from_pretrained(other, tmp_path / "again")
    assert (OTHER in caplog.text) is not trained, "what trains on goes with its new weights"


def test_adapters_of_before_and_weights_that_are_not_here_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = SoftPromptConfig.from_pretrained(str(saved(tmp_path)))
    assert len(config.embedding_sample) > 0
    other = bare()
    torch.nn.init.normal_(other.get_input_embeddings().weight)
    config.embedding_sample = None
    get_peft_model(other, config)
    empty = bare()
    config = SoftPromptConfig.from_pretrained(str(tmp_path))
    kept, config.initialized = config.embedding_sample, True
    empty.get_input_embeddings().weight.data = torch.empty(0, 32)
    check_weights(config, find_backbone(empty))
    assert OTHER not in caplog.text and config.embedding_sample == kept
