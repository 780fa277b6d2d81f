"""A search of settings: the grid, the choice by dev rows, the run that is left, failures, and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import softprompt
from softprompt import RunOptions, SoftPromptError
from softprompt.experiments import ProcessPool, settings
from softprompt.experiments.records import read_lines
from softprompt.experiments.settings import search_settings

Made = Callable[..., RunOptions]
TIMES = ("created_at", "total_time", "train_time", "output_dir", "seconds", "share", "eval_model_preparation_time")


def timeless(value: Any) -> Any:
    """A document without what depends on the clock and the folder."""
    if isinstance(value, dict):
        return {
            key: timeless(entry)
            for key, entry in value.items()
            if key not in TIMES and not key.endswith(("runtime", "second"))
        }
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "trials" / "trials.jsonl", lambda line: str(line["name"]))


def rare_cat(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Lower is better: shares that go to the wrong classes."""
    return float(1 - predictions[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"early_stopping_patience": 1, "num_train_epochs": 6, "score_last": True},  # it stops before its last step
        {"save_strategy": "no"},  # nothing to take up: it is trained again
        {"method": "contrast", "num_virtual_tokens": 1},  # a head that is fitted
        {
            "method": "spt",
            "num_virtual_tokens": 2,
            "budget": 1,
            "num_train_epochs": 1,
            "track": "all",
        },  # two phases, records
    ],
)
def test_the_best_run_is_as_if_it_had_been_trained_alone(
    more: dict[str, Any], made_options: Made, tmp_path: Path
) -> None:
    rates = [1e-4, 0.05]
    result = search_settings(made_options(**more), {"learning_rate": rates})
    trials = result.document.pop("trials")
    (chosen,) = (line for line in trials if line["chosen"])
    for line in trials:  # no test row was looked at before one was chosen
        left = json.loads((tmp_path / "out" / line["folder"] / "result.json").read_text())
        assert not any("test" in key for key in left["train_info"])
        assert "test" not in left["train_info"]["probe"]
    dev = [(line["dev"], -line["dev_loss"]) for line in trials]
    assert dev[trials.index(chosen)] == max(dev) and [line["setting"]["learning_rate"] for line in trials] == rates

    own = {**more, "learning_rate": chosen["setting"]["learning_rate"], "output_dir": str(tmp_path / "alone")}
    alone = softprompt.train(made_options(**own), progress=False)
    assert result.metrics == alone.metrics and "test accuracy" in result.metrics
    assert timeless(result.document) == timeless(alone.document)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "alone"))
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
    files = [
        {str(path.relative_to(place)) for path in place.rglob("*")} for place in (tmp_path / "out", tmp_path / "alone")
    ]
    assert {name for name in files[0] if not name.startswith("trials")} == files[1]
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written["trials"] == trials and written["train_info"]["train_time"] > 0
    softprompt.write_report([tmp_path / "out"], tmp_path / "page.html")
    assert more.get("method", "prompt_tuning") in (tmp_path / "page.html").read_text()


def test_a_failed_trial_is_kept_and_the_search_goes_on(made_options: Made, tmp_path: Path) -> None:
    """64 virtual tokens leave no room for text: known only when a trial meets its model."""
    grid = {"num_virtual_tokens": [64, 3]}
    result = search_settings(made_options(num_train_epochs=1), grid)
    failed, done = result.document["trials"]
    assert (failed["status"], done["status"], done["chosen"]) == ("failed", "done", True)
    assert "num_virtual_tokens=64 leaves no room" in failed["error"] and failed["dev"] is None
    assert failed["seconds"] >= 0 and done["seconds"] > 0 and done["folder"] == "trials/num_virtual_tokens=3"
    assert result.document["run_info"]["peft_config"]["num_virtual_tokens"] == 3


def test_where_every_trial_fails_one_message_says_so(
    made_options: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SoftPromptError, match=r"^num_virtual_tokens=63 leaves no room for text"):
        search_settings(made_options(), {"num_virtual_tokens": [63, 64]})
    assert not (tmp_path / "out").exists()  # known before anything was computed
    monkeypatch.setattr(settings, "_check_first", lambda trials, resume: None)
    with pytest.raises(
        SoftPromptError, match=r"all 2 trials of the search failed, 1 of them so: num_virtual_tokens=63"
    ):
        search_settings(made_options(), {"num_virtual_tokens": [63, 64]})


def test_a_search_that_was_stopped_goes_on(made_options: Made, tmp_path: Path) -> None:
    class Stops:
        """Stand-in for a kill: when the second trial ends."""

        def __init__(self) -> None:
            self.ranks: list[int] = []

        def begin(self, *args: Any) -> None: ...

        def started(self, job: Any) -> None: ...

        def ended(self, line: dict[str, Any]) -> None:
            self.ranks.append(line["rank"])
            if len(self.ranks) == 2:
                raise KeyboardInterrupt

    grid = {"learning_rate": [1e-4, 1e-3, 0.05]}
    with pytest.raises(KeyboardInterrupt):
        search_settings(made_options(), grid, watcher=(first := Stops()))
    before = lines_of(tmp_path / "out")
    assert len(before) == 2 and not (tmp_path / "out" / "result.json").exists()
    with pytest.raises(SoftPromptError, match="is not empty; pass --resume"):
        search_settings(made_options(), grid)
    with pytest.raises(SoftPromptError, match=r"a search with other options \(num_train_epochs: 2.0 then, 3.0 now\)"):
        search_settings(made_options(num_train_epochs=3), grid, resume=True)
    result = search_settings(made_options(), grid, resume=True, watcher=(second := Stops()))
    after = lines_of(tmp_path / "out")
    order = [(-line["dev"], line["dev_loss"], number) for number, line in enumerate(after)]
    ranks = [sorted(order[: number + 1]).index(own) + 1 for number, own in enumerate(order)]
    assert first.ranks + second.ranks == ranks and len(ranks) == 3  # also among those of the call before
    assert after[:2] == before and [line["setting"]["learning_rate"] for line in after] == grid["learning_rate"]

    wider = {"learning_rate": [*grid["learning_rate"], 0.1]}  # and with more values it goes on, too
    again = search_settings(made_options(), wider, resume=True)
    assert lines_of(tmp_path / "out")[:3] == after and len(again.document["trials"]) == 4
    assert timeless(again.document["trials"][:3]) == timeless(
        [{**line, "chosen": again.document["trials"][n]["chosen"]} for n, line in enumerate(result.document["trials"])]
    )


def test_going_on_needs_a_search(made_options: Made, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    with pytest.raises(SoftPromptError, match=r"holds run.json, but no search; resume that run without --search"):
        search_settings(made_options(), {"learning_rate": [1e-3, 1e-2]}, resume=True)


def test_the_users_metric_chooses_downwards_and_in_a_pool(made_options: Made, tmp_path: Path) -> None:
    grid = {"learning_rate": [1e-4, 0.05]}
    own = {"metric_for_best_model": "rare_cat", "greater_is_better": False, "num_train_epochs": 1}
    result = search_settings(made_options(**own), grid, executor=ProcessPool(1), metric=rare_cat)
    trials = result.document["trials"]
    assert {line["metric"] for line in trials} == {"rare_cat"}
    (chosen,) = (line for line in trials if line["chosen"])
    assert chosen["dev"] == min(line["dev"] for line in trials) and trials[0]["dev"] != trials[1]["dev"]
    assert result.metrics["dev rare_cat"] == chosen["dev"] and "test rare_cat" in result.metrics
    here = search_settings(made_options(**own, output_dir=str(tmp_path / "here")), grid, metric=rare_cat)
    assert timeless(here.document) == timeless(result.document)
    with pytest.raises(SoftPromptError, match="it cannot be sent to the processes of a pool"):
        search_settings(made_options(**own), grid, executor=ProcessPool(2), metric=lambda predictions, labels: 0.5)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"learning_rat": [1, 2]}, r"unknown key 'learning_rat'.* Did you mean 'learning_rate'\?"),
        (
            {"learning_rate": [1e-3, "abc"]},
            r"trial learning_rate=abc: learning_rate: expected a positive number, got 'abc'",
        ),
        ({"learning_rate": [1e-3]}, r"learning_rate: expected at least two values to search, got the one value 0.001"),
        ({"learning_rate": []}, r"learning_rate: expected at least two values to search, got none"),
        ({"learning_rate": "1e-3"}, r"learning_rate: expected a list of values"),
        ({"num_virtual_tokens": [5, 5.0]}, r"trial num_virtual_tokens=5.0 stands there twice"),
        (
            {"seed": list(range(40)), "num_virtual_tokens": list(range(1, 41))},
            r"1,600 trials \(40 x 40\): expected at most 1,000",
        ),
        ({"output_dir": ["a", "b"]}, r"output_dir cannot be searched: each trial has a folder of its own"),
        ({"metric_for_best_model": ["loss", "accuracy"]}, r"metric_for_best_model cannot be searched"),
        ({}, r"a search needs a key and its values"),
    ],
)
def test_what_cannot_be_searched_is_refused_at_once(
    grid: dict[str, Any], said: str, made_options: Made, tmp_path: Path
) -> None:
    with pytest.raises(SoftPromptError, match=said):
        search_settings(made_options(), grid)
    assert not (tmp_path / "out").exists()


def test_trials_are_compared_on_the_same_dev_rows(made_options: Made, few_animals: Path, tmp_path: Path) -> None:
    """With a dev file the seed leaves them alone; cut from the training rows they change with it."""
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "train.jsonl").write_text((few_animals / "train.jsonl").read_text())
    with pytest.raises(SoftPromptError, match=r"seed: the trials would be compared on different dev rows"):
        search_settings(made_options(data=str(cut)), {"seed": [1, 2]})
    result = search_settings(made_options(num_train_epochs=1), {"seed": [1, 2]})
    assert [line["status"] for line in result.document["trials"]] == ["done", "done"]


def test_a_launcher_is_refused(made_options: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SoftPromptError, match="a suite or a search runs in processes of its own: expected one"):
        search_settings(made_options(), {"learning_rate": [1e-3, 1e-2]})
