"""What a search goes through: every combination, or trials that are chosen one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softprompt import RunOptions, SoftPromptError
from softprompt.experiments import Range, search_settings, trials_of
from softprompt.experiments.space import Chosen, folder_name

Made = Callable[..., RunOptions]


def test_folders_of_trials_are_told_apart(made_options: Made) -> None:
    names = [folder_name({"layers": value}) for value in ([1, 2], [1, "2"], "a/b", "a:b", "x" * 300)]
    assert len(set(names)) == len(names) and all(len(name) < 120 and "/" not in name for name in names)
    assert folder_name({"learning_rate": 0.001, "num_virtual_tokens": 5}) == "learning_rate=0.001,num_virtual_tokens=5"
    trials = trials_of(made_options(), {"learning_rate": [1e-3, 1e-2], "num_virtual_tokens": [2, 3]})
    assert [tuple(trial.setting.values()) for trial in trials] == [(1e-3, 2), (1e-3, 3), (1e-2, 2), (1e-2, 3)]


def test_optuna_chooses_and_a_search_that_was_stopped_goes_on(made_options: Made, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra 'optuna'")
    space = {"learning_rate": Range(1e-4, 1e-1), "num_virtual_tokens": Range(2, 5)}
    own = made_options(num_train_epochs=1)
    first = search_settings(own, space, count=2).document["trials"]
    assert [line["status"] for line in first] == ["done", "done"]
    noted = tmp_path / "out" / "trials" / "search.json"
    document = json.loads(noted.read_text())
    assert document["asked"] == [line["setting"] for line in first]
    document["asked"].append({"learning_rate": 0.002, "num_virtual_tokens": 3})  # chosen, and then killed
    noted.write_text(json.dumps(document))
    more = search_settings(own, space, resume=True, count=4).document["trials"]
    for line in (*first, *more):
        line.pop("chosen")
    assert more[:2] == first and len(more) == 4
    assert more[2]["setting"] == {"learning_rate": 0.002, "num_virtual_tokens": 3} and more[2]["status"] == "done"
    assert len({json.dumps(line["setting"]) for line in more}) == 4


@pytest.mark.parametrize(
    ("space", "count", "said"),
    [
        ({"learning_rate": Range(-1, 1)}, 3, r"learning_rate: expected a positive number, got -1"),
        (
            {"num_virtual_tokens": Range(2.5, 4)},
            3,
            r"num_virtual_tokens: expected a whole number of at least 1, got 2.5",
        ),
        ({"output_dir": ["a", "b"]}, 3, r"output_dir cannot be searched"),
        ({"learning_rate": [1e-3]}, 3, r"expected at least two values"),
        ({}, 3, r"a search needs a key and its values"),
        ({"learning_rate": Range(1e-3, 1e-2)}, 0, r"--search-trials: expected a whole number from 1 to 1,000, got 0"),
    ],
)
def test_ranges_are_checked_at_their_ends(space: dict[str, Any], count: int, said: str, made_options: Made) -> None:
    with pytest.raises(SoftPromptError, match=said):
        Chosen(made_options(), space, None, count)


def test_a_range_is_not_tried_whole(made_options: Made) -> None:
    with pytest.raises(SoftPromptError, match=r"learning_rate=0.001..0.1: a range holds too many values to try all"):
        trials_of(made_options(), {"learning_rate": Range(1e-3, 1e-1)})
