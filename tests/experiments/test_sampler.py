"""What Optuna is asked: ranges by ratio or difference, whole numbers, values; nothing twice; what was known before counts."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from softprompt import SoftPromptError
from softprompt.experiments.sampler import Range, Sampler
from softprompt.experiments.space import folder_name

pytest.importorskip("optuna", reason="the extra 'optuna'")
SPACE: dict[str, Any] = {"rate": Range(1e-4, 1e-1), "size": Range(2, 9), "head": [[0], "probe"]}


def line(dev: float, greater_is_better: bool = True) -> dict[str, Any]:
    return {"status": "done", "dev": dev, "greater_is_better": greater_is_better}


def drawn(count: int, score: Any, seed: int = 0, greater_is_better: bool = True) -> list[dict[str, Any]]:
    sampler, seen = Sampler(SPACE, {"size"}, seed), dict[str, Any]()
    for _ in range(count):
        setting = sampler.ask(seen, folder_name)
        assert setting is not None
        seen[folder_name(setting)] = setting
        sampler.tell(folder_name(setting), setting, line(score(setting), greater_is_better))
    return list(seen.values())


def test_settings_lie_in_their_space_and_differ() -> None:
    settings = drawn(40, lambda setting: 0.5)
    assert settings == drawn(40, lambda setting: 0.5) != drawn(40, lambda setting: 0.5, seed=1)
    assert all(1e-4 <= each["rate"] <= 1e-1 and float(f"{each['rate']:.4g}") == each["rate"] for each in settings)
    assert all(isinstance(each["size"], int) and 2 <= each["size"] <= 9 for each in settings)
    assert {str(each["head"]) for each in settings} == {"[0]", "probe"}
    assert 10 <= sum(each["rate"] < 10**-2.5 for each in settings) <= 30  # by ratio: as many below the middle as above


@pytest.mark.parametrize("up", [True, False])
def test_it_goes_where_scores_are_better(up: bool) -> None:
    late = drawn(40, lambda setting: setting["size"], greater_is_better=up)[20:]
    mean = sum(each["size"] for each in late) / len(late)
    assert mean > 6.5 if up else mean < 4.5


def test_a_space_that_holds_no_more_ends() -> None:
    sampler, seen = Sampler({"size": Range(1, 3)}, {"size"}, 0), dict[str, Any]()
    while (setting := sampler.ask(seen, folder_name)) is not None:
        seen[folder_name(setting)] = setting
        sampler.tell(folder_name(setting), setting, {"status": "failed"})
    assert sorted(each["size"] for each in seen.values()) == [1, 2, 3]


def test_what_an_earlier_process_has_found_counts() -> None:
    sampler = Sampler(SPACE, {"size"}, 0)
    for setting in (*drawn(30, lambda setting: 0.0), {"rate": 5.0, "size": 3, "head": [0]}, {"size": 3}):
        sampler.tell(
            folder_name(setting), setting, line(setting["size"])
        )  # the last two lie outside, and are passed over
    asked = [sampler.ask({}, folder_name) for _ in range(10)]
    assert sum(each["size"] for each in asked if each) / len(asked) > 6


def test_ranges() -> None:
    assert (
        Range(1e-4, 1e-2).by_ratio and Range(1, 20).by_ratio and not Range(5, 50).by_ratio and not Range(0, 1).by_ratio
    )
    assert str(Range(1e-4, 1e-2)) == "0.0001..0.01"
    for low, high in ((2, 1), (1, 1), ("a", "b"), (True, 2)):
        with pytest.raises(SoftPromptError, match=r"expected (two numbers|a lower and then a higher number)"):
            Range(low, high)  # type: ignore[arg-type]


def test_without_optuna_a_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SoftPromptError, match=r"pip install 'softprompt\[optuna\]'"):
        Sampler(SPACE, set(), 0)
