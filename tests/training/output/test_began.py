"""A run that goes on keeps the defaults under which it began."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from softprompt import SoftPromptConfig, objective
from softprompt.training.output.began import BEFORE, as_it_began

NOW = SoftPromptConfig(
    objectives=[objective("l2", weight=0.1)],
    objectives_first=0.5,
    fusion_scores="cosine",
    fusion_temperature=0.7,
    layer_score="ablation",
    gate_optimizer="shared",
)


def saved(folder: Path, **known: Any) -> str:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "SOFTPROMPT", **known}))
    return str(folder)


def test_a_checkpoint_that_knows_no_such_field_had_what_held_before_it(
    tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    found = as_it_began(NOW, saved(tmp_path))
    held = {"fusion_scores": "dot", "fusion_temperature": 0.1, "layer_score": "gates", "gate_optimizer": "adam"}
    expected = replace(NOW, **held, objectives=[], objectives_first=0.0)
    assert all(getattr(found, f.name) == getattr(expected, f.name) for f in fields(NOW))
    assert announced()[0].startswith("objectives, objectives_first, fusion_scores, fusion_temperature, layer_score")


def test_what_a_checkpoint_says_is_kept(tmp_path: Path, announced: Callable[[], list[str]]) -> None:
    began = {name: getattr(NOW, name) for name in BEFORE}
    assert as_it_began(NOW, saved(tmp_path, **began)) == NOW and announced() == []
    assert as_it_began(NOW, saved(tmp_path, **began, rank=7)).rank == NOW.rank  # of no default that has changed
    assert as_it_began(NOW, saved(tmp_path, **{**began, "fusion_temperature": 0.3})).fusion_temperature == 0.3


@pytest.mark.parametrize("config", [NOW, LoraConfig()], ids=["nowhere", "of PEFT"])
def test_other_runs_begin_as_they_are(config: Any, tmp_path: Path, announced: Callable[[], list[str]]) -> None:
    checkpoint = None if config is NOW else saved(tmp_path)
    assert as_it_began(config, checkpoint) is config and announced() == []
