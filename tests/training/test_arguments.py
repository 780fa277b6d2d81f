"""The defaults of a run's trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf

import softprompt
from house.runs import options
from softprompt.methods import find_method
from softprompt.training import arguments
from softprompt.training.arguments import learning_rate_for
from softprompt.training.check import check_run


def test_default_learning_rate_is_a_share_of_the_embeddings_spread(encoder: Path) -> None:
    model = tf.AutoModel.from_pretrained(encoder)
    rate, reason = learning_rate_for(find_method("ept"), model)
    spread = model.get_input_embeddings().weight.std().item()
    assert rate == pytest.approx(arguments.RELATIVE_RATE * spread, rel=0.1) and "standard deviation" in reason
    assert learning_rate_for(find_method("peft:lora"), model)[0] == 1e-3


def test_the_default_rate_has_an_upper_end(encoder: Path) -> None:
    model = tf.AutoModel.from_pretrained(encoder)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 10)
    assert learning_rate_for(find_method("ept"), model)[0] == 0.3


def test_defaults_of_the_trainer(encoder: Path, animals: Path, tmp_path: Path) -> None:
    """600 steps on 60 rows, between 3 and 30 epochs."""
    flat = options(encoder, animals, tmp_path / "o").to_flat()
    flat = {key: value for key, value in flat.items() if key != "num_train_epochs" and value is not None}
    found = [
        check_run(softprompt.RunOptions.from_flat({**flat, "per_device_train_batch_size": size})).arguments
        for size in (1, 8)
    ]
    assert [made.num_train_epochs for made in found] == [10, 30]
    given = found[0]
    assert (given.warmup_steps, given.lr_scheduler_type) == (0.06, "linear")
    assert (given.save_total_limit, given.per_device_eval_batch_size) == (2, 64)


def test_lengths_are_grouped_over_all_rows_of_a_step(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(arguments, "padding_shares", lambda lengths, size, seed: seen.append(size) or (0.0, 0.0))
    check_run(options(encoder, animals, tmp_path / "o", gradient_accumulation_steps=3))
    assert seen == [24]


def test_lengths_are_grouped_where_that_saves_a_tenth_of_the_positions(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    for padding in (0.099, 0.101):
        monkeypatch.setattr(arguments, "padding_shares", lambda *_, padding=padding: (padding, 0.0))
        chosen.append(check_run(options(encoder, animals, tmp_path / "o")).arguments.train_sampling_strategy)
    assert chosen == ["random", "group_by_length"]
