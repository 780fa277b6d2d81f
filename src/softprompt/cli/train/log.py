"""What a trainer logs, as JSON lines in a file that can be followed while it trains."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TextIO

from transformers import TrainerCallback

from ..._types import SoftPromptError
from ..voice import is_first

EACH_STEP = {"logging_strategy": "steps", "logging_steps": 1}


class LogFile(TrainerCallback):
    """Writes each entry of the trainer's log, with its step and epoch, as one line as soon as it is there.

    A resumed run goes on in the same file.

    Args:
        path: the file.
        resume: whether lines that are there stay.

    Raises:
        SoftPromptError: the file cannot be written.
    """

    def __init__(self, path: Path, resume: bool):
        self.file: TextIO | None = None
        if not is_first():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a" if resume else "w", encoding="utf-8", buffering=1)  # whole lines
        except OSError as error:
            raise SoftPromptError(f"--log {path}: expected a file that can be written ({error.strerror}).") from error

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.file is None:
            return
        values = {key: _number(value) for key, value in (logs or {}).items() if key != "epoch"}
        self.file.write(json.dumps({"step": state.global_step, "epoch": state.epoch, **values}, allow_nan=False) + "\n")


def _number(value: Any) -> Any:
    """JSON has no word for what is no number."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
