"""The states that a head reads are kept from before and after training, and change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import softprompt
from house.runs import options
from softprompt.report.contents import figures_of
from softprompt.report.runs import read_runs
from softprompt.watch import STATES, read_states


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


def test_a_model_without_a_pooled_head_has_no_states(
    encoder: Path, animals: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = {"dog": "red", "cat": "green", "bird": "blue"}
    given = {"head": "verbalizer", "template": "{text} . It was {mask} .", "label_words": words, "num_train_epochs": 1}
    softprompt.train(options(encoder, animals, tmp_path / "out", track="states", **given), progress=False)
    assert not (tmp_path / "out" / STATES).exists()
