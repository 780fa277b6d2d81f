"""A run never lies and loses nothing: one run per folder, numbers that are finite, checkpoints that are whole, one message."""

from __future__ import annotations

import errno
import functools
import io
import json
import logging
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import TrainerCallback

import softprompt
from softprompt import NonFiniteError, SoftPromptError
from softprompt._files import to_json, write_json, write_text
from softprompt.cli.progress import Progress
from softprompt.models.probe import fit_probe
from softprompt.topology import persistence
from softprompt.training import folder as folders
from softprompt.training.checkpoints import fault_of, newest_checkpoint
from softprompt.training.options import RunOptions
from test_cli import call
from tiny import save_backbone, write_classification


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classification(tmp_path_factory.mktemp("animals"), rows=24)


@pytest.fixture
def make(encoder: Path, animals: Path, tmp_path: Path) -> Callable[..., RunOptions]:
    """Options of a run of three steps an epoch into tmp_path/out."""

    def options(**more: Any) -> RunOptions:
        flat = {
            "backbone": str(encoder),
            "data": str(animals),
            "output_dir": str(tmp_path / "out"),
            "method": "prompt_tuning",
            "num_virtual_tokens": 4,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.05,
            "max_length": 24,
            "dtype": "float32",
            "disable_tqdm": True,
        }
        return RunOptions.from_flat({**flat, **more})

    return options


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, act: Callable[[Any], None]):
        self.step, self.act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.act(kwargs["model"])


def stop(_: Any) -> None:
    raise KeyboardInterrupt


def strict(text: str) -> Any:
    """Read JSON as other languages do: without NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


# ---------------------------------------------------------------- one run in a folder


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_folder_is_refused_before_any_work(
    make: Callable[..., RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    first, gather = [], softprompt.training.check.gather

    def gathered(options: RunOptions, *more: Any) -> Any:  # the first run is still reading its data
        if not first:
            first.append("")
            with pytest.raises(SoftPromptError) as refused:
                softprompt.train(make(seed=2), resume=resume)
            first[0] = str(refused.value)
        return gather(options, *more)

    monkeypatch.setattr(softprompt.training.check, "gather", gathered)
    result = softprompt.train(make(num_train_epochs=1), resume=resume)
    assert f"--output '{tmp_path / 'out'}': another run is at work there" in first[0]
    assert result.document["run_info"]["train_config"]["seed"] == make().seed
    assert not list((tmp_path / "out").glob(".*"))  # neither lock nor probe is left


def test_a_lock_file_that_a_kill_left_is_no_obstacle(make: Callable[..., RunOptions], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / folders.LOCK).touch()
    softprompt.train(make(num_train_epochs=1))
    assert not (tmp_path / "out" / folders.LOCK).exists()


def test_only_the_first_process_of_a_launcher_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folders.only_run(tmp_path / "out"):
        monkeypatch.setenv("RANK", "1")
        with folders.only_run(tmp_path / "out"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(SoftPromptError, match="another run is at work"), folders.only_run(tmp_path / "out"):
            pass


def test_a_mistake_leaves_no_folder_and_no_lock(make: Callable[..., RunOptions], tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError):
        softprompt.train(make(data=str(tmp_path / "nowhere"), output_dir=str(tmp_path / "a" / "b")))
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(SoftPromptError):
        softprompt.train(make(data=str(tmp_path / "nowhere"), output_dir=str(tmp_path / "mine")))
    assert not any((tmp_path / "mine").iterdir())
    with FileLock(tmp_path / "mine" / folders.LOCK, timeout=0):
        pass


# ---------------------------------------------------------------- numbers that are none


def values(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_run_that_diverges_in_its_last_step_is_no_success(make: Callable[..., RunOptions], tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"finite losses? .*lower learning_rate.*last good adapter is in"):
        softprompt.train(make(max_steps=2, learning_rate=1e30))
    assert not (tmp_path / "out" / "result.json").exists()
    assert all(value.isfinite().all() for value in values(tmp_path / "out").values())
    found = softprompt.Predictor(tmp_path / "out").predict([{"text": "red dog"}])
    assert math.isfinite(found[0]["score"])


def test_an_evaluation_that_is_not_finite_puts_the_last_finite_one_back(
    make: Callable[..., RunOptions], tmp_path: Path
) -> None:
    good: list[torch.Tensor] = []

    def keep(model: Any) -> None:
        good.append(model.base_model.state.active_prompt()().prefix.detach().clone())

    def spoil(model: Any) -> None:
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "softprompt_prompts" in name).fill_(float("inf"))

    with pytest.raises(NonFiniteError, match="expected finite losses and scores in the evaluation at step 6"):
        softprompt.train(make(), callbacks=[At(5, keep), At(6, spoil)])
    prompt = next(value for name, value in values(tmp_path / "out").items() if "softprompt_prompts" in name)
    assert torch.equal(prompt, good[0])  # step 6 had a finite loss, computed with what step 5 left


def test_test_rows_that_are_not_finite_keep_the_chosen_adapter(
    make: Callable[..., RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = softprompt.training.run._evaluate, []

    def spoiled(trainer: Any, rows: Any) -> Any:
        calls.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
        if len(calls) == 2:
            forward = trainer.model.forward
            monkeypatch.setattr(
                softprompt.PooledClassifier, "forward", _times(softprompt.PooledClassifier.forward, float("nan"))
            )
            assert forward is not None
        return original(trainer, rows)

    monkeypatch.setattr(softprompt.training.run, "_evaluate", spoiled)
    with pytest.raises(NonFiniteError, match="last good adapter is in"):
        softprompt.train(make())
    chosen = next(value for name, value in calls[0].items() if "softprompt_prompts" in name)
    saved = next(value for name, value in values(tmp_path / "out").items() if "softprompt_prompts" in name)
    assert torch.equal(chosen, saved) and not (tmp_path / "out" / "result.json").exists()


def _times(forward: Any, factor: float) -> Any:
    @functools.wraps(forward)
    def spoiled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * factor
        return output

    return spoiled


@pytest.mark.parametrize("how", ["objective", "recorder"])
def test_a_prompt_that_is_not_finite_under_topology_keeps_the_last_good_adapter(
    make: Callable[..., RunOptions], tmp_path: Path, how: str
) -> None:
    def spoil(model: Any) -> None:
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "softprompt_prompts" in name).fill_(float("nan"))

    more: dict[str, Any] = {"objectives": [{"name": "persistence"}]} if how == "objective" else {"track": "topology"}
    with pytest.raises(NonFiniteError, match=r"not finite|expected finite") as raised:
        softprompt.train(
            make(eval_strategy="no", save_strategy="no", load_best_model_at_end=False, **more), callbacks=[At(3, spoil)]
        )
    assert f"The last good adapter is in {tmp_path / 'out'}" in str(raised.value)
    assert all(value.isfinite().all() for value in values(tmp_path / "out").values())


def test_points_that_are_not_finite_are_of_their_own_kind() -> None:
    with pytest.raises(NonFiniteError):
        persistence(torch.full((3, 2), float("nan")))


def test_json_has_no_nan(tmp_path: Path) -> None:
    document = {
        "a": float("nan"),
        "b": [1.5, float("inf"), {"c": (-float("inf"), 2)}],
        "d": "NaN",
        "e": np.float64("nan"),
    }
    assert strict(to_json(document)) == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN", "e": None}
    write_json(tmp_path / "x.json", document)
    assert strict((tmp_path / "x.json").read_text())["a"] is None


# ---------------------------------------------------------------- half precision


def test_a_feature_without_spread_has_no_weight_in_the_probe() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(size=(60, 8)).astype(np.float32) + labels[:, None]
    alone, bias = fit_probe(features, labels, 3)
    dead = np.concatenate([features, rng.normal(size=(60, 1)) * 1e-32, 5 + rng.normal(size=(60, 1)) * 1e-8], 1)
    weight, dead_bias = fit_probe(dead, labels, 3)
    assert torch.equal(weight[:, 8:], torch.zeros(3, 2))
    shared = torch.tensor(dead, dtype=torch.float32) @ weight.T + dead_bias
    assert (shared.argmax(1) == (torch.tensor(features, dtype=torch.float32) @ alone.T + bias).argmax(1)).all()
    assert weight.abs().max() < 10


def test_states_that_are_not_finite_have_no_probe() -> None:
    features = np.ones((4, 2))
    features[1, 1] = np.nan
    with pytest.raises(NonFiniteError, match="states of the training rows"):
        fit_probe(features, np.array([0, 1, 0, 1]), 2)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_probe_of_the_embedded_encoder_fits_float16_and_trains(tmp_path: Path, dtype: str) -> None:
    """Two of its features are 1e-32: in float32 their weights were 1e30."""
    flat = {"data": "messages", "method": "prompt_tuning", "shots": 16, "dtype": dtype, "test_limit": 8}
    small = {"max_steps": 2, "num_virtual_tokens": 4, "max_length": 32, "use_cpu": True, "disable_tqdm": True}
    result = softprompt.train(RunOptions.from_flat({**flat, **small, "output_dir": str(tmp_path / "out")}))
    head = next(value for name, value in values(tmp_path / "out").items() if name.endswith("classifier.weight"))
    assert head.half().isfinite().all() and math.isfinite(result.metrics["dev loss"])
    assert result.document["meta_info"]["model_info"]["dtype"] == dtype


# ---------------------------------------------------------------- disks and folders


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(
    make: Callable[..., RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softprompt.training.check, "gather", lambda *args: pytest.fail("work began"))
    (tmp_path / "afile").touch()
    for output in (tmp_path / "afile" / "x", Path("/proc/softprompt/x")):
        with pytest.raises(SoftPromptError, match=f"--output '{output}' cannot be written to"):
            softprompt.train(make(output_dir=str(output)))
    with pytest.raises(SoftPromptError, match="is a file; expected a folder"):
        softprompt.train(make(output_dir=str(tmp_path / "afile")))
    original = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name.startswith(folders.LOCK):
            original(self, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return original(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SoftPromptError, match=r"cannot be written to .*No space left.*free space"):
        softprompt.train(make())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("which", ["trainer_state.json", "optimizer.pt", "adapter_model.safetensors"])
def test_a_disk_that_fills_up_is_one_message_and_the_run_goes_on_from_there(
    make: Callable[..., RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    whole = softprompt.train(make(output_dir=str(tmp_path / "whole")))
    from transformers import Trainer, TrainerState

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def torch_full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    with monkeypatch.context() as patch:
        steps: list[int] = []
        original = Trainer._save_checkpoint

        def second(self: Any, *args: Any, **kwargs: Any) -> None:
            steps.append(self.state.global_step)
            if len(steps) == 2:
                if which == "trainer_state.json":
                    patch.setattr(TrainerState, "save_to_json", full)
                elif which == "optimizer.pt":
                    patch.setattr(torch, "save", torch_full)
                else:
                    patch.setattr(Trainer, "_save", full)
            original(self, *args, **kwargs)

        patch.setattr(Trainer, "_save_checkpoint", second)
        with pytest.raises(SoftPromptError, match=r"could not be written .*go on with --resume"):
            softprompt.train(make())
    result = softprompt.train(make(), resume=True)
    assert result.metrics == whole.metrics
    assert all(torch.equal(value, values(tmp_path / "out")[name]) for name, value in values(tmp_path / "whole").items())


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "before")
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (self.touch(), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        write_text(tmp_path / "a.txt", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "before"


@pytest.mark.parametrize("more", [{}, {"track": "topology"}, {"method": "spt", "budget": 1, "num_virtual_tokens": 2}])
@pytest.mark.parametrize("step", [2, 5])
def test_a_folder_that_is_removed_in_training_is_whole_at_the_end(
    make: Callable[..., RunOptions], tmp_path: Path, announced: Callable[[], list[str]], more: dict[str, Any], step: int
) -> None:
    out = tmp_path / "out"
    removed: list[int] = []

    def remove(_: Any) -> None:
        removed.append(step)
        shutil.rmtree(out)

    result = softprompt.train(make(**more), callbacks=[At(step, remove)])
    assert removed and {p.name for p in out.iterdir()} >= {
        *("run.json", "result.json", "task.json", "README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    assert any("was removed while the run was at work" in line for line in announced())
    assert softprompt.Predictor(out).evaluate(softprompt.load_task(make().data).test)["accuracy"] == pytest.approx(
        result.metrics["test accuracy"]
    )


def test_the_last_step_is_kept_where_the_best_checkpoint_is_gone_and_said(
    make: Callable[..., RunOptions], tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    def remove(_: Any) -> None:
        shutil.rmtree(tmp_path / "out")

    more = {"learning_rate": 1e-9, "head_learning_rate": 1e-9}  # no epoch beats the first
    result = softprompt.train(make(**more), callbacks=[At(5, remove)])
    assert "the last step is kept, not checkpoint-3: that was the best checkpoint, but it is gone" in announced()
    assert result.document["train_info"]["best_checkpoint_step"] == 6


# ---------------------------------------------------------------- torn files


@pytest.fixture(scope="module")
def stopped(encoder: Path, animals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that was stopped in its third, with two checkpoints; and the same run, whole."""
    place = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(_plain(encoder, animals, place / "out"), callbacks=[At(7, stop)])
    softprompt.train(_plain(encoder, animals, place / "whole"))
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
    stopped: Path, encoder: Path, animals: Path, tmp_path: Path, announced: Callable[[], list[str]], name: str, how: str
) -> None:
    shutil.copytree(stopped / "out", tmp_path / "out")
    torn = tmp_path / "out" / "checkpoints" / "checkpoint-6" / name
    data = torn.read_bytes()
    torn.write_bytes({"half": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[how])
    newest = newest_checkpoint(tmp_path / "out" / "checkpoints")
    assert newest is not None and newest.endswith("checkpoint-3")
    assert f"resume skips checkpoint-6: it was not written to its end ({name} is damaged)" in announced()
    if how == "half":
        softprompt.train(_plain(encoder, animals, tmp_path / "out"), resume=True)
        whole = values(stopped / "whole")
        assert all(torch.equal(value, whole[key]) for key, value in values(tmp_path / "out").items())


def test_a_checkpoint_without_its_optimizer_is_torn(stopped: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-6"
    shutil.copytree(stopped / "out" / "checkpoints" / "checkpoint-6", checkpoint)
    assert fault_of(checkpoint) is None
    (checkpoint / "optimizer.pt").unlink()
    assert fault_of(checkpoint) == "optimizer.pt is missing"
    (checkpoint / "adapter_model.safetensors").unlink()
    assert "missing" in str(fault_of(checkpoint))


def test_a_run_that_was_moved_still_finds_its_best_checkpoint(
    stopped: Path, encoder: Path, animals: Path, tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    shutil.copytree(stopped / "out", tmp_path / "moved")
    checkpoints = tmp_path / "moved" / "checkpoints"
    path = checkpoints / "checkpoint-6" / "trainer_state.json"
    best = {"best_metric": 2.0, "best_global_step": 3, "best_model_checkpoint": "/gone/checkpoints/checkpoint-3"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **best}))
    chosen = values(checkpoints / "checkpoint-3")
    softprompt.train(_plain(encoder, animals, tmp_path / "moved"), resume=True)
    assert not any("the last step is kept" in line for line in announced())
    assert all(torch.equal(value, chosen[name]) for name, value in values(tmp_path / "moved").items())


@pytest.mark.parametrize("text", ["", '{"seed": ', "[]", "\0\0\0"])
def test_a_damaged_record_of_the_options_is_one_message(
    stopped: Path, encoder: Path, animals: Path, tmp_path: Path, text: str
) -> None:
    shutil.copytree(stopped / "out", tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text(text)
    with pytest.raises(SoftPromptError, match=r"run.json: expected a JSON .*another folder"):
        softprompt.train(_plain(encoder, animals, tmp_path / "out"), resume=True)


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
            "unknown metric_for_best_model 'f1': expected one of accuracy, balanced_accuracy, macro_f1, loss",
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
    make: Callable[..., RunOptions], tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(SoftPromptError, match=re.escape(message)) as raised:
        softprompt.train(make(**more))
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_without_checkpoints_the_last_step_is_kept_and_said(
    make: Callable[..., RunOptions], tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    softprompt.train(make(save_strategy="no", num_train_epochs=1))
    assert "the last step is kept, not the best: save_strategy=no leaves no checkpoints to choose from" in announced()


def test_without_scores_the_loss_chooses(make: Callable[..., RunOptions], announced: Callable[[], list[str]]) -> None:
    result = softprompt.train(make(prediction_loss_only=True))
    assert "metric_for_best_model=loss: prediction_loss_only=True leaves no scores of rows" in announced()
    assert "dev accuracy" not in result.metrics and result.document["train_info"]["beats_probe"] is None


def test_an_evaluation_takes_every_row_of_its_own_data_set(make: Callable[..., RunOptions], tmp_path: Path) -> None:
    """Trainer would drop the last batch here, too, and with persistent workers score the dev rows in place of the test rows."""
    more = {"dataloader_drop_last": True, "dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    plain = softprompt.train(
        make(output_dir=str(tmp_path / "plain"), num_train_epochs=1, per_device_eval_batch_size=16)
    )
    other = softprompt.train(make(**more, num_train_epochs=1, per_device_eval_batch_size=16))
    assert plain.metrics == other.metrics


def test_too_little_memory_is_one_message(make: Callable[..., RunOptions]) -> None:
    def full(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines")

    with pytest.raises(SoftPromptError, match=r"memory is too small .*2 GiB.\); lower per_device_train_batch_size"):
        softprompt.train(make(), callbacks=[At(2, full)])


# ---------------------------------------------------------------- what a run says


@pytest.mark.parametrize(("probe", "beats"), [(1.0, False), (0.0, True)])
def test_a_prompt_that_does_not_beat_its_probe_is_said(
    make: Callable[..., RunOptions],
    announced: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    probe: float,
    beats: bool,
) -> None:
    start = softprompt.training.run.start_head
    monkeypatch.setattr(
        softprompt.training.run, "start_head", lambda *args: replace(start(*args), probe={"dev": probe})
    )
    info = softprompt.train(make(num_train_epochs=1)).document["train_info"]
    assert info["beats_probe"] is beats and 0 < info["dev accuracy"] <= 1
    said = [line for line in announced() if "did not beat the linear probe" in line]
    start = f"the prompt did not beat the linear probe (dev {info['dev accuracy']:.3f} against 1.000): take the probe"
    assert [line.startswith(start) for line in said] == ([] if beats else [True])


def test_a_run_without_a_probe_beats_none(make: Callable[..., RunOptions], announced: Callable[[], list[str]]) -> None:
    result = softprompt.train(make(head_init="random", num_train_epochs=1))
    assert result.document["train_info"]["beats_probe"] is None
    assert not any("linear probe" in line for line in announced())


def test_the_bar_ends_with_the_scores_of_the_adapter_that_was_kept(
    make: Callable[..., RunOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress() as progress:
        result = softprompt.train(make(), callbacks=[progress.callback], progress=False, report=progress.report)
        notes = [task.fields["note"] for task in progress.bar.tasks]
        dev = [e["eval_accuracy"] for e in result.document["train_info"]["metrics"] if "eval_accuracy" in e]
        assert notes == [f"dev {dev[1]:.3f}"]  # of the last epoch: rows of the test evaluation are not dev rows
        progress.finish(result.metrics)
        accuracy = result.metrics["dev accuracy"], result.metrics["test accuracy"]
        assert progress.bar.tasks[0].fields["note"] == "dev {:.3f}, test {:.3f}".format(*accuracy)


def test_a_bar_without_work_draws_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress():
        pass
    assert capsys.readouterr().err == ""


def test_announcements_and_errors_are_plain_lines(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    words = ("train", "--backbone", encoder, "--data", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert call(monkeypatch, *words, "--method", "prompt_tuning") == 2
    lines = capsys.readouterr().err.split("\n")
    assert lines[-1] == "" and all(line and line == line.rstrip() for line in lines[:-1])
    assert [line for line in lines if line.startswith("error: ")] == [lines[-2]]
    assert any(re.match(r"dtype=\w+: .{30,}", line) and len(line) > 40 for line in lines), lines
    logging.getLogger("softprompt").handlers, logging.getLogger("softprompt").propagate = [], True


def test_an_error_of_the_system_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from softprompt.cli import app

    def fails() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.json")

    monkeypatch.setattr(app, "app", fails)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert call(monkeypatch, "methods") == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'x.json'\n"
