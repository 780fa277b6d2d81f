"""What is kept, when a run stops, and at which rates parameters learn."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model

import softprompt
from house.runs import options


@pytest.mark.parametrize("method", ["prompt_tuning", "peft:p_tuning", "peft:prefix_tuning"])
def test_the_best_checkpoint_is_what_is_scored(method: str, encoder: Path, animals: Path, tmp_path: Path) -> None:
    """PEFT saves what the network behind p-tuning makes; reading that back into the network gave another prompt."""
    more = {"num_train_epochs": 6, "learning_rate": 0.02, "head_init": "random", "head_learning_rate": 0.03}
    result = softprompt.train(options(encoder, animals, tmp_path / "out", method=method, **more))
    info = result.document["train_info"]
    curve = [entry["eval_accuracy"] for entry in info["metrics"] if "eval_accuracy" in entry][:-2]
    assert len(curve) == 6 and len(set(curve)) > 2 and info["dev accuracy"] == max(curve)
    scored = softprompt.Predictor(tmp_path / "out").evaluate(softprompt.load_task(animals).test)
    assert scored["accuracy"] == pytest.approx(info["test accuracy"])


def test_early_stopping_stops(encoder: Path, animals: Path, tmp_path: Path) -> None:
    result = softprompt.train(
        options(
            encoder,
            animals,
            tmp_path / "out",
            num_train_epochs=20,
            early_stopping_patience=1,
            learning_rate=1e-9,
            head_learning_rate=1e-9,
        )
    )
    assert result.document["train_info"]["train_steps"] == 2 * 8  # the second evaluation is no better


def test_parameter_groups_carry_their_own_rates(encoder: Path) -> None:
    model = softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["a", "b"], "mean")

    def ept(**rates: float) -> PeftModel:
        config = softprompt.ept(3, rank=2, max_positions=8, task_type="SEQ_CLS", learning_rates=rates)
        return get_peft_model(copy.deepcopy(model), config)

    tuned = ept(low_rank=5e-4)
    groups = {g["name"]: g for g in softprompt.parameter_groups(tuned, 0.3, 1e-5, 1e-3)}
    assert {name: g["lr"] for name, g in groups.items()} == {
        "prompt": 0.3,
        "low_rank": 5e-4,
        "spaces": 0.03,
        "space_gate": 0.3,
        "head": 1e-3,
    }
    trained = {id(p) for p in tuned.parameters() if p.requires_grad}
    assert {id(p) for g in groups.values() for p in g["params"]} == trained
    assert {g["name"]: g["lr"] for g in softprompt.parameter_groups(ept(), 0.3)}["low_rank"] == pytest.approx(0.03)
    wrapped = torch.nn.ModuleDict({"module": tuned})  # as DDP holds a model
    assert {g["name"]: g["lr"] for g in softprompt.parameter_groups(wrapped, 0.3)}["low_rank"] == 5e-4
    lora = get_peft_model(
        softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["a", "b"], "mean"),
        LoraConfig(task_type="SEQ_CLS"),
    )
    assert {g["name"]: g["lr"] for g in softprompt.parameter_groups(lora, 0.1, 0.0, 1e-3)} == {
        "adapter": 0.1,
        "head": 1e-3,
    }
    with pytest.raises(softprompt.SoftPromptError, match=r"'lowrank'.*Did you mean 'low_rank'"):
        softprompt.parameter_groups(ept(lowrank=1.0), 0.3)
