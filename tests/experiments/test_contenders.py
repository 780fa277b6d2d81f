"""Contenders: what a cell gives, and how a learning rate is chosen."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef

import softprompt
from house.suites import QUICK, only_cell, rows_of, scripted, without_outside
from house.tiny import tokenizer
from softprompt.experiments import contenders
from softprompt.experiments.cell import flat_options, run_cell
from softprompt.experiments.checks import check_contenders
from softprompt.experiments.records import key_of
from softprompt.experiments.suite import Cell, read_suite

CONTENDERS = {
    "prompt_tuning": {"num_virtual_tokens": 3, "learning_rate": 0.01},
    "spt": {"budget": 1, "bottleneck": 4, "num_virtual_tokens": 2},
    "peft:p_tuning": {"num_virtual_tokens": 3},
    "probe": {},
    "full_finetuning": {"num_train_epochs": 3, "learning_rate": 1e-3},
}


@pytest.mark.parametrize("method", [*CONTENDERS, "setfit"])
def test_two_runs_of_a_cell_are_equal_but_for_time_and_environment(
    method: str, suite_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if method == "setfit":
        pytest.importorskip("setfit")
    own = {"setfit": {"num_iterations": 1, "batch_size": 8}, **CONTENDERS}[method]
    cell = only_cell(suite_file(methods={method: own}))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    first = run_cell(cell)
    torch.manual_seed(2)
    second = run_cell(cell)
    assert first["status"] == "done", first["error"]
    assert without_outside(first) == without_outside(second)
    assert capfd.readouterr().out == ""  # stdout belongs to results
    assert json.loads(json.dumps(first)) == first and key_of(first) == cell.key
    assert not list(tmp_path.glob("softprompt-bench-*"))  # what training wrote is gone
    assert torch.get_num_threads() == threads
    assert list(first) == [
        *("suite", "method", "task", "shots", "rows", "seed", "options", "status", "error", "metric", "dev", "test"),
        *("parameters", "steps", "learning_rate", "trials", "curve", "extra", "time", "environment"),
    ]
    assert set(first["time"]) == {"train_seconds", "total_seconds"} and 0 <= first["dev"] <= 1
    assert first["trials"] == [{"learning_rate": first["learning_rate"], "dev": first["dev"]}]
    if method == "probe":
        assert (first["steps"], first["learning_rate"], first["parameters"]) == (0, None, 3 * 32 + 3)
    else:
        assert first["steps"] > 0 and first["curve"][-1][0] == first["steps"] and first["learning_rate"] > 0
    if method == "full_finetuning":
        assert first["dev"] == max(score for _, score in first["curve"])  # the best checkpoint is what is scored
        assert len(first["curve"]) == 3


def test_setfit_in_bfloat16_computes_with_the_weights_that_it_trains(
    suite_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One autocast context around the whole training kept the first step's weights, so that texts of two classes never parted."""
    pytest.importorskip("setfit")
    read: list[tuple[np.ndarray, np.ndarray]] = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda self, x, y: read.append((np.asarray(x), np.asarray(y))) or fit(self, x, y)
    )
    own = {"num_iterations": 20, "batch_size": 8, "learning_rate": 3e-3, "dtype": "bfloat16"}
    line = run_cell(only_cell(suite_file(methods={"setfit": own})))
    assert line["status"] == "done", line["error"]
    ((states, labels),) = read
    units = states / np.linalg.norm(states, axis=1, keepdims=True)
    same = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    similar = units @ units.T
    assert similar[same].mean() > 0.7 and similar[labels[:, None] != labels].mean() < 0.3


def test_a_cell_is_what_softprompt_train_gives(suite_file: Any, tmp_path: Path) -> None:
    cell = only_cell(suite_file())
    line = run_cell(cell)
    options = softprompt.RunOptions.from_flat(flat_options(cell, tmp_path / "data", tmp_path / "out", None))
    info = softprompt.train(options, progress=False).document["train_info"]
    assert (line["dev"], line["test"]) == (info["dev accuracy"], info["test accuracy"])
    assert (line["parameters"], line["steps"]) == (info["num_trainable_params"], info["train_steps"])
    assert line["extra"]["probe"] == info["probe"]
    assert line["curve"] == [[info["train_steps"], info["dev accuracy"]]]  # of one epoch: what was evaluated is kept


def test_a_cell_notes_whether_the_mechanism_acted(suite_file: Any, tmp_path: Path) -> None:
    """What the run's result.json has; of a search of layers it stands under names of its own."""
    small = {"num_virtual_tokens": 3, "max_steps": 2}
    methods = {"ept": {**small, "rank": 2, "num_spaces": 2}, "tsloss": small, "prompt_tuning": small}
    ept, tsloss, plain = (run_cell(cell)["extra"] for cell in read_suite(suite_file(methods=methods)).cells())
    assert len(ept["mechanism"]["gates"]) == 2 and 0 < ept["mechanism"]["fusion_entropy"] <= 1
    assert tsloss["mechanism"]["gradient_share"] and "mechanism" not in plain
    spt = run_cell(only_cell(suite_file(methods={"spt": {**small, "budget": 1, "bottleneck": 2}})))["extra"]
    assert spt["layer_scores"] and not any(name.startswith("layer") for name in spt.get("mechanism", {}))


@pytest.mark.parametrize("method", ["prompt_tuning", "full_finetuning"])
def test_a_cell_scores_the_last_step_where_it_is_asked_for(method: str, suite_file: Any) -> None:
    """Against the same cell that keeps its last step; the chosen checkpoint is the one with the highest dev loss."""
    worst = {"metric_for_best_model": "loss", "greater_is_better": True, "num_train_epochs": 3, "learning_rate": 3e-3}
    own = {"prompt_tuning": {"num_virtual_tokens": 3, "learning_rate": 0.05}}.get(method, {})
    methods = {
        "both": {"method": method, **worst, **own, "score_last": True},
        "last": {"method": method, **worst, **own, "load_best_model_at_end": False},
        "chosen": {"method": method, **worst, **own},
    }
    both, last, chosen = (run_cell(cell) for cell in read_suite(suite_file(methods=methods)).cells())
    assert both["status"] == "done", both["error"]
    assert both["extra"]["best_step"] < both["steps"]
    assert both["extra"].pop("last") == {"dev": last["dev"], "test": last["test"]}
    same = ("dev", "test", "curve", "extra", "steps")
    assert {key: both[key] for key in same} == {key: chosen[key] for key in same}


def test_the_probe_is_where_other_runs_start(suite_file: Any) -> None:
    probe, tuned = (
        run_cell(cell) for cell in read_suite(suite_file(methods={"probe": {}, "prompt_tuning": {}})).cells()
    )
    assert {"dev": probe["dev"], "test": probe["test"]}.items() <= tuned["extra"]["probe"].items()


def test_full_fine_tuning_moves_every_weight_that_the_logits_depend_on(
    suite_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}
    original, groups = contenders.prepare, contenders._optimizer

    def prepare(options: Any) -> Any:
        prepared = original(options)
        kept.update(model=prepared.model, before={n: p.detach().clone() for n, p in prepared.model.named_parameters()})
        return prepared

    def optimizer(trainer: Any, model: Any) -> Any:
        kept["optimizer"] = groups(trainer, model)
        return kept["optimizer"]

    monkeypatch.setattr(contenders, "prepare", prepare)
    monkeypatch.setattr(contenders, "_optimizer", optimizer)
    cell = only_cell(suite_file(methods={"full_finetuning": {"learning_rate": 3e-3, "dtype": "bfloat16"}}))
    outcome = contenders.run_full_finetuning(flat_options(cell, tmp_path / "data", tmp_path / "out", None))
    after = dict(kept["model"].named_parameters())
    still = {name for name, value in kept["before"].items() if torch.equal(value, after[name])}
    assert still == {"backbone.pooler.dense.weight", "backbone.pooler.dense.bias"}  # which a pooled head does not read
    assert {value.dtype for value in after.values()} == {torch.float32}  # bfloat16 is the precision of the computation
    assert outcome.parameters == sum(value.numel() for value in after.values())
    rates = {g["name"]: (g["initial_lr"], len(g["params"])) for g in kept["optimizer"].param_groups}
    assert rates == {"backbone": (3e-3, len(after) - 2), "classifier": (softprompt.training.fit.HEAD_RATE, 2)}
    true, predicted = outcome.predictions()
    assert sum(a == b for a, b in zip(true, predicted, strict=True)) / len(true) == pytest.approx(outcome.test)


WORDED = {
    "head": "verbalizer",
    "template": "{text} . It was {mask} .",
    "label_words": {"dog": "runs", "cat": "sits", "bird": "eats"},
}


def test_zero_shots_are_the_frozen_model_with_its_template(suite_file: Any, tmp_path: Path) -> None:
    """By hand: the largest of the logits of the three words at the mask, whatever the training rows and the seed."""
    path = suite_file(methods={"zero_shot": WORDED}, seeds=[1, 2])
    first, second = (run_cell(cell) for cell in read_suite(path).cells())
    assert first["status"] == "done", first["error"]
    assert (first["test"], first["parameters"], first["steps"]) == (second["test"], 0, 0)
    cell = read_suite(path).cells()[0]
    flat = flat_options(cell, tmp_path / "data", tmp_path / "out", None)
    outcome = contenders.run_zero_shot({**flat, "dtype": "float32"})
    true, predicted = outcome.predictions()
    assert np.mean(np.equal(true, predicted)) == outcome.test == first["test"]
    words, model = tokenizer(), tf.AutoModelForMaskedLM.from_pretrained(flat["backbone"])
    task = softprompt.load_task(flat["data"], shots=flat["shots"], seed=1)
    ids = words.convert_tokens_to_ids([WORDED["label_words"][name] for name in task.label_names])
    by_hand = []
    for row in task.test:
        given = words(f"{row['text']} . It was [MASK] .", return_tensors="pt")
        logits = model(**given).logits[0, (given["input_ids"][0] == words.mask_token_id).nonzero().item()]
        by_hand.append((row["label"], logits[ids].argmax().item()))
    assert sorted(by_hand) == sorted(zip(true, predicted, strict=True))  # cells read rows by their length


def test_full_fine_tuning_with_label_words_trains_the_masked_model(suite_file: Any) -> None:
    own = {**WORDED, "num_train_epochs": 8, "learning_rate": 3e-3, "score_last": True}
    tuned, untouched = (
        run_cell(cell) for cell in read_suite(suite_file(methods={"full_finetuning": own, "zero_shot": WORDED})).cells()
    )
    assert tuned["status"] == "done", tuned["error"]
    assert tuned["dev"] > untouched["dev"] and "probe" not in tuned["extra"] and tuned["extra"]["last"]


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (
            "zero_shot",
            {},
            "method 'zero_shot': expected head='verbalizer' with template and label_words, got head='pooled'",
        ),
        ("zero_shot", {"head": "verbalizer"}, "needs template"),
        ("probe", WORDED, "method 'probe': expected head='pooled', got 'verbalizer'; take it out."),
        ("full_finetuning", {"head": "stock"}, "method 'full_finetuning': expected head='pooled', got 'stock'"),
    ],
)
def test_a_head_that_a_contender_cannot_have_is_refused(
    method: str, given: dict[str, Any], message: str, suite_file: Any
) -> None:
    with pytest.raises(softprompt.SoftPromptError, match=re.escape(message)):
        check_contenders(read_suite(suite_file(methods={method: given})).cells())


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
    make_trainer = contenders.make_trainer
    monkeypatch.setattr(contenders, "make_trainer", lambda *args: trainers.append(make_trainer(*args)) or trainers[-1])
    own = {"full_finetuning": {"learning_rate": 3e-3, "num_train_epochs": 4}}
    cell = only_cell(suite_file(methods=own, defaults={"backbone": str(tmp_path / "dead"), **QUICK}))
    line = run_cell(cell)
    assert line["status"] == "done", line["error"]
    logged = [entry for entry in trainers[0].state.log_history if "grad_norm" in entry]
    assert len(logged) == 4 and all(0 < entry["grad_norm"] < 1e3 for entry in logged)
    assert logged[-1]["loss"] < 0.9 * logged[0]["loss"]


def test_the_rate_is_chosen_by_dev_rows_and_every_trial_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(monkeypatch, {1: (0.5, 0.9), 2: (0.7, 0.1), 3: (0.7, 0.8), 4: (0.6, 1.0)})
    options = {"method": "scripted", "learning_rate": [1, 2, 3, 4]}
    line = run_cell(Cell("s", "m", "t", 4, None, 0, options, "messages"))
    assert asked == [1, 2, 3, 4]
    # neither the best test score nor the last rate, and the first of two that are equal on dev
    assert (line["learning_rate"], line["dev"], line["test"], line["steps"]) == (2, 0.7, 0.1, 2)
    assert line["trials"] == [
        {"learning_rate": rate, "dev": dev} for rate, dev in zip(asked, (0.5, 0.7, 0.7, 0.6), strict=True)
    ]
    assert line["extra"] == {"r": 2} and line["time"]["train_seconds"] == 2.0
    assert line["options"] == options  # the grid is part of what makes a cell the same


def test_a_grid_trains_each_rate(suite_file: Any) -> None:
    cell = only_cell(suite_file(methods={"prompt_tuning": {"num_virtual_tokens": 3}}, learning_rates=[1e-6, 0.3]))
    line = run_cell(cell)
    assert [trial["learning_rate"] for trial in line["trials"]] == [1e-6, 0.3]
    singles = [
        run_cell(only_cell(suite_file(methods={"prompt_tuning": {"num_virtual_tokens": 3, "learning_rate": rate}})))
        for rate in (1e-6, 0.3)
    ]
    assert [trial["dev"] for trial in line["trials"]] == [single["dev"] for single in singles]
    best = max(singles, key=lambda single: single["dev"])
    assert all(line[key] == best[key] for key in ("dev", "test", "curve", "learning_rate"))


def test_matthews_is_that_of_the_test_rows(suite_file: Any, suite_data: Path, tmp_path: Path) -> None:
    """Against scikit-learn on the predictions of the saved adapter."""
    cell = only_cell(
        suite_file(tasks=["hidden"], methods={"prompt_tuning": {"learning_rate": 0.05, "num_virtual_tokens": 3}})
    )
    line = run_cell(cell)
    flat = flat_options(cell, tmp_path / "data", tmp_path / "out", None)
    softprompt.train(softprompt.RunOptions.from_flat(flat), progress=False)
    rows = rows_of(suite_data / "hidden" / "validation.jsonl")
    found = [
        row["label"] for row in softprompt.Predictor(tmp_path / "out").predict([{"text": text} for text, _ in rows])
    ]
    assert line["extra"]["matthews"] == pytest.approx(matthews_corrcoef([label for _, label in rows], found))
