"""Rows of like lengths share a batch where that saves positions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt
from house.runs import options
from softprompt.training.loop.lengths import padding_shares, positions_saved


def padded(inputs: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Width of a batch, and of its longest row, up to the next multiple of 8."""
    longest = int(inputs["attention_mask"].sum(1).max())
    return inputs["input_ids"].shape[1], -(-longest // 8) * 8


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    step = softprompt.PromptTrainer.training_step

    def noted(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> torch.Tensor:
        found.append(padded(inputs))
        return step(self, model, inputs, *rest, **more)

    monkeypatch.setattr(softprompt.PromptTrainer, "training_step", noted)
    return found


def test_batches_are_as_wide_as_their_longest_row(
    encoder: Path, animals: Path, tmp_path: Path, widths: list[tuple[int, int]]
) -> None:
    softprompt.train(options(encoder, animals, tmp_path / "run", max_length=48, per_device_train_batch_size=2))
    assert {width for width, _ in widths} == {8, 16} and all(width == longest for width, longest in widths)


def test_rows_are_grouped_by_length_where_that_saves_positions(
    encoder: Path,
    animals: Path,
    many: Path,
    tmp_path: Path,
    widths: list[tuple[int, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    counts = {}
    for name, data, more in (
        ("grouped", many, {}),
        ("own", many, {"train_sampling_strategy": "random"}),
        ("few", animals, {}),
    ):
        widths.clear()
        caplog.clear()
        with caplog.at_level("INFO", logger="softprompt"):
            softprompt.train(options(encoder, data, tmp_path / name, num_train_epochs=1, **more))
        said = [text for text in caplog.messages if text.startswith("train_sampling_strategy")]
        assert bool(said) == (name == "grouped")
        if said:
            found = re.fullmatch(
                r"train_sampling_strategy=group_by_length: padding is (\d+)% of random batches and (\d+)% of .*, which saves (\d+)% of their positions",
                said[0],
            )
            assert found is not None and int(found[1]) > int(found[2]) and int(found[3]) >= 10
        counts[name] = sum(width for width, _ in widths)
    assert counts["grouped"] < 0.9 * counts["own"]


def test_shares_of_padding_by_hand() -> None:
    # two batches of two: 8 and 16 wide, or both 16
    lengths, found = [8, 16, 8, 16], set()
    for seed in range(20):
        random, _ = padding_shares(lengths, 2, seed)
        found.add(random)
        assert random in (0.0, pytest.approx(0.25))
    assert len(found) == 2
    assert padding_shares([5, 5], 1, 0) == (pytest.approx(3 / 8), pytest.approx(3 / 8))
    assert positions_saved((0.5, 0.5)) == 0 and positions_saved((0.5, 0.0)) == pytest.approx(0.5)
