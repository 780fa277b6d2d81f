"""Checkpoints of a run: which of them were written to their end."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

from ..._types import announce

CHECKPOINTS = "checkpoints"
NEEDED = ("*model*.safetensors", TRAINER_STATE_NAME)  # the trainer writes the second one last
ZIPPED = {".pt", ".pth", ".bin"}  # what torch.save writes


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole; a kill, a full disk or a power loss may have cut one short."""
    checkpoints = [p for p in folder.iterdir() if re.fullmatch(r"checkpoint-\d+", p.name)]
    for path in sorted(checkpoints, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        if (fault := fault_of(path)) is None:
            return str(path)
        announce(f"resume skips {path.name}", f"it was not written to its end ({fault})")
    return None


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None; every file of it is read."""
    missing = [name for name in NEEDED if not any(checkpoint.glob(name))]
    if (checkpoint / "scheduler.pt").is_file() and not any(checkpoint.glob("optimizer*")):
        missing.append("optimizer.pt")
    if missing:
        return f"{missing[0]} is missing"
    for path in sorted(checkpoint.iterdir()):
        try:
            _read(path)
        except (OSError, ValueError, RecursionError, SafetensorError, zipfile.BadZipFile):
            return f"{path.name} is damaged"
    return None


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="numpy"):  # its header says how long the file is
            pass
    elif path.suffix in ZIPPED:
        with zipfile.ZipFile(path) as archive:
            if (name := archive.testzip()) is not None:
                raise zipfile.BadZipFile(name)
