"""The states that a head reads are kept from before and after training, and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import softprompt
from house.batches import collate
from house.runs import options
from softprompt.report.contents import figures_of
from softprompt.report.runs import read_runs
from softprompt.watch import STATES, StatesCallback, read_states, states


def test_states_are_those_that_the_head_reads(encoder: Path, animals: Path, tmp_path: Path) -> None:
    plain, tracked = (
        softprompt.train(options(encoder, animals, tmp_path / name, track=track, num_train_epochs=2), progress=False)
        for name, track in (("plain", "none"), ("tracked", "states"))
    )
    assert plain.metrics == tracked.metrics
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("plain", "tracked")]
    assert files[0].read_bytes() == files[1].read_bytes()
    states, rows = read_states(tmp_path / "tracked" / STATES), softprompt.load_task(animals).dev
    assert states["before"].shape == states["after"].shape == (len(rows), 32)
    assert not torch.equal(states["before"], states["after"])
    # of the kept checkpoint: its head gives the predictions of the predictor, which reads the rows by their length
    model = softprompt.load(tmp_path / "tracked")
    head = next(part for name, part in model.named_modules() if name.endswith("classifier.modules_to_save.default"))
    found = head(states["after"]).argmax(-1)
    correct = (found == states["labels"]).float().mean().item()
    assert correct == pytest.approx(tracked.metrics["dev accuracy"])
    (run,) = read_runs([tmp_path / "tracked"])
    figure = next(figure for figure in figures_of(run) if figure.title == "States of the rows")
    assert len(figure.rows) == 2 * len(rows) and {row[3] for row in figure.rows} == set(run.classes)


@pytest.mark.parametrize("track", ["states", "accuracy"])
def test_what_is_watched_leaves_dropout_its_random_state(
    track: str, encoder: Path, animals: Path, tmp_path: Path
) -> None:
    given = {"num_train_epochs": 2, "backbone_dropout": True}
    for name, tracked in (("plain", "none"), ("tracked", track)):
        softprompt.train(options(encoder, animals, tmp_path / name, track=tracked, **given), progress=False)
    plain, tracked = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("plain", "tracked"))
    assert plain == tracked


def test_states_from_before_outlive_a_stop_and_a_damaged_file_ends_no_run(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {}
    for name in ("whole", "damaged"):
        given = options(encoder, animals, tmp_path / name, track="states", num_train_epochs=2)
        with monkeypatch.context() as patched:
            patched.setattr(StatesCallback, "on_epoch_begin", stop_in_second_epoch, raising=False)
            with pytest.raises(KeyboardInterrupt):
                softprompt.train(given, progress=False)
        states[name] = read_states(tmp_path / name / STATES)
        assert set(states[name]) == {"before", "labels"}
        if name == "damaged":
            (tmp_path / name / STATES).write_bytes(b"cut")
        softprompt.train(given, progress=False, resume=True)
    whole, damaged = (read_states(tmp_path / name / STATES) for name in ("whole", "damaged"))
    assert torch.equal(whole["before"], states["whole"]["before"]) and not torch.equal(whole["before"], whole["after"])
    assert set(damaged) == {"after", "labels"} and torch.equal(damaged["after"], whole["after"])


def stop_in_second_epoch(self: StatesCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
    if state.epoch and state.epoch >= 1:
        raise KeyboardInterrupt


def test_a_model_without_a_pooled_head_has_no_states(
    encoder: Path, animals: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = {"dog": "red", "cat": "green", "bird": "blue"}
    given = {"head": "verbalizer", "template": "{text} . It was {mask} .", "label_words": words, "num_train_epochs": 1}
    softprompt.train(options(encoder, animals, tmp_path / "out", track="states", **given), progress=False)
    assert not (tmp_path / "out" / STATES).exists()


def test_watched_rows_are_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "ROWS", 6)
    rows = Dataset.from_list([{"input_ids": [5] * 4, "labels": i // 9} for i in range(18)])
    assert sorted(StatesCallback("x", rows, collate).rows["labels"]) == [0, 0, 0, 1, 1, 1]
