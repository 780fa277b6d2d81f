"""What a run is refused for before anything is computed, alike in a dry run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from datasets import Dataset
from peft import get_peft_model

import softprompt
from house.suites import WORDED
from house.tiny import save_backbone, tokenizer, write_classification, write_completion
from softprompt.training import check, plan, search_phase
from softprompt.training.keys.options import RunOptions

GATED = {"method": "spt", "bottleneck": 4}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("decoder"), "decoder")


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classification(tmp_path_factory.mktemp("animals"), 24)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_completion(tmp_path_factory.mktemp("lines"))


def options(encoder: Path, data: Path, output: Path, **more: Any) -> RunOptions:
    places = {"backbone": str(encoder), "data": str(data), "output_dir": str(output)}
    small = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "max_length": 24,
        "num_virtual_tokens": 4,
        "dtype": "float32",
        "disable_tqdm": True,
    }
    return RunOptions.from_flat({"method": "prompt_tuning", **places, **small, **more})


REFUSED = [
    ({"metric_for_best_model": "f1"}, "unknown metric_for_best_model 'f1'"),
    (
        {"early_stopping_patience": 1, "eval_strategy": "no", "save_strategy": "no"},
        "early_stopping_patience=1 counts evaluations in training",
    ),
    ({"track": "mi", "method": "peft:prompt_tuning"}, "track reads the prompt of a softprompt method"),
    ({"cache_below": "memory"}, "enters at layer 0"),
    ({"head_fit": "probe", "head": "stock"}, "head_fit='probe' fits one linear layer"),
    ({"dataloader_drop_last": True, "per_device_train_batch_size": 99}, "leaves nothing of 24 training rows"),
    ({"use_liger_kernel": True}, "pip install liger-kernel"),
    (
        {"objectives": [{"name": "persistence"}], "label_smoothing_factor": 0.1},
        "expected no label_smoothing_factor and no compute_loss_func",
    ),
    ({**GATED, "budget": 3}, "budget: expected 1 to 2 layers"),
    (
        {**GATED, "budget": 1, "objectives": [{"name": "ts_loss", "layers": [0]}]},
        "objective 'ts_loss' reads the layers [0], but the search keeps 1 of 2 and may drop them; leave its layers out",
    ),
    (
        {"backbone": "minilm", **WORDED},
        "backbone 'minilm' holds no weights of a language model's head (cls.predictions.bias is missing)",
    ),
    ({**GATED, "layers": [0, 9]}, "has layers 0 to 1; name layers that exist"),
    ({"num_virtual_tokens": 64}, "num_virtual_tokens=64 leaves no room for text"),
    (
        {"method": "deep_prompts", "layers": [1], "objectives": [{"name": "ts_loss", "layers": [0, 1]}]},
        "objective 'ts_loss' reads the layers [0, 1], but the prompt enters [1]; name layers of these, without [0].",
    ),
    (
        {**GATED, "budget": 1, "dataloader_drop_last": True, "per_device_train_batch_size": 20},
        "leaves nothing of 12 training rows",  # half of them train in a search
    ),
    ({"method": "tsloss", "share_every": 0}, "share_every=0 measures no gradient, but ts_loss has a share of it"),
    ({"learning_rates": {"promt": 0.1}}, "the group 'promt', but this prompt has prompt. Did you mean 'prompt'?"),
    ({**GATED, "budget": 1, "phm_factor": 7}, "phm_factor"),
    ({"init": "adapter", "init_path": "nothing"}, "nothing: expected an adapter's folder with adapter_config.json"),
    ({"init": "file", "init_path": "nothing.npy"}, "nothing.npy"),
    ({"init": "text", "init_text": " "}, "init_text ' ' has no tokens"),
]


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(("more", "message"), REFUSED, ids=lambda value: "-".join(value) if type(value) is dict else "")
def test_a_run_is_refused_before_anything_is_computed(
    encoder: Path,
    animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    message: str,
    dry: bool,
) -> None:
    monkeypatch.setattr(softprompt.training.run, "start_head", lambda *args: pytest.fail("the probe ran"))
    with pytest.raises(softprompt.SoftPromptError, match=re.escape(message)):
        (plan if dry else softprompt.train)(options(encoder, animals, tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


def test_accuracy_is_refused_for_completions_in_a_dry_run(decoder: Path, lines: Path, tmp_path: Path) -> None:
    said = r"track='accuracy': accuracy is that of labelled texts, got a completion task; take it out\."
    with pytest.raises(softprompt.SoftPromptError, match=said):
        plan(options(decoder, lines, tmp_path / "out", track="accuracy"))
    assert plan(options(decoder, lines, tmp_path / "out", track="all"))["kind"] == "completion"


@pytest.mark.parametrize("method", ["dept", "ept"])
def test_a_delta_reaches_as_far_as_the_texts_of_train(
    method: str, encoder: Path, animals: Path, tmp_path: Path, announced: Callable[[], list[str]]
) -> None:
    """Rows of A behind the longest text learn nothing: longer texts would get what was drawn for them, times a trained B."""
    run = check.check_run(options(encoder, animals, tmp_path / "a", method=method, rank=2))
    longest = max(map(len, run.prepared.encoded["train"]["input_ids"]))
    assert isinstance(run.config, softprompt.SoftPromptConfig) and run.config.max_positions == longest
    assert any(
        said.startswith(f"max_positions={longest}: the longest input of train has so many") for said in announced()
    )
    run = check.check_run(options(encoder, animals, tmp_path / "b", method=method, rank=2, max_positions=3))
    assert isinstance(run.config, softprompt.SoftPromptConfig) and run.config.max_positions == 3


def test_a_search_trains_on_the_weights_of_the_plan_and_leaves_its_model_alone(
    encoder: Path, animals: Path, tmp_path: Path
) -> None:
    tf.set_seed(0)
    run = check.check_run(options(encoder, animals, tmp_path / "out", **GATED, budget=1))
    model, head = run.prepared.model, run.prepared.model.classifier
    before = {name: value.clone() for name, value in model.state_dict().items()}
    phase = search_phase.LayerPhase(run, [], tmp_path / "out")
    assert phase._made is not None
    mine = phase._made[0].model.get_base_model()
    assert {id(p) for p in mine.backbone.parameters()} >= {id(p) for p in model.backbone.parameters()}
    assert not {id(p) for p in mine.classifier.parameters()} & {id(p) for p in head.parameters()}
    selected = phase.run()
    assert len(selected["layers"]) == 1 and phase._made is None
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.classifier is head and not any("softprompt" in name for name, _ in model.named_modules())


# ---------------------------------------------------------------- the copy that a stop goes back to


@pytest.mark.parametrize("prompted", [True, False])
def test_values_are_kept_at_each_step_where_there_is_an_adapter(
    encoder: Path, tmp_path: Path, prompted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tf.set_seed(0)
    model = softprompt.classifier_for(tf.AutoModel.from_pretrained(encoder), ["a", "b"], "mean")
    if prompted:
        model = get_peft_model(model, softprompt.prompt_tuning(num_virtual_tokens=2))
    row = {**tokenizer()("red dog"), "labels": 0}
    arguments = tf.TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    rows = Dataset.from_list([row] * 4)
    collate = softprompt.data.collator(tokenizer(), "classification")
    trainer = softprompt.PromptTrainer(model, arguments, collate, rows)
    trainer.train()
    learned = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainer._good.keys() == (learned if prompted else set())
