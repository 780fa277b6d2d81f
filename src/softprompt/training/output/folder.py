"""The output folder of a run: one run at a time, written to from the first moment or refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import distributed

from ..._documents import read_object
from ..._files import to_json
from ..._types import SoftPromptError, announce
from ...models.hub import OPTIONS_FILE
from ..keys.options import RunOptions
from .checkpoints import CHECKPOINTS, newest_checkpoint

SEARCH = "search"  # what the search of layers writes
LOCK = ".lock"
PROBE = b"\0" * 2**16  # a disk that has no room for this has none for a checkpoint


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold ``folder`` against other runs, and make sure that it can be written to; a folder made for nothing is removed.

    Several processes of one launcher are one run, and the first of them holds the folder. The lock ends with its
    process, whatever ends it; the file that a kill leaves behind is no obstacle.

    Raises:
        SoftPromptError: another run holds the folder, it cannot be made, or not be written to.
    """
    several = distributed.is_available() and distributed.is_initialized()
    first = distributed.get_rank() == 0 if several else os.environ.get("RANK", "0") == "0"
    lock, refused = FileLock(folder / LOCK), [""]
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    if first:
        try:
            _acquire(lock, folder)
        except SoftPromptError as error:
            refused = [str(error)]
    if several:
        broadcast_object_list(refused)  # one alone would leave the others waiting for it
    if refused[0]:
        _remove_empty(made)
        raise SoftPromptError(refused[0])
    try:
        yield
    finally:
        if first:
            with suppress(OSError):  # gone with its folder; Windows removes it when it is released
                os.unlink(lock.lock_file)  # while it is held: who waits for a file that is gone looks again
            lock.release()
            _remove_empty(made)


def _acquire(lock: FileLock, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SoftPromptError(
            f"--output {str(folder)!r} is a file; expected a folder that is new, empty or this run's own."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        (probe := folder / f"{LOCK}.probe").write_bytes(PROBE)
        probe.unlink()
    except Timeout:
        raise SoftPromptError(
            f"--output {str(folder)!r}: another run is at work there; wait for its end, or give another folder."
        ) from None
    except (OSError, NotImplementedError) as error:
        with suppress(OSError):
            (folder / f"{LOCK}.probe").unlink()
        if lock.is_locked:
            os.unlink(lock.lock_file)
            lock.release()
        if isinstance(error, NotImplementedError) or error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            announce("no lock", f"the file system of {folder} has none, so nothing keeps a second run out")
            return
        raise unwritable(folder, error) from error


def _remove_empty(made: list[Path]) -> None:
    for path in made:
        with suppress(OSError):  # not empty, or gone
            path.rmdir()


def unwritable(folder: Path, error: object) -> SoftPromptError:
    """What a user is told where ``folder`` cannot be written to."""
    return SoftPromptError(
        f"--output {str(folder)!r} cannot be written to ({error}); free space, set permissions, or give another folder."
    )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a write into ``folder`` that fails, of whatever library, into one message: the run can go on from there."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save and safetensors wrap the system's error in their own
        if isinstance(error, RuntimeError) and not any(
            word in str(error) for word in ("PytorchStreamWriter", "inline_container", "file write failed")
        ):
            raise
        reason = " ".join(str(error).split())[:200]
        raise SoftPromptError(
            f"{folder}: a file could not be written ({reason}); free space or mend the folder, then go on with --resume."
        ) from error


def recorded(marker: Path) -> dict[str, Any]:
    """The options of an earlier run; float32 was the default where it names no dtype."""
    return {
        "dtype": "float32",
        **read_object(
            marker, "record of settings", "it says which run stands there, so give another folder, or remove this one"
        ),
    }


def check_free(folder: Path) -> None:
    """Raise `SoftPromptError` unless a new run may begin in ``folder``."""
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise SoftPromptError(
            f"--output {str(folder)!r} is not empty; pass --resume to continue that run, or another folder."
        )


def check_folder(folder: Path, options: RunOptions, resume: bool) -> str | None:
    """Check that the output folder is free, or this run's own; returns the checkpoint to resume from."""
    mine = json.loads(to_json(options.to_flat()))
    marker = folder / OPTIONS_FILE
    if not resume:
        check_free(folder)
    checkpoint = None
    if resume and marker.is_file():
        before = recorded(marker)
        ignored = {"output_dir"}
        changed = sorted(
            key for key in before.keys() | mine.keys() if key not in ignored and before.get(key) != mine.get(key)
        )
        if changed:
            detail = ", ".join(f"{key}: {before.get(key)!r} then, {mine.get(key)!r} now" for key in changed)
            raise SoftPromptError(
                f"--resume: {folder} holds a run with other options ({detail}); use the same options or another folder."
            )
        if (folder / CHECKPOINTS).is_dir():
            checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    if resume:
        announce(
            "resume",
            f"from {checkpoint}"
            if checkpoint
            else f"no checkpoint in {folder / CHECKPOINTS}, starting from the beginning",
        )
    return checkpoint
