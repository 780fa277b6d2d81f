"""What a trainer puts back where numbers are none, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainingArguments

import families as f
import softprompt
from softprompt import NonFiniteError


def _tiny_trainer(tmp_path: Path, **more: Any) -> softprompt.PromptTrainer:
    rows = Dataset.from_list([{"input_ids": row.tolist(), "labels": row.tolist()} for row in f.tokens(*[9] * 8)])
    arguments = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 0.05, "report_to": "none"}
    arguments |= {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", **more.pop("args", {})}
    model = more.pop("model", None) or f.prompted(f.FAMILIES["llama"], "causal_lm", "prompt_tuning")
    return softprompt.PromptTrainer(
        model=model,
        args=TrainingArguments(str(tmp_path), **arguments),
        train_dataset=more.pop("rows", rows),
        eval_dataset=more.pop("dev", rows),
        **more,
    )


def _values(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_an_evaluation_after_training_leaves_the_trained_prompt(tmp_path: Path) -> None:
    trainer = _tiny_trainer(tmp_path)
    trainer.train()
    trained = _values(trainer.model)
    spoil = trainer.model.base_model.model.lm_head.register_forward_hook(lambda m, a, o: o * float("nan"))
    for call in (trainer.evaluate, lambda: trainer.predict(trainer.eval_dataset)):
        with pytest.raises(NonFiniteError):
            call()
    spoil.remove()
    assert all(torch.equal(value, trained[name]) for name, value in _values(trainer.model).items())


def test_scores_of_what_cannot_be_are_no_fault(tmp_path: Path) -> None:
    trainer = _tiny_trainer(tmp_path)
    trainer.model.base_model.model.lm_head.register_forward_hook(
        lambda m, a, o: o.index_fill(-1, torch.tensor([3]), -torch.inf)
    )
    assert torch.isneginf(torch.tensor(trainer.predict(trainer.eval_dataset).predictions[..., 3])).all()


def test_a_batch_without_labels_does_not_stop_a_run(tmp_path: Path) -> None:
    ids = [5, 6, 7, 8]
    rows = Dataset.from_list([{"input_ids": ids, "labels": [-100] * 4 if i % 3 == 1 else ids} for i in range(6)])
    trainer = _tiny_trainer(tmp_path, rows=rows, dev=None, args={"per_device_train_batch_size": 1, "max_steps": 6})
    before = _values(trainer.model)
    trainer.train()
    after = _values(trainer.model)
    assert trainer.state.global_step == 6 and all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("step", [4, 2])
def test_a_gradient_that_is_none_is_found_in_the_values(tmp_path: Path, step: int) -> None:
    trainer = _tiny_trainer(tmp_path, args={"save_strategy": "steps", "save_steps": 1})
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    calls: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * float("nan") if len(calls) == step else gradient

    parameter.register_hook(spoil)
    with pytest.raises(NonFiniteError, match="got NaN or infinity: a gradient was not finite"):
        trainer.train()
    assert parameter.isfinite().all()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{i}" for i in range(1, step)]


def test_several_dev_sets_put_back_what_all_of_them_could_score(tmp_path: Path) -> None:
    trainer = _tiny_trainer(tmp_path, args={"eval_strategy": "steps", "eval_steps": 2})
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
    asked, loaders, at_two = [], trainer.get_eval_dataloader, {}

    def loader(name: Any = None) -> Any:
        asked.append(name)
        if trainer.state.global_step == 2:
            at_two.update(_values(trainer.model))
        return loaders(name)

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        fails = trainer.state.global_step == 4 and not module.training and asked[-1] == "b"
        return output * float("nan") if fails else None

    trainer.get_eval_dataloader = loader  # type: ignore[method-assign]
    trainer.model.base_model.model.lm_head.register_forward_hook(spoil)
    with pytest.raises(NonFiniteError, match="in the evaluation at step 4"):
        trainer.train()
    assert asked[:4] == ["a", "b", "a", "b"]
    assert all(torch.equal(value, at_two[name]) for name, value in _values(trainer.model).items())


def test_the_best_checkpoint_of_an_adapter_of_another_name(tmp_path: Path) -> None:
    model = f.prompted(f.FAMILIES["llama"], "causal_lm", "prompt_tuning")
    model.add_adapter("b", f.config("prompt_tuning", "causal_lm", init_seed=5))
    model.set_adapter("b")
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = _tiny_trainer(tmp_path, model=model, args={**best, "load_best_model_at_end": True, "learning_rate": 0.01})
    trainer.train()
    saved = load_file(Path(str(trainer.state.best_model_checkpoint)) / "b" / "adapter_model.safetensors")
    (value,) = saved.values()
    assert torch.equal(value, model.base_model.state.softprompt_prompts["b"].embedding.detach())
