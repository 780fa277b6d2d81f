"""The graph gives the class that our model gives, for any batch and length, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import transformers as tf

import softprompt
from house.runs import train_shortly
from house.tiny import save_backbone, write_classification
from softprompt import SoftPromptError
from softprompt.serving import compile_adapter, export_adapter

TEXTS = ["red dog sun", "blue cat", "green bird now then here there good bad warm", "cat"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def pooled(root: Path, encoder: Path) -> Path:
    return train_shortly(encoder, write_classification(root / "data"), root / "pooled", method="deep_prompts")


@pytest.fixture(scope="module")
def stock(root: Path, encoder: Path, pooled: Path) -> Path:
    more = {"rank": 2, "max_positions": 8, "num_spaces": 1, "head": "stock", "marker": None}
    return train_shortly(encoder, root / "data", root / "stock", method="ept", **more)


@pytest.mark.parametrize("which", ["pooled", pytest.param("stock", marks=pytest.mark.slow)])
def test_the_graph_says_what_the_model_says(which: str, tmp_path: Path, request) -> None:
    adapter = request.getfixturevalue(which)
    # in a process of its own: the checks of shapes that tests switch on compare them, which would fix a graph's
    words = [sys.executable, "-m", "softprompt", "export", adapter, "-o", tmp_path / "out", "--to", "onnx"]
    told = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert told.returncode == 0 and not told.stderr.strip(), told.stderr
    assert told.stdout.strip().endswith("logits of 3 classes")
    facts = json.loads((tmp_path / "out" / "classes.json").read_text())
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [one.name for one in session.get_inputs()] == facts["inputs"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".data"], "one file holds all"
    for texts in (TEXTS, TEXTS[1:2], TEXTS[:3]):
        inputs = {
            key: value.astype(np.int64) for key, value in tokenizer(texts, padding=True, return_tensors="np").items()
        }
        logits = session.run(None, {name: inputs[name] for name in facts["inputs"]})[0]
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        for row, made in zip(
            scores, softprompt.Predictor(adapter).predict([{"text": text} for text in texts]), strict=True
        ):
            for name, score in zip(facts["classes"], row, strict=True):
                assert made["scores"][name] == pytest.approx(float(score), abs=1e-4)


def test_what_a_graph_cannot_hold_is_refused(pooled: Path, root: Path, encoder: Path, tmp_path: Path) -> None:
    words = {"dog": "red", "cat": "green", "bird": "blue"}
    verbal = train_shortly(
        encoder, root / "data", root / "verbal", head="verbalizer", template="{text} It was {mask} .", label_words=words
    )
    compile_adapter(pooled, tmp_path / "compiled")
    marked = train_shortly(encoder, write_classification(root / "marked-data"), root / "marked", marker="[SEP]")
    for adapter, message in (
        (marked, "torch cannot translate the search for a marker"),
        (verbal, "a head that reads the mask of a template"),
        (tmp_path / "compiled", "export the adapter that was compiled"),
    ):
        with pytest.raises(SoftPromptError, match=message):
            export_adapter(adapter, tmp_path / "out", "onnx")
        assert not (tmp_path / "out").exists()
    decoder = save_backbone(tmp_path / "decoder", "decoder")
    with pytest.raises(SoftPromptError, match="--to onnx writes a classifier of texts on an encoder"):
        export_adapter(train_shortly(decoder, root / "data", tmp_path / "llama"), tmp_path / "out", "onnx")
