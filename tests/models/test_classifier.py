"""Heads and pooling: real tokens only, and a start at the probe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from peft import get_peft_model
from safetensors.torch import load_file

import softprompt
from house.runs import options
from house.tiny import save_backbone, tokenizer, write_classification, write_completion
from softprompt.models.classifier import choose_pooling, pool
from softprompt.models.probe import fit_probe, head_features, set_head

# ---------------------------------------------------------------- pooling and heads


def test_pool_reads_real_tokens_only_on_either_padding_side() -> None:
    states = torch.arange(8.0).view(1, 4, 2)
    right, left = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 1]])
    assert pool(states, right, "mean").tolist() == [[2.0, 3.0]]
    assert pool(states, left, "mean").tolist() == [[4.0, 5.0]]
    assert pool(states, right, "cls").tolist() == [[0.0, 1.0]]
    assert pool(states, left, "cls").tolist() == [[2.0, 3.0]]
    assert pool(states, right, "last").tolist() == [[4.0, 5.0]]
    assert pool(states, left, "last").tolist() == [[6.0, 7.0]]
    assert pool(states, None, "mean").tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompted_classifier_does_not_see_padding(encoder: Path, pooling: str, side: str) -> None:
    model = softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["a", "b"], pooling)
    model = get_peft_model(
        model, softprompt.ept(num_virtual_tokens=3, rank=2, max_positions=8, task_type="SEQ_CLS")
    ).eval()
    ids, pad = torch.tensor([[2, 7, 9, 12, 3]]), torch.zeros(1, 3, dtype=torch.long)
    parts = [pad, ids] if side == "left" else [ids, pad]
    masks = [pad, torch.ones_like(ids)] if side == "left" else [torch.ones_like(ids), pad]
    alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    padded = model(input_ids=torch.cat(parts, 1), attention_mask=torch.cat(masks, 1)).logits
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_pooling_is_chosen_from_the_backbone_and_says_why(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bert = tf.AutoModel.from_pretrained(encoder)
    assert choose_pooling(encoder, bert)[0] == "mean"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    pooling, reason = choose_pooling(tmp_path, bert)
    assert (pooling, reason) == ("cls", "this sentence encoder says 'cls'")
    llama = tf.LlamaModel(
        tf.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=40)
    )
    with caplog.at_level("INFO", logger="softprompt"):
        model = softprompt.classifier_for(llama, ["a", "b"])
    assert model.pooling == "last" and "pooling=last: in a causal stack only the last token" in caplog.text


@pytest.mark.parametrize("classes", [2, 3])
def test_probe_equals_scikit_learn_on_raw_features(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes
    features = (rng.normal(size=(60, 8)) * 3 + labels[:, None] + 5).astype(np.float32)
    weight, bias = fit_probe(features, labels, classes)
    scaler = StandardScaler().fit(features)
    expected = (
        LogisticRegression(C=1 / 8, max_iter=1000)
        .fit(scaler.transform(features), labels)
        .predict_proba(scaler.transform(features))
    )
    got = torch.softmax(torch.tensor(features) @ weight.T + bias, -1)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)
    with pytest.raises(softprompt.SoftPromptError, match=rf"classes \[{classes}\] have none"):
        fit_probe(features, labels, classes + 1)


def test_training_starts_at_the_probe(encoder: Path) -> None:
    model = softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["a", "b", "c"], "mean").train()
    batch = {"input_ids": torch.randint(5, 30, (12, 6)), "attention_mask": torch.ones(12, 6, dtype=torch.long)}
    features = head_features(model, model.classifier, [batch])
    assert model.training and features.shape == (12, 32)
    np.testing.assert_array_equal(features, head_features(model, model.classifier, [batch]))  # dropout-free
    weight, bias = fit_probe(features, np.arange(12) % 3, 3)
    set_head(model.classifier, weight, bias)
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    torch.testing.assert_close(logits, torch.tensor(features) @ weight.T + bias, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- other heads and tasks


def test_stock_head_run(encoder: Path, animals: Path, tmp_path: Path) -> None:
    result = softprompt.train(options(encoder, animals, tmp_path / "out", head="stock"))
    saved = set(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    head = {
        f"base_model.model.{name}.{kind}" for name in ("classifier", "bert.pooler.dense") for kind in ("weight", "bias")
    }
    assert saved == head | {"base_model.model.softprompt.softprompt_prompts.embedding"}  # the checkpoint has no pooler
    assert softprompt.Predictor(tmp_path / "out").evaluate(softprompt.load_task(animals).test)[
        "accuracy"
    ] == pytest.approx(result.metrics["test accuracy"])


@torch.no_grad()
def test_a_prefix_reaches_the_backbone(encoder: Path) -> None:
    """PEFT gives it as past_key_values, which is not the name that each transformers has for it."""
    model = softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["a", "b"], "mean").eval()
    config = model.backbone.config
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    cache = tf.DynamicCache()
    for layer in range(config.num_hidden_layers):
        cache.update(torch.ones(1, heads, 3, width), torch.ones(1, heads, 3, width), layer)
    ids = torch.tensor([[7, 8, 9]])
    with_prefix = model(input_ids=ids, past_key_values=cache).logits
    assert not torch.allclose(with_prefix, model(input_ids=ids).logits, atol=1e-3)


def test_pair_task(encoder: Path, tmp_path: Path) -> None:
    data = write_classification(tmp_path / "pairs", pair=True)
    softprompt.train(options(encoder, data, tmp_path / "out", num_train_epochs=1))
    found = softprompt.Predictor(tmp_path / "out").predict([{"text": "red dog", "text_pair": "It was bad"}])
    assert found[0]["label"] in ("bird", "cat", "dog")


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_completion_run(kind: str, tmp_path: Path) -> None:
    backbone, data = save_backbone(tmp_path / "backbone", kind), write_completion(tmp_path / "data")
    result = softprompt.train(options(backbone, data, tmp_path / "out", num_train_epochs=2))
    assert 0 <= result.metrics["test accuracy"] <= 1 and result.metrics["test loss"] > 0
    predictor = softprompt.Predictor(tmp_path / "out")
    assert predictor.model.peft_config["default"].task_type == ("CAUSAL_LM" if kind == "decoder" else "SEQ_2_SEQ_LM")
    together = predictor.predict([{"prompt": "red dog"}, {"prompt": "blue cat runs now here"}], max_new_tokens=4)
    alone = [
        predictor.predict([{"prompt": text}], max_new_tokens=4)[0] for text in ("red dog", "blue cat runs now here")
    ]
    assert together == alone


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_classification_on_decoders_and_encoder_decoders(kind: str, animals: Path, tmp_path: Path) -> None:
    backbone = save_backbone(tmp_path / "backbone", kind)
    result = softprompt.train(options(backbone, animals, tmp_path / "out", num_train_epochs=1))
    assert result.document["meta_info"]["model_info"]["pooling"] == ("last" if kind == "decoder" else "mean")
    assert softprompt.Predictor(tmp_path / "out").evaluate(softprompt.load_task(animals).test)[
        "accuracy"
    ] == pytest.approx(result.metrics["test accuracy"])


def test_stock_trainer_needs_nothing_of_ours(encoder: Path, animals: Path, tmp_path: Path) -> None:
    task, words = softprompt.load_task(animals), tokenizer()
    rows = softprompt.data.encode_classification(words, task.train, max_length=24)
    model = tf.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)
    model = get_peft_model(model, softprompt.deep_prompts(4, task_type="SEQ_CLS"))
    before = {n: p.clone() for n, p in model.named_parameters()}
    arguments = tf.TrainingArguments(
        str(tmp_path), max_steps=3, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    tf.Trainer(
        model, arguments, train_dataset=rows, data_collator=softprompt.data.collator(words, "classification")
    ).train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
