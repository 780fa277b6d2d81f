"""Accuracy on the training rows is noted where texts have labels."""

from __future__ import annotations

from pathlib import Path

import pytest

import softprompt
from house.runs import options
from house.tiny import save_backbone, write_completion
from softprompt.training.keys.options import RunOptions
from softprompt.watch import tracked


def test_a_run_notes_its_accuracy_on_the_training_rows(encoder: Path, animals: Path, tmp_path: Path) -> None:
    plain, tracked = (
        softprompt.train(options(encoder, animals, tmp_path / name, track=track), progress=False)
        for name, track in (("plain", "none"), ("tracked", "topology, accuracy"))
    )
    assert plain.metrics == tracked.metrics
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("plain", "tracked")]
    assert files[0].read_bytes() == files[1].read_bytes()
    history = tracked.document["train_info"]["metrics"]
    noted = [(entry["step"], entry["train_accuracy"]) for entry in history if "train_accuracy" in entry]
    evaluated = [entry for entry in history if "eval_accuracy" in entry]
    assert [step for step, _ in noted] == [entry["step"] for entry in evaluated[:-2]]  # not of the chosen checkpoint
    chosen = dict(noted)[tracked.document["train_info"]["best_checkpoint_step"]]
    rows = softprompt.load_task(animals).train
    assert chosen == pytest.approx(softprompt.Predictor(tmp_path / "tracked").evaluate(rows)["accuracy"])


def test_accuracy_is_tracked_where_texts_have_labels(tmp_path: Path) -> None:
    backbone, data = save_backbone(tmp_path / "backbone", "decoder"), write_completion(tmp_path / "data")
    with pytest.raises(softprompt.SoftPromptError, match="accuracy is that of labelled texts, got a completion task"):
        softprompt.train(options(backbone, data, tmp_path / "out", track="accuracy"), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("track", ["topology,accuracies", "none,mi", "mi,all"])
def test_what_is_tracked_has_names(track: str) -> None:
    with pytest.raises(softprompt.SoftPromptError) as error:
        RunOptions.from_flat({"track": track})
    assert ": expected one of mi, topology, accuracy, states." in str(error.value)


def test_what_is_tracked_twice_is_recorded_once() -> None:
    assert tracked("topology, mi, topology") == ["topology", "mi"]
