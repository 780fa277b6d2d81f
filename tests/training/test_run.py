"""Runs of every method and kind of task; numbers that are none; what a run says."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

import softprompt
from house.runs import At, options, values
from house.tiny import save_backbone, write_completion
from softprompt import NonFiniteError, SoftPromptError
from softprompt.training.keys.options import RunOptions
from softprompt.training.output import outcome
from softprompt.training.prepare import prepare

# ---------------------------------------------------------------- numbers that are none


def test_a_run_that_diverges_in_its_last_step_is_no_success(
    made_options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteError, match=r"finite losses? .*lower learning_rate.*last good adapter is in"):
        softprompt.train(made_options(max_steps=2, learning_rate=1e30))
    assert not (tmp_path / "out" / "result.json").exists()
    assert all(value.isfinite().all() for value in values(tmp_path / "out").values())
    found = softprompt.Predictor(tmp_path / "out").predict([{"text": "red dog"}])
    assert math.isfinite(found[0]["score"])


def test_an_evaluation_that_is_not_finite_puts_the_last_finite_one_back(
    made_options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    good: list[torch.Tensor] = []

    def keep(model: Any) -> None:
        good.append(model.base_model.state.active_prompt()().prefix.detach().clone())

    def spoil(model: Any) -> None:
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "softprompt_prompts" in name).fill_(float("inf"))

    with pytest.raises(NonFiniteError, match="expected finite losses and scores in the evaluation at step 6"):
        softprompt.train(made_options(), callbacks=[At(5, keep), At(6, spoil)])
    prompt = next(value for name, value in values(tmp_path / "out").items() if "softprompt_prompts" in name)
    assert torch.equal(prompt, good[0])  # step 6 had a finite loss, computed with what step 5 left


def test_test_rows_that_are_not_finite_keep_the_chosen_adapter(
    made_options: Callable[..., RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = softprompt.training.run._evaluate, []

    def spoiled(trainer: Any, prepared: Any) -> Any:
        evaluate = trainer.evaluate

        def noted(rows: Any) -> Any:
            calls.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
            if rows is prepared.encoded["test"]:
                forward = softprompt.PooledClassifier.forward
                monkeypatch.setattr(softprompt.PooledClassifier, "forward", _times(forward, float("nan")))
            return evaluate(rows)

        monkeypatch.setattr(trainer, "evaluate", noted)
        return original(trainer, prepared)

    monkeypatch.setattr(softprompt.training.run, "_evaluate", spoiled)
    with pytest.raises(NonFiniteError, match="last good adapter is in"):
        softprompt.train(made_options())
    chosen = next(value for name, value in calls[0].items() if "softprompt_prompts" in name)
    saved = next(value for name, value in values(tmp_path / "out").items() if "softprompt_prompts" in name)
    assert torch.equal(chosen, saved) and not (tmp_path / "out" / "result.json").exists()
    assert len(calls) == 2


def _times(forward: Any, factor: float) -> Any:
    @functools.wraps(forward)
    def spoiled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * factor
        return output

    return spoiled


@pytest.mark.parametrize("how", ["objective", "recorder"])
def test_a_prompt_that_is_not_finite_under_topology_keeps_the_last_good_adapter(
    made_options: Callable[..., RunOptions], tmp_path: Path, how: str
) -> None:
    def spoil(model: Any) -> None:
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "softprompt_prompts" in name).fill_(float("nan"))

    more: dict[str, Any] = {"objectives": [{"name": "persistence"}]} if how == "objective" else {"track": "topology"}
    with pytest.raises(NonFiniteError, match=r"not finite|expected finite") as raised:
        softprompt.train(
            made_options(eval_strategy="no", save_strategy="no", load_best_model_at_end=False, **more),
            callbacks=[At(3, spoil)],
        )
    assert f"The last good adapter is in {tmp_path / 'out'}" in str(raised.value)
    assert all(value.isfinite().all() for value in values(tmp_path / "out").values())


# ---------------------------------------------------------------- arguments that do not fit


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"report_to": "foo"}, "unknown report_to 'foo': expected one of none, all"),
        ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, "You need to install `galore_torch`"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "One of min_lr or min_lr_rate should be set"),
        ({"dataloader_num_workers": -1}, "num_workers option should be non-negative"),
        ({"dataloader_persistent_workers": True}, "persistent_workers option needs num_workers > 0"),
        ({"per_device_eval_batch_size": 0}, "batch_size"),
        ({"use_liger_kernel": True}, "pip install liger-kernel"),
        ({"fsdp": True}, "only works in distributed training"),
        ({"batch_eval_metrics": True}, "TrainingArguments: When using `batch_eval_metrics`"),
        ({"save_strategy": "steps"}, "requires the save and eval strategy to match"),
        (
            {"metric_for_best_model": "f1"},
            "unknown metric_for_best_model 'f1': expected one of accuracy, balanced_accuracy, macro_f1, matthews_correlation, calibration_error, loss",
        ),
        ({"metric_for_best_model": "eval_acuracy"}, "Did you mean 'accuracy'?"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 99}, "leaves nothing of 24 training rows"),
        (
            {"eval_strategy": "no", "save_strategy": "no", "early_stopping_patience": 1},
            "early_stopping_patience=1 counts evaluations in training, and eval_strategy='no' has none",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_do_not_fit_are_one_line_and_leave_the_folder_free(
    made_options: Callable[..., RunOptions], tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(SoftPromptError, match=re.escape(message)) as raised:
        softprompt.train(made_options(**more))
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_without_checkpoints_the_last_step_is_kept_and_said(
    made_options: Callable[..., RunOptions], tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    for given in ({"save_strategy": "no"}, {"eval_strategy": "no"}):
        said = len(announced())
        softprompt.train(made_options(num_train_epochs=1, output_dir=str(tmp_path / "-".join(given)), **given))
        assert "the last step is kept, not the best: no checkpoints to choose from are saved" in str(announced()[said:])


def test_without_scores_the_loss_chooses(
    made_options: Callable[..., RunOptions], announced: Callable[[], list[str]]
) -> None:
    result = softprompt.train(made_options(prediction_loss_only=True))
    assert "metric_for_best_model=loss: prediction_loss_only=True leaves no scores of rows" in announced()
    assert "dev accuracy" not in result.metrics and result.document["train_info"]["beats_probe"] is None


def test_an_evaluation_takes_every_row_of_its_own_data_set(
    made_options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    """Trainer would drop the last batch here, too, and with persistent workers score the dev rows in place of the test rows."""
    more = {"dataloader_drop_last": True, "dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    plain = softprompt.train(
        made_options(output_dir=str(tmp_path / "plain"), num_train_epochs=1, per_device_eval_batch_size=16)
    )
    other = softprompt.train(made_options(**more, num_train_epochs=1, per_device_eval_batch_size=16))
    assert plain.metrics == other.metrics


def test_too_little_memory_is_one_message(made_options: Callable[..., RunOptions]) -> None:
    def full(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines")

    with pytest.raises(SoftPromptError, match=r"memory is too small .*2 GiB.\); lower per_device_train_batch_size"):
        softprompt.train(made_options(), callbacks=[At(2, full)])


# ---------------------------------------------------------------- what a run says


@pytest.mark.parametrize(("before", "beats"), [(1.0, False), (0.0, True)])
@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("probe", "the linear probe (dev accuracy {} against 1.000): take the probe"),
        ("zero_shot", "template and label words alone (dev accuracy {} against 1.000): take them as they are"),
    ],
)
def test_a_prompt_that_does_not_beat_what_was_there_before_is_said(
    made_options: Callable[..., RunOptions],
    announced: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    before: float,
    beats: bool,
    key: str,
    what: str,
) -> None:
    start = softprompt.training.run.start_head
    found = {"probe": {}, key: {"dev": {"accuracy": before}}}
    monkeypatch.setattr(softprompt.training.run, "start_head", lambda *args: replace(start(*args), **found))
    info = softprompt.train(made_options(num_train_epochs=1)).document["train_info"]
    assert info[f"beats_{key}"] is beats and 0 < info["dev accuracy"] <= 1
    said = [line for line in announced() if "the prompt did not beat" in line]
    start = f"the prompt did not beat {what.format(format(info['dev accuracy'], '.3f'))}"
    assert [line.startswith(start) for line in said] == ([] if beats else [True])


def test_a_run_without_a_probe_beats_none(
    made_options: Callable[..., RunOptions], announced: Callable[[], list[str]]
) -> None:
    result = softprompt.train(made_options(head_init="random", num_train_epochs=1))
    assert result.document["train_info"]["beats_probe"] is None
    assert not any("linear probe" in line for line in announced())


METHODS = [
    "prompt_tuning",
    "deep_prompts",
    "dept",
    "ept",
    "spt",
    "infoprompt",
    "tsloss",
    "ulpt",
    "contrast",
    "peft:prompt_tuning",
    "peft:p_tuning",
    "peft:prefix_tuning",
    "peft:lora",
    "peft:ia3",
]


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_every_method_trains_saves_and_predicts(
    method: str, encoder: Path, animals: Path, tmp_path: Path
) -> None:
    extra = {
        "ept": {"rank": 2, "max_positions": 24},
        "dept": {"rank": 2, "max_positions": 24},
        "spt": {"budget": 1, "bottleneck": 4},
        "peft:lora": {"r": 2},
    }.get(method, {})
    flat = {"method": method, **extra}
    base = options(encoder, animals, tmp_path / "out").to_flat()
    if method in ("peft:lora", "peft:ia3"):
        base.pop("num_virtual_tokens")
    result = softprompt.train(RunOptions.from_flat({**base, **flat, "output_dir": str(tmp_path / "out")}))
    info = result.document["train_info"]
    assert {"dev accuracy", "test accuracy", "train_time", "num_trainable_params", "file_size", "status"} <= info.keys()
    assert set(result.document) == {"run_info", "train_info", "meta_info"}
    assert info["file_size"] == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    of_run = result.document["run_info"]
    assert of_run["experiment_name"] == f"{method}/{animals.name}-all-{of_run['train_config']['seed']}"
    if method == "peft:lora":
        assert of_run["peft_config"]["target_modules"] == sorted(of_run["peft_config"]["target_modules"])
    assert (
        json.loads((tmp_path / "out" / "result.json").read_text())["train_info"]["test accuracy"]
        == info["test accuracy"]
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import softprompt" in card and "library_name: peft" in card
    predictor = softprompt.Predictor(tmp_path / "out")
    task = softprompt.load_task(animals)
    assert predictor.evaluate(task.test)["accuracy"] == pytest.approx(info["test accuracy"])
    found = predictor.predict([{"text": "red dog runs"}, {"text": "blue cat sits now"}])
    assert [sum(row["scores"].values()) for row in found] == pytest.approx([1.0, 1.0])
    assert found[0]["label"] in ("bird", "cat", "dog")


def test_a_run_learns(animals: Path, encoder: Path, tmp_path: Path) -> None:
    result = softprompt.train(
        options(encoder, animals, tmp_path / "out", head_init="random", head_learning_rate=0.05, num_train_epochs=12)
    )
    assert result.metrics["dev accuracy"] > 0.6  # chance is 1/3


def test_two_runs_give_the_same_result_up_to_time(encoder: Path, animals: Path, tmp_path: Path) -> None:
    documents = [
        softprompt.train(options(encoder, animals, tmp_path / name, method="ept", rank=2, max_positions=24)).document
        for name in "ab"
    ]
    for document in documents:
        for section, keys in (("run_info", ("created_at", "total_time")), ("train_info", ("train_time",))):
            for key in keys:
                document[section].pop(key)
        document["run_info"]["train_config"].pop("output_dir")
        for entry in document["train_info"]["metrics"]:
            for key in [k for k in entry if "runtime" in k or "per_second" in k]:
                entry.pop(key)
    assert documents[0] == documents[1]
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "b" / "adapter_model.safetensors"
    ).read_bytes()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_values(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    original = softprompt.PooledClassifier.forward

    @functools.wraps(original)  # Trainer reads the signature
    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        if self.training:
            seen.append({n: p.detach().clone() for n, p in self.named_parameters() if p.requires_grad})
            if len(seen) == 4:
                output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(softprompt.PooledClassifier, "forward", poisoned)
    with pytest.raises(
        softprompt.NonFiniteError,
        match=r"expected a finite loss, got nan at step 4 .*lower learning_rate.*last good adapter is in",
    ):
        softprompt.train(options(encoder, animals, tmp_path / "out"))
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    good = seen[2]  # the values whose loss was finite at step 3
    prompt = next(value for name, value in good.items() if name.endswith("embedding"))
    assert torch.equal(saved["base_model.model.softprompt.softprompt_prompts.embedding"], prompt)
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize("given", [None, ""])
def test_a_metric_of_null_is_none_given(given: str | None, encoder: Path, animals: Path, tmp_path: Path) -> None:
    """Trainer made it the highest loss."""
    run = softprompt.train(options(encoder, animals, tmp_path / "out", metric_for_best_model=given, num_train_epochs=1))
    assert run.document["train_info"]["metric_for_best_model"] == "accuracy"


# ---------------------------------------------------------------- the last step beside the chosen


# the checkpoint with the highest loss is chosen, so that it is not the last one
WORST = {"metric_for_best_model": "loss", "greater_is_better": True, "num_train_epochs": 3, "learning_rate": 0.02}


@pytest.mark.parametrize(
    "more",
    [{}, {"head_fit": "probe"}, {"method": "peft:p_tuning"}, {"method": "spt", "budget": 1, "bottleneck": 4}],
    ids=["prompt_tuning", "fitted head", "p_tuning", "spt"],
)
def test_the_last_step_is_scored_beside_the_chosen_one(
    more: dict[str, Any], encoder: Path, animals: Path, tmp_path: Path
) -> None:
    """Against a run that keeps its last step; and the chosen checkpoint, its scores and the log stay what they were."""

    def run(name: str, **extra: Any) -> softprompt.training.RunResult:
        return softprompt.train(options(encoder, animals, tmp_path / name, **WORST, **more, **extra), progress=False)

    both, chosen, last = run("both", score_last=True), run("chosen"), run("last", load_best_model_at_end=False)
    info = both.document["train_info"]
    assert info["best_checkpoint_step"] < info["train_steps"]
    assert info["last"] == last.metrics and info["last"].keys() == both.metrics.keys()
    assert info["last"] != both.metrics == chosen.metrics
    assert "last" not in chosen.document["train_info"]
    assert len(info["metrics"]) == len(chosen.document["train_info"]["metrics"])
    kept, alone = values(tmp_path / "both"), values(tmp_path / "chosen")
    assert all(torch.equal(value, alone[name]) for name, value in kept.items())


def test_where_the_last_step_is_the_chosen_one_it_is_not_scored_twice(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []
    original = softprompt.PromptTrainer.evaluation_loop
    monkeypatch.setattr(
        softprompt.PromptTrainer,
        "evaluation_loop",
        lambda *args, **kwargs: passes.append("") or original(*args, **kwargs),
    )
    result = softprompt.train(
        options(encoder, animals, tmp_path / "out", score_last=True, num_train_epochs=1), progress=False
    )
    assert result.document["train_info"]["last"] == result.metrics
    assert len(passes) == 3  # in training, and of the dev and the test rows after it


def test_what_is_generated_is_not_scored_for_the_last_step(tmp_path: Path) -> None:
    decoder, data = save_backbone(tmp_path / "decoder", "decoder"), write_completion(tmp_path / "data")
    result = softprompt.train(options(decoder, data, tmp_path / "out", score_last=True, **WORST), progress=False)
    last = result.document["train_info"]["last"]
    assert last.keys() == {"dev loss", "test loss"} and "test accuracy" in result.metrics
    assert last["dev loss"] < result.metrics["dev loss"]


def test_the_step_of_a_best_score_without_a_checkpoint_is_not_reported(
    encoder: Path, animals: Path, tmp_path: Path
) -> None:
    """Scores are taken after each step, checkpoints written after every third: the chosen one is among these."""
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    result = softprompt.train(
        options(encoder, animals, tmp_path / "out", score_last=True, **{**WORST, **every}), progress=False
    )
    info = result.document["train_info"]
    losses = {entry["step"]: entry["eval_loss"] for entry in info["metrics"][:-2] if "eval_loss" in entry}
    assert max(losses, key=losses.__getitem__) % 3 and info["best_checkpoint_step"] in (3, 6)
    assert result.metrics["dev loss"] == pytest.approx(losses[info["best_checkpoint_step"]])
    assert (info["last"] == result.metrics) == (info["best_checkpoint_step"] == 6)


# ---------------------------------------------------------------- other heads and tasks


@torch.no_grad()
def row_by_row(model: Any, row: dict[str, Any]) -> int:
    """The class that a bare model gives one row, without a neighbour and without padding."""
    return int(model.eval()(**{key: torch.tensor([row[key]]) for key in row if key != "labels"}).logits.argmax())


@pytest.mark.parametrize(
    "kind, end, place", [("encoder", " .", None), ("decoder", "", "next"), ("encoder_decoder", "", "first")]
)
def test_a_run_with_label_words_on_each_kind_of_language_model(
    kind: str, end: str, place: str | None, animals: Path, tmp_path: Path
) -> None:
    words = {"dog": "red", "cat": "green", "bird": "blue"}
    chosen = options(
        save_backbone(tmp_path / kind, kind),
        animals,
        tmp_path / "out",
        head="verbalizer",
        template="{text} . It was {mask}" + end,
        label_words=words,
        method="deep_prompts",
        num_virtual_tokens=8,
        num_train_epochs=6,
        learning_rate=0.3,
    )
    result = softprompt.train(chosen)
    losses = [entry["loss"] for entry in result.document["train_info"]["metrics"] if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    predictor = softprompt.Predictor(tmp_path / "out")
    assert predictor.evaluate(softprompt.load_task(animals).test)["accuracy"] == pytest.approx(
        result.metrics["test accuracy"]
    )
    assert predictor.card.verbalizer.get("place") == place
    prepared = prepare(chosen)
    for split, score in result.document["train_info"]["zero_shot"].items():
        alone = [row_by_row(prepared.model, row) for row in prepared.encoded[split].to_list()]
        assert score == pytest.approx(np.mean(np.equal(alone, prepared.encoded[split]["labels"])))
    assert list(result.document["train_info"]["zero_shot"]) == ["dev", "test"]
    predictor.predict([{"text": "a [MASK]"}] if place else [{"text": "a"}])  # where no mask is read it is a word
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert list(saved) == [
        "base_model.model.softprompt.softprompt_prompts.embedding"
    ]  # nothing of the language model moves


def test_label_words_need_a_language_model(animals: Path, tmp_path: Path) -> None:
    words = {"dog": "red", "cat": "green", "bird": "blue"}
    more = {"head": "verbalizer", "template": "{text} {mask}", "label_words": words}
    folder = save_backbone(tmp_path / "encoder")
    BertModel.from_pretrained(folder).save_pretrained(folder)  # as sentence encoders come: without the head
    with pytest.raises(SoftPromptError, match=r"holds no weights of a language model's head \(cls\.predictions"):
        softprompt.train(options(folder, animals, tmp_path / "out", **more))
    softprompt.train(
        options(save_backbone(tmp_path / "decoder", "decoder"), animals, tmp_path / "run", max_steps=1, **more)
    )
    with pytest.raises(
        SoftPromptError, match=r"says words at place='mask', and the card's label words are read at place='next'"
    ):
        softprompt.Predictor(tmp_path / "run", backbone=str(save_backbone(tmp_path / "masked")))


# ---------------------------------------------------------------- loading


def test_class_labels_start_a_prompt_without_being_named(encoder: Path, animals: Path, tmp_path: Path) -> None:
    result = softprompt.train(options(encoder, animals, tmp_path / "out", init="labels", num_train_epochs=1))
    assert result.document["run_info"]["peft_config"]["init_text"] == ["bird", "cat", "dog"]


def test_as_good_as_its_probe_is_not_better(announced: Callable[[], list[str]]) -> None:
    assert outcome._beats("it", "take it", {"dev": {"f1": 0.5}}, ["f1"], {"dev f1": 0.5}) is False
    assert announced()[0].startswith("the prompt did not beat it (dev f1 0.500 against 0.500): take it")


@pytest.mark.parametrize(
    ("chosen_by", "kept", "beats"),
    [
        ("accuracy", "accuracy", False),
        ("macro_f1", "macro_f1", True),
        ("calibration_error", "calibration_error", True),  # lower is better
        ("loss", "accuracy", False),  # which the probe has not
        ("mine", "accuracy", False),
        (None, "accuracy", False),
    ],
)
def test_a_probe_is_beaten_by_the_score_that_chose_the_checkpoint(
    chosen_by: str | None, kept: str, beats: bool, announced: Callable[[], list[str]]
) -> None:
    before = {"dev": {"accuracy": 0.8, "macro_f1": 0.5, "calibration_error": 0.3}}
    metrics = {"dev accuracy": 0.7, "dev macro_f1": 0.6, "dev calibration_error": 0.2, "dev loss": 0.1, "dev mine": 1.0}
    assert outcome._beats("it", "take it", before, [chosen_by, "accuracy"], metrics) is beats
    metrics[f"dev {kept}"] = before["dev"][kept] + (0.1 if kept == "calibration_error" else -0.1)
    assert outcome._beats("it", "take it", before, [chosen_by, "accuracy"], metrics) is False
    assert f"the prompt did not beat it (dev {kept} {metrics[f'dev {kept}']:.3f} against" in announced()[-1]


def test_a_run_that_calibration_chose_is_held_against_the_calibration_of_its_probe(
    made_options: Callable[..., RunOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, probes = softprompt.training.run.start_head, []

    def started(*args: Any) -> Any:
        probes.append(start(*args))
        return probes[-1]

    monkeypatch.setattr(softprompt.training.run, "start_head", started)
    chosen = made_options(metric_for_best_model="calibration_error", num_train_epochs=1)
    info = softprompt.train(chosen).document["train_info"]
    probe = probes[0].probe
    assert info["beats_probe"] is (info["dev calibration_error"] < probe["dev"]["calibration_error"])
    assert info["probe"] == {split: scores["accuracy"] for split, scores in probe.items()}
