"""Weights of classes in the training loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import softprompt
from house.files import write_lines
from house.runs import options, values
from house.tiny import write_several
from softprompt import SoftPromptError
from softprompt.training.check import check_run


def unbalanced(folder: Path) -> Path:
    rows = [{"text": f"{'dog' if i % 6 else 'cat'} runs {i}", "label": "dog" if i % 6 else "cat"} for i in range(60)]
    for split in ("train", "validation", "test"):
        write_lines(folder, rows, f"{split}.jsonl")
    return folder


def test_balanced_weights_are_those_of_the_training_rows(
    encoder: Path, tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    plan = check_run(options(encoder, unbalanced(tmp_path / "data"), tmp_path / "out", class_weights="balanced"))
    model = plan.prepared.model
    assert model.class_weights.tolist() == pytest.approx([60 / (2 * 10), 60 / (2 * 50)])  # cat, dog
    assert "class_weights: cat 3, dog 0.6: balanced by the training rows of each class" in announced()
    batch = {"input_ids": torch.tensor([[2, 8, 3], [2, 9, 3]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        plain, weighted = (model.train(on)(**batch, labels=labels) for on in (False, True))
    each = F.cross_entropy(plain.logits, labels, reduction="none")
    assert plain.loss == pytest.approx(each.mean().item(), rel=1e-6)  # scores of dev and test rows stay comparable
    assert weighted.loss == pytest.approx(((3 * each[0] + 0.6 * each[1]) / 2).item(), rel=1e-6)


def test_flags_are_weighed_by_the_rows_that_lack_them(encoder: Path, tmp_path: Path) -> None:
    data = write_several(tmp_path / "data")
    plan = check_run(options(encoder, data, tmp_path / "out", class_weights="balanced"))
    flags = torch.tensor(list(plan.prepared.encoded["train"]["labels"]))
    expected = (len(flags) - flags.sum(0)) / flags.sum(0)
    assert torch.allclose(plan.prepared.model.class_weights, expected)


def test_weights_by_name_keep_the_size_of_the_loss(encoder: Path, tmp_path: Path) -> None:
    data = unbalanced(tmp_path / "data")
    plan = check_run(options(encoder, data, tmp_path / "out", class_weights={"cat": 20.0}))
    mean = (10 * 20 + 50 * 1) / 60
    assert plan.prepared.model.class_weights.tolist() == pytest.approx([20 / mean, 1 / mean])


def test_weights_act_however_rows_are_parted_into_batches(encoder: Path, tmp_path: Path) -> None:
    data, prompts = unbalanced(tmp_path / "data"), []
    for size, weights in ((8, {"cat": 20.0}), (1, {"cat": 20.0}), (1, {"cat": 1.0})):
        steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 2}
        fixed = {
            "class_weights": weights,
            "optim": "sgd",
            "learning_rate": 0.01,
            "train_sampling_strategy": "sequential",
        }
        folder = tmp_path / f"{size}-{weights['cat']}"
        softprompt.train(options(encoder, data, folder, **steps, **fixed), progress=False)
        prompts.append(values(folder)["base_model.model.softprompt.softprompt_prompts.embedding"])
    assert torch.allclose(prompts[0], prompts[1], atol=1e-6) and not torch.allclose(prompts[1], prompts[2], atol=1e-4)


def test_weights_move_a_run(encoder: Path, tmp_path: Path) -> None:
    data = unbalanced(tmp_path / "data")
    heads = []
    for number, weights in enumerate([None, {"cat": 20.0}]):
        more = {"class_weights": weights, "head_init": "random", "num_train_epochs": 1}
        more = {key: value for key, value in more.items() if value is not None}
        result = softprompt.train(options(encoder, data, tmp_path / str(number), **more), progress=False)
        found = softprompt.Predictor(tmp_path / str(number)).predict([{"text": "bird sits here"}])
        heads.append(found[0]["scores"]["cat"])
        assert result.document["run_info"]["train_config"].get("class_weights") == weights
    assert heads[1] > heads[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"class_weights": "heavy"}, "unknown class_weights 'heavy': expected one of balanced."),
        ({"class_weights": {"cats": 2.0}}, "class_weights: 'cats' is no class; classes are cat, dog. Did you mean 'cat'?"),
        ({"class_weights": {"cat": 0.0}}, "class_weights: expected numbers above 0, got 0.0."),
        ({"class_weights": "balanced", "method": "contrast"}, "class_weights weigh the loss of a head that is trained, head_fit='probe' fits it"),
        ({"class_weights": "balanced", "label_smoothing_factor": 0.1}, "class_weights weigh the loss that the model computes, and label_smoothing_factor takes"),
        ({"class_weights": "balanced", "head": "stock"}, "class_weights weigh classes of whole texts under head='pooled' or 'verbalizer'"),
    ],
)  # fmt: skip
def test_weights_that_cannot_act_are_refused(more: dict[str, Any], message: str, encoder: Path, tmp_path: Path) -> None:
    data = unbalanced(tmp_path / "data")
    with pytest.raises(SoftPromptError) as error:
        softprompt.train(options(encoder, data, tmp_path / "out", **more), progress=False)
    assert message in str(error.value)


def test_a_class_without_rows_cannot_be_balanced(encoder: Path, tmp_path: Path) -> None:
    data = unbalanced(tmp_path / "data")
    more = {"class_weights": "balanced", "class_names": ["cat", "dog", "bird"], "head_init": "random"}
    with pytest.raises(SoftPromptError) as error:
        softprompt.train(options(encoder, data, tmp_path / "out", **more), progress=False)
    assert "class_weights=balanced: class 'bird' has no training row to weigh" in str(error.value)
