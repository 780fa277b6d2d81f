"""One run in a folder, on disks that fill up and folders that vanish."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError

import softprompt
from house.runs import At, values
from softprompt import SoftPromptError
from softprompt.training.keys.options import RunOptions
from softprompt.training.output import folder as folders

# ---------------------------------------------------------------- one run in a folder


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_folder_is_refused_before_any_work(
    made_options: Callable[..., RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    first, gather = [], softprompt.training.check.gather

    def gathered(options: RunOptions, *more: Any) -> Any:  # the first run is still reading its data
        if not first:
            first.append("")
            with pytest.raises(SoftPromptError) as refused:
                softprompt.train(made_options(seed=2), resume=resume)
            first[0] = str(refused.value)
        return gather(options, *more)

    monkeypatch.setattr(softprompt.training.check, "gather", gathered)
    result = softprompt.train(made_options(num_train_epochs=1), resume=resume)
    assert f"--output '{tmp_path / 'out'}': another run is at work there" in first[0]
    assert result.document["run_info"]["train_config"]["seed"] == made_options().seed
    assert not list((tmp_path / "out").glob(".*"))  # neither lock nor probe is left


def test_a_lock_file_that_a_kill_left_is_no_obstacle(made_options: Callable[..., RunOptions], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / folders.LOCK).touch()
    softprompt.train(made_options(num_train_epochs=1))
    assert not (tmp_path / "out" / folders.LOCK).exists()


def test_only_the_first_process_of_a_launcher_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folders.only_run(tmp_path / "out"):
        monkeypatch.setenv("RANK", "1")
        with folders.only_run(tmp_path / "out"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(SoftPromptError, match="another run is at work"), folders.only_run(tmp_path / "out"):
            pass


def test_a_mistake_leaves_no_folder_and_no_lock(made_options: Callable[..., RunOptions], tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError):
        softprompt.train(made_options(data=str(tmp_path / "nowhere"), output_dir=str(tmp_path / "a" / "b")))
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(SoftPromptError):
        softprompt.train(made_options(data=str(tmp_path / "nowhere"), output_dir=str(tmp_path / "mine")))
    assert not any((tmp_path / "mine").iterdir())
    with FileLock(tmp_path / "mine" / folders.LOCK, timeout=0):
        pass


# ---------------------------------------------------------------- disks and folders


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(
    made_options: Callable[..., RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softprompt.training.check, "gather", lambda *args: pytest.fail("work began"))
    (tmp_path / "afile").touch()
    for output in (tmp_path / "afile" / "x", Path("/proc/softprompt/x")):
        with pytest.raises(SoftPromptError, match=f"--output '{output}' cannot be written to"):
            softprompt.train(made_options(output_dir=str(output)))
    with pytest.raises(SoftPromptError, match="is a file; expected a folder"):
        softprompt.train(made_options(output_dir=str(tmp_path / "afile")))
    original = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name.startswith(folders.LOCK):
            original(self, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return original(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SoftPromptError, match=r"cannot be written to .*No space left.*free space"):
        softprompt.train(made_options())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("which", ["trainer_state.json", "optimizer.pt", "adapter_model.safetensors"])
def test_a_disk_that_fills_up_is_one_message_and_the_run_goes_on_from_there(
    made_options: Callable[..., RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    whole = softprompt.train(made_options(output_dir=str(tmp_path / "whole")))
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
            softprompt.train(made_options())
    result = softprompt.train(made_options(), resume=True)
    assert result.metrics == whole.metrics
    assert all(torch.equal(value, values(tmp_path / "out")[name]) for name, value in values(tmp_path / "whole").items())


@pytest.mark.parametrize(
    ("error", "mended"),
    [
        (OSError("no space"), True),
        (SafetensorError("no space"), True),
        (RuntimeError("PytorchStreamWriter failed writing file"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672]"), True),
        (RuntimeError("basic_ios::clear: file write failed"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_failed_write_is_told_from_other_faults(error: Exception, mended: bool, tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError if mended else type(error)) as raised, folders.writing(tmp_path):
        raise error
    assert (str(error) in str(raised.value)) and ("go on with --resume" in str(raised.value)) == mended


@pytest.mark.parametrize("more", [{}, {"track": "topology"}, {"method": "spt", "budget": 1, "num_virtual_tokens": 2}])
@pytest.mark.parametrize("step", [2, 5])
def test_a_folder_that_is_removed_in_training_is_whole_at_the_end(
    made_options: Callable[..., RunOptions],
    tmp_path: Path,
    announced: Callable[[], list[str]],
    more: dict[str, Any],
    step: int,
) -> None:
    out = tmp_path / "out"
    removed: list[int] = []

    def remove(_: Any) -> None:
        removed.append(step)
        shutil.rmtree(out)

    result = softprompt.train(made_options(**more), callbacks=[At(step, remove)])
    assert removed and {p.name for p in out.iterdir()} >= {
        *("run.json", "result.json", "task.json", "README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    assert any("was removed while the run was at work" in line for line in announced())
    assert softprompt.Predictor(out).evaluate(softprompt.load_task(made_options().data).test)[
        "accuracy"
    ] == pytest.approx(result.metrics["test accuracy"])
