"""A trial: one run of a search of settings. It leaves a folder like any run, but no score of a test row."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._files import to_json
from ..training import RunOptions, train
from ..training.metric import Metric
from .cell import limited, one_line
from .choice import DevScore
from .executors import Work

TRIALS = "trials"  # the folder of a search in which they lie
LINES = "trials.jsonl"


@dataclass(frozen=True)
class Trial:
    """One combination of the values that a search tries.

    Attributes:
        setting: the keys that are searched, with the values of this trial.
        options: of its run, in a folder of its own.
        metric: of the user's, or None; see `softprompt.train`.
    """

    setting: dict[str, Any]
    options: RunOptions
    metric: Metric | None = None

    @property
    def folder(self) -> Path:
        return Path(self.options.output_dir)


def run_trial(trial: Trial, threads: int = 1) -> dict[str, Any]:
    """Train a trial, or go on with it, and return its line; whatever goes wrong becomes the line's ``error``.

    Args:
        trial: the trial to run.
        threads: number of CPU threads.
    """
    started = time.perf_counter()
    with limited(threads):
        try:
            result = train(trial.options, resume=trial.folder.exists(), progress=False, metric=trial.metric, test=False)
        except Exception as error:  # of any library below: one trial must not end a search
            return failed_trial(trial, one_line(error), time.perf_counter() - started)
    info = result.document["train_info"]
    return {
        **_identity(trial),
        "status": "done",
        "error": None,
        "metric": info["metric_for_best_model"],
        "greater_is_better": info["greater_is_better"],
        "dev": info[f"dev {info['metric_for_best_model']}"],
        "dev_loss": info.get("dev loss"),
        "seconds": time.perf_counter() - started,
    }


def failed_trial(trial: Trial, error: str, seconds: float) -> dict[str, Any]:
    """Make the line of a trial that did not come to its end."""
    scores = dict.fromkeys(("metric", "greater_is_better", "dev", "dev_loss"))
    return {**_identity(trial), "status": "failed", "error": error, **scores, "seconds": seconds}


TRIAL_WORK = Work(run_trial, failed_trial)


def _identity(trial: Trial) -> dict[str, Any]:
    setting = json.loads(to_json(trial.setting, default=str))
    return {"name": trial.folder.name, "setting": setting, "folder": f"{TRIALS}/{trial.folder.name}"}


def score_of(line: dict[str, Any]) -> DevScore:
    """What the line of a finished trial is chosen by."""
    return DevScore(line["dev"], line["dev_loss"])
