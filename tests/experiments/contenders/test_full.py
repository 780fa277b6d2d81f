"""Full fine-tuning: every weight moves, with label words too, and a dead feature does not stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import softprompt
from house.suites import QUICK, WORDED, only_cell
from house.tiny import tokenizer
from softprompt.experiments.cell import flat_options, run_cell
from softprompt.experiments.contenders import full
from softprompt.experiments.suite import read_suite


def test_full_fine_tuning_moves_every_weight_that_the_logits_depend_on(
    suite_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}
    original, groups = full.prepare, full._optimizer

    def prepare(options: Any) -> Any:
        prepared = original(options)
        kept.update(model=prepared.model, before={n: p.detach().clone() for n, p in prepared.model.named_parameters()})
        return prepared

    def optimizer(trainer: Any, model: Any) -> Any:
        kept["optimizer"] = groups(trainer, model)
        return kept["optimizer"]

    monkeypatch.setattr(full, "prepare", prepare)
    monkeypatch.setattr(full, "_optimizer", optimizer)
    cell = only_cell(suite_file(methods={"full_finetuning": {"learning_rate": 3e-3, "dtype": "bfloat16"}}))
    outcome = full.run_full_finetuning(flat_options(cell, tmp_path / "data", tmp_path / "out", None))
    after = dict(kept["model"].named_parameters())
    still = {name for name, value in kept["before"].items() if torch.equal(value, after[name])}
    assert still == {"backbone.pooler.dense.weight", "backbone.pooler.dense.bias"}  # which a pooled head does not read
    assert {value.dtype for value in after.values()} == {torch.float32}  # bfloat16 is the precision of the computation
    assert outcome.parameters == sum(value.numel() for value in after.values())
    rates = {g["name"]: (g["initial_lr"], len(g["params"])) for g in kept["optimizer"].param_groups}
    assert rates == {"backbone": (3e-3, len(after) - 2), "classifier": (softprompt.training.fit.HEAD_RATE, 2)}
    true, predicted = outcome.predictions()
    assert sum(a == b for a, b in zip(true, predicted, strict=True)) / len(true) == pytest.approx(outcome.test)


def test_full_fine_tuning_with_label_words_trains_the_masked_model(suite_file: Any) -> None:
    own = {**WORDED, "num_train_epochs": 8, "learning_rate": 3e-3, "score_last": True}
    tuned, untouched = (
        run_cell(cell) for cell in read_suite(suite_file(methods={"full_finetuning": own, "zero_shot": WORDED})).cells()
    )
    assert tuned["status"] == "done", tuned["error"]
    assert tuned["dev"] > untouched["dev"] and "probe" not in tuned["extra"] and tuned["extra"]["last"]


def test_full_fine_tuning_learns_on_a_backbone_with_a_dead_feature(
    suite_file: Any, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe's weight on a feature of scale 1e-33 is so large that the gradient below it is infinite."""
    model = tf.AutoModel.from_pretrained(backbone)
    norm = model.encoder.layer[-1].output.LayerNorm
    with torch.no_grad():
        norm.weight[3], norm.bias[3] = 1e-33, 0.0
    model.save_pretrained(tmp_path / "dead")
    tokenizer().save_pretrained(tmp_path / "dead")
    trainers: list[Any] = []
    make_trainer = full.make_trainer
    monkeypatch.setattr(full, "make_trainer", lambda *args: trainers.append(make_trainer(*args)) or trainers[-1])
    own = {"full_finetuning": {"learning_rate": 3e-3, "num_train_epochs": 4}}
    cell = only_cell(suite_file(methods=own, defaults={"backbone": str(tmp_path / "dead"), **QUICK}))
    line = run_cell(cell)
    assert line["status"] == "done", line["error"]
    logged = [entry for entry in trainers[0].state.log_history if "grad_norm" in entry]
    assert len(logged) == 4 and all(0 < entry["grad_norm"] < 1e3 for entry in logged)
    assert logged[-1]["loss"] < 0.9 * logged[0]["loss"]
