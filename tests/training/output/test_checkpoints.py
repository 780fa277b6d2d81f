"""Resumption: bit for bit, from the newest checkpoint that is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import softprompt
from house.runs import At, StopAfter, StopAtSave, options, values
from softprompt import SoftPromptError
from softprompt.training.keys.options import RunOptions
from softprompt.training.output import checkpoints
from softprompt.training.output import folder as folders
from softprompt.training.output.checkpoints import fault_of, newest_checkpoint


def stop(_: Any) -> None:
    raise KeyboardInterrupt


# ---------------------------------------------------------------- disks and folders


def test_the_last_step_is_kept_where_the_best_checkpoint_is_gone_and_said(
    made_options: Callable[..., RunOptions], tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    def remove(_: Any) -> None:
        shutil.rmtree(tmp_path / "out")

    worst = {
        "metric_for_best_model": "loss",
        "greater_is_better": True,
    }  # training lowers it, so the first epoch is chosen
    result = softprompt.train(made_options(**worst), callbacks=[At(5, remove)])
    said = [line for line in announced() if line.startswith("the last step is kept")]
    assert said == ["the last step is kept, not checkpoint-3: that was the best checkpoint, but it is gone"]
    assert result.document["train_info"]["best_checkpoint_step"] == 6


# ---------------------------------------------------------------- torn files


@pytest.fixture(scope="module")
def stopped(encoder: Path, few_animals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that was stopped in its third, with two checkpoints; and the same run, whole."""
    place = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(_plain(encoder, few_animals, place / "out"), callbacks=[At(7, stop)])
    softprompt.train(_plain(encoder, few_animals, place / "whole"))
    assert not (place / "out" / folders.LOCK).exists()
    return place


def _plain(encoder: Path, animals: Path, output: Path) -> RunOptions:
    flat = {"backbone": str(encoder), "data": str(animals), "output_dir": str(output), "method": "prompt_tuning"}
    small = {"num_virtual_tokens": 4, "num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 0.05}
    return RunOptions.from_flat({**flat, **small, "max_length": 24, "dtype": "float32", "disable_tqdm": True})


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("how", ["half", "empty", "zeros"])
def test_resume_takes_the_older_checkpoint_where_the_newest_is_torn(
    stopped: Path,
    encoder: Path,
    few_animals: Path,
    tmp_path: Path,
    announced: Callable[[], list[str]],
    name: str,
    how: str,
) -> None:
    shutil.copytree(stopped / "out", tmp_path / "out")
    torn = tmp_path / "out" / "checkpoints" / "checkpoint-6" / name
    data = torn.read_bytes()
    torn.write_bytes({"half": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[how])
    newest = newest_checkpoint(tmp_path / "out" / "checkpoints")
    assert newest is not None and newest.endswith("checkpoint-3")
    assert f"resume skips checkpoint-6: it was not written to its end ({name} is damaged)" in announced()
    if how == "half":
        softprompt.train(_plain(encoder, few_animals, tmp_path / "out"), resume=True)
        whole = values(stopped / "whole")
        assert all(torch.equal(value, whole[key]) for key, value in values(tmp_path / "out").items())


def test_a_checkpoint_without_its_optimizer_is_torn(stopped: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-6"
    shutil.copytree(stopped / "out" / "checkpoints" / "checkpoint-6", checkpoint)
    assert fault_of(checkpoint) is None
    (checkpoint / "optimizer.pt").unlink()
    assert fault_of(checkpoint) == "optimizer.pt is missing"
    (checkpoint / "scheduler.pt").unlink()  # save_only_model=True writes neither
    assert fault_of(checkpoint) is None
    (checkpoint / "adapter_model.safetensors").unlink()
    assert "missing" in str(fault_of(checkpoint))


def test_a_run_that_was_moved_still_finds_its_best_checkpoint(
    stopped: Path, encoder: Path, few_animals: Path, tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    shutil.copytree(stopped / "out", tmp_path / "moved")
    checkpoints = tmp_path / "moved" / "checkpoints"
    path = checkpoints / "checkpoint-6" / "trainer_state.json"
    best = {"best_metric": 2.0, "best_global_step": 3, "best_model_checkpoint": "/gone/checkpoints/checkpoint-3"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **best}))
    chosen = values(checkpoints / "checkpoint-3")
    softprompt.train(_plain(encoder, few_animals, tmp_path / "moved"), resume=True)
    assert not any("the last step is kept" in line for line in announced())
    assert all(torch.equal(value, chosen[name]) for name, value in values(tmp_path / "moved").items())


@pytest.mark.parametrize("text", ["", '{"seed": ', "[]", "\0\0\0"])
def test_a_damaged_record_of_the_options_is_one_message(
    stopped: Path, encoder: Path, few_animals: Path, tmp_path: Path, text: str
) -> None:
    shutil.copytree(stopped / "out", tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text(text)
    with pytest.raises(SoftPromptError, match=r"run.json: not a record of settings: .*another folder"):
        softprompt.train(_plain(encoder, few_animals, tmp_path / "out"), resume=True)


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("method", ["prompt_tuning", "deep_prompts", "ept", "peft:p_tuning"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    method: str, encoder: Path, animals: Path, tmp_path: Path
) -> None:
    extra = {"rank": 2, "max_positions": 24, "learning_rates": {"low_rank": 0.01}} if method == "ept" else {}

    def chosen(name: str) -> RunOptions:
        return options(
            encoder, animals, tmp_path / name, method=method, num_train_epochs=4, save_total_limit=4, **extra
        )

    whole = softprompt.train(chosen("whole"))
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(chosen("cut"), callbacks=[StopAfter(2)])
    assert not (tmp_path / "cut" / "result.json").exists()
    torn = tmp_path / "cut" / "checkpoints" / "checkpoint-9999"  # a kill in the middle of writing the next one
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    resumed = softprompt.train(chosen("cut"), resume=True)
    last = f"checkpoint-{whole.document['train_info']['train_steps']}"
    for file in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt"):
        a, b = (tmp_path / name / "checkpoints" / last / file for name in ("whole", "cut"))
        if file.endswith(".safetensors"):
            one, two = load_file(a), load_file(b)
            assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        else:
            assert _equal(torch.load(a, weights_only=True), torch.load(b, weights_only=True))
    assert whole.metrics == resumed.metrics
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_finished_run_keeps_what_its_last_step_logged(encoder: Path, few_animals: Path, tmp_path: Path) -> None:
    """The epoch ends with the last step, whose checkpoint is written before the epoch logs its losses."""
    steps = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    asked = options(encoder, few_animals, tmp_path / "out", method="tsloss", share_every=2, test_limit=5, **steps)
    first = softprompt.train(asked).document
    again = softprompt.train(asked, resume=True).document
    infos = [document["train_info"] for document in (first, again)]
    assert infos[0]["mechanism"] == infos[1]["mechanism"] and "gradient_share" in infos[0]["mechanism"]
    learned = [[entry for entry in info["metrics"] if "loss" in entry] for info in infos]
    assert learned[0] == learned[1] and len(learned[0]) == 2  # the first one stands in the checkpoint, too
    assert again["meta_info"]["dataset_info"]["rows"]["test"] == 5


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def test_a_run_with_grouped_lengths_resumes_inside_an_epoch(encoder: Path, many: Path, tmp_path: Path) -> None:
    steps = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "steps")
    steps |= dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), 6)
    seen: dict[str, list[list[int]]] = {}

    def chosen(name: str) -> RunOptions:
        return options(encoder, many, tmp_path / name, **steps, max_steps=50)  # an epoch has 32

    class Note(TrainerCallback):
        """The rows of each step, read off the model's input."""

        def __init__(self, name: str):
            self.found = seen.setdefault(name, [])

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            def note(module: Any, given: Any, named: dict[str, Any]) -> None:
                if module.training:
                    self.found.append(named["input_ids"].flatten().tolist())

            kwargs["model"].register_forward_pre_hook(note, with_kwargs=True)

    whole = softprompt.train(chosen("whole"), callbacks=[Note("whole")])
    assert whole.document["run_info"]["train_config"].get("train_sampling_strategy") is None  # nobody asked for it
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(chosen("cut"), callbacks=[Note("cut"), StopAtSave(36)])
    resumed = softprompt.train(chosen("cut"), resume=True, callbacks=[Note("cut")])
    assert len(seen["whole"]) == 50 and seen["cut"] == seen["whole"]
    assert seen["whole"][:18] != seen["whole"][32:]  # the second epoch has an order of its own
    assert whole.metrics == resumed.metrics
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_output_folder_holds_one_run(encoder: Path, animals: Path, tmp_path: Path) -> None:
    softprompt.train(options(encoder, animals, tmp_path / "out", num_train_epochs=1))
    with pytest.raises(softprompt.SoftPromptError, match="is not empty; pass --resume"):
        softprompt.train(options(encoder, animals, tmp_path / "out", num_train_epochs=1))
    with pytest.raises(softprompt.SoftPromptError, match=r"other options \(num_virtual_tokens: 4 then, 5 now\)"):
        softprompt.train(
            options(encoder, animals, tmp_path / "out", num_train_epochs=1, num_virtual_tokens=5), resume=True
        )


def test_the_newest_checkpoint_is_that_of_the_latest_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("8", "16", "9", "20-old"):
        (tmp_path / f"checkpoint-{name}").mkdir()
    monkeypatch.setattr(checkpoints, "fault_of", lambda path: None)
    assert checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-16")
