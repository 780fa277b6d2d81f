"""One run for the tasks of one data set: what it leaves, what it refuses, and that it goes on where it stopped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import softprompt
from house.runs import StopAfter, call, options, values
from house.served import settle, shelved
from house.tiny import save_backbone, write_completion
from softprompt import NonFiniteError
from softprompt.data import read_rows
from softprompt.serving.engine import PromptEngine, Request
from softprompt.serving.http.service import adapters_in
from softprompt.training.check_together import check_together
from softprompt.training.together import attach

TASKS = {"animal": ["bird", "cat", "dog"], "sky": ["rain", "sun"]}


@pytest.fixture(scope="module")
def ran(encoder, mixed, tmp_path_factory):
    """A run of 8 epochs."""
    folder = tmp_path_factory.mktemp("ran") / "run"
    return softprompt.train(options(encoder, mixed, folder, num_train_epochs=8, task_column="task"), progress=False)


def test_each_task_has_the_folder_of_a_run(ran):
    for name, classes in TASKS.items():
        folder = ran.folder / name
        saved, document = (
            load_file(folder / "adapter_model.safetensors"),
            json.loads((folder / "result.json").read_text()),
        )
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "result.json",
            "run.json",
            "task.json",
        ]
        assert next(v for k, v in saved.items() if k.endswith("classifier.weight")).shape == (len(classes), 32)
        predictor = softprompt.Predictor(folder)
        assert predictor.card.label_names == classes
        rows = [
            row for row in read_rows(ran.document["meta_info"]["dataset_info"]["source"]).rows if row["task"] == name
        ]
        scored = predictor.evaluate(softprompt.load_task(*alone(folder, rows)).test)
        info = document["train_info"]
        assert scored["accuracy"] == pytest.approx(info["test accuracy"]) == ran.metrics[f"{name}: test accuracy"]
        assert scored["calibration_error"] == pytest.approx(info["test calibration_error"], abs=1e-5)
        assert info["num_trainable_params"] == sum(v.numel() for v in saved.values())
        assert info["train_steps"] == ran.document["train_info"]["train_steps"] > 0
        assert [entry["step"] for entry in info["metrics"]] and document["meta_info"]["dataset_info"]["task"] == name
        backbone = info["num_total_params"] - info["num_trainable_params"]
        assert backbone == pytest.approx(sum(p.numel() for p in predictor.model.parameters()), rel=0.05)


def alone(folder, rows):
    file = folder.parent.parent / f"{folder.name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (file,)


def test_both_tasks_are_learned_and_the_sum_says_how_well(ran):
    info, each = ran.document["train_info"], ran.document["train_info"]["tasks"]
    assert each.keys() == TASKS.keys() and all(own["dev accuracy"] > 0.8 for own in each.values()), each
    for key in ("dev accuracy", "test loss"):
        assert info[key] == pytest.approx(sum(own[key] for own in each.values()) / 2) == ran.metrics[key]
    assert info["num_trainable_params"] == sum(own["num_trainable_params"] for own in each.values())
    assert json.loads((ran.folder / "result.json").read_text())["train_info"]["tasks"] == each
    overview = (ran.folder / "README.md").read_text()
    assert "| [animal](animal) |" in overview and "| [sky](sky) |" in overview
    logged = [entry for entry in info["metrics"] if "eval_loss" in entry]
    assert logged[0]["eval_accuracy"] == pytest.approx(
        (logged[0]["eval_animal_accuracy"] + logged[0]["eval_sky_accuracy"]) / 2
    )


def test_the_folders_are_read_and_served_as_any_runs(ran, monkeypatch, capsys, tmp_path):
    folders = [ran.folder / name for name in TASKS]
    assert call(monkeypatch, "predict", folders[1], stdin='{"text": "red dog sun now"}\n') == 0
    assert json.loads(capsys.readouterr().out)["predicted_label"] in TASKS["sky"]
    assert call(monkeypatch, "report", *folders, "-o", tmp_path / "page.html") == 0
    assert all(name in (tmp_path / "page.html").read_text() for name in TASKS)
    found = adapters_in(ran.folder)  # what --prompts-dir serves
    assert [path.name for path in found] == sorted(TASKS)
    engine = PromptEngine(shelved({path.name: path for path in found}))
    row = {"text": "red dog sun now"}
    answers = settle(engine, [engine.submit(Request(name, row)) for name in TASKS])
    for name, answer in zip(TASKS, answers, strict=True):
        alone = softprompt.Predictor(ran.folder / name).predict([row])[0]
        assert answer.prediction["label"] == alone["label"]
        assert answer.prediction["score"] == pytest.approx(alone["score"], abs=1e-5)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(encoder, mixed, tmp_path):
    asked = {"task_column": "task", "num_train_epochs": 3, "method": "deep_prompts"}
    softprompt.train(options(encoder, mixed, tmp_path / "whole", **asked), progress=False)
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(options(encoder, mixed, tmp_path / "out", **asked), callbacks=[StopAfter(2)], progress=False)
    assert not (tmp_path / "out" / "result.json").exists()
    softprompt.train(options(encoder, mixed, tmp_path / "out", **asked), resume=True, progress=False)
    for name in TASKS:
        once, twice = values(tmp_path / "whole" / name), values(tmp_path / "out" / name)
        assert once.keys() == twice.keys() and all(torch.equal(once[key], twice[key]) for key in once)
        infos = [json.loads((tmp_path / run / name / "result.json").read_text()) for run in ("whole", "out")]
        assert infos[0]["train_info"]["metrics"] == infos[1]["train_info"]["metrics"]
        assert infos[0]["train_info"]["test loss"] == infos[1]["train_info"]["test loss"]


def test_completions_of_several_tasks(tmp_path):
    backbone, file = save_backbone(tmp_path / "decoder", "decoder"), tmp_path / "mixed.jsonl"
    rows = [{**row, "task": "name"} for row in read_rows(write_completion(tmp_path / "c") / "train.jsonl").rows]
    rows += [{**row, "task": "other", "completion": "dog" if row["completion"] == "cat" else "cat"} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"task_column": "task", "method": "deep_prompts", "num_train_epochs": 12}
    result = softprompt.train(options(backbone, file, tmp_path / "run", **asked), progress=False)
    for name in ("name", "other"):
        info = json.loads((tmp_path / "run" / name / "result.json").read_text())["train_info"]
        assert info["test accuracy"] == result.metrics[f"{name}: test accuracy"]
        losses = [entry["eval_loss"] for entry in info["metrics"]]
        assert info["dev loss"] == pytest.approx(min(losses)) and min(losses) < 0.7 * losses[0]
        (written,) = softprompt.Predictor(tmp_path / "run" / name).predict([{"prompt": "red dog runs"}])
        assert isinstance(written["completion"], str)


def test_numbers_that_are_none_leave_the_last_good_prompts(encoder, mixed, tmp_path):
    chosen = options(encoder, mixed, tmp_path / "run", task_column="task", max_steps=2, learning_rate=1e30)
    with pytest.raises(NonFiniteError, match="The last good prompts are in the folders of"):
        softprompt.train(chosen, progress=False)
    assert not (tmp_path / "run" / "result.json").exists()
    for name in TASKS:
        assert all(value.isfinite().all() for value in values(tmp_path / "run" / name).values())


def test_patience_counts_the_mean_over_the_tasks(encoder, mixed, tmp_path):
    more = {"early_stopping_patience": 1, "learning_rate": 1e-9, "head_learning_rate": 1e-9, "num_train_epochs": 9}
    result = softprompt.train(options(encoder, mixed, tmp_path / "run", task_column="task", **more), progress=False)
    epochs = [entry for entry in result.document["train_info"]["metrics"] if "eval_loss" in entry]
    assert len(epochs) == 2  # nothing moves, so the second evaluation is no better


def test_prompts_start_alike(encoder: Path, mixed: Path, tmp_path: Path) -> None:
    run = check_together(options(encoder, mixed, tmp_path, task_column="task"))
    named = dict(attach(run.parts, 0).named_parameters())
    first = {name: value for name, value in named.items() if ".task000" in name and "softprompt" in name}
    assert first
    assert all(torch.equal(value, named[name.replace("task000", "task001")]) for name, value in first.items())
