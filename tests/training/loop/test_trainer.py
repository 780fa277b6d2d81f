"""The trainer: clocks, logs, accumulation, label-only logits, and what it puts back where numbers are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

import softprompt
from house import families as f
from house.batches import encoded_rows
from house.by_hand import mean_of
from house.families import BERT, FAMILIES, LLAMA, T5, TASK, P, backbone, batch, close, tokens
from house.models import attached, rows_seen, state_of, trainer, training, tuned
from softprompt import NonFiniteError, SoftPromptError, objective

# ---------------------------------------------------------------------- the trainer


def rows(family):
    """Six rows, with as many labels as their number modulo three, and one."""
    made = []
    for i, ids in enumerate(tokens(9, 7, 6, 8, 5, 9, seed=4)):
        ids, count = ids.tolist(), i % 3 + 1
        made.append(
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * (len(ids) - count) + ids[-count:]}
        )
    return Dataset.from_list(made)


def collate_labels(made):
    found = batch([torch.tensor(row["input_ids"]) for row in made])
    longest = found["input_ids"].shape[1]
    found["labels"] = torch.tensor([row["labels"] + [-100] * (longest - len(row["labels"])) for row in made])
    return found


def trainer_on_labels(model, folder, family=LLAMA, **options):
    own = {key: options.pop(key) for key in ("compute_loss_func", "compute_metrics") if key in options}
    quiet = dict(report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no", seed=0, max_grad_norm=0.0)
    arguments = tf.TrainingArguments(
        str(folder),
        **{**quiet, "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.02, **options},
    )
    made = softprompt.PromptTrainer(
        model, arguments, train_dataset=rows(family), eval_dataset=rows(family), data_collator=collate_labels, **own
    )
    made.remove_callback(tf.PrinterCallback)
    return made


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("family", [LLAMA, BERT, FAMILIES["modernbert"], T5], ids=str)
def test_the_trainer_trains_to_the_same_prompt_on_few_rows(family, accumulated, tmp_path):
    """Batches have 3 to 5 labels, so that accumulation must count labels, not batches (where the model's loss lets it)."""
    found = []
    for switch in (False, True):
        model = training(family, label_only_logits=switch)
        seen = rows_seen(model)
        run = trainer_on_labels(model, tmp_path, family, gradient_accumulation_steps=accumulated)
        run.train()
        loss = run.evaluate()["eval_loss"]
        found.append((loss, {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}, seen))
    (loss, expected, all_rows), (few_loss, got, few_rows) = found
    assert few_loss == pytest.approx(loss, rel=1e-5) and len(few_rows) == len(all_rows) == 2 * accumulated + 1
    assert all(few < all_ / 2 for few, all_ in zip(few_rows, all_rows, strict=True))
    for key, value in expected.items():
        close(got[key], value, 1e-4)  # AdamW makes steps of full size of the last bits


def test_a_metric_gets_its_logits(tmp_path):
    shapes = []

    def metric(prediction):
        shapes.append(prediction.predictions.shape)
        return {}

    model = training(LLAMA)
    seen = rows_seen(model)
    run = trainer_on_labels(model, tmp_path, max_steps=1, compute_metrics=metric)
    run.train()
    assert seen == [seen[0]] and seen[0] < 9
    run.evaluate()
    assert shapes == [(6, 9, 99)]
    assert run.compute_loss(model, collate_labels(rows(LLAMA).to_list()), return_outputs=True)[1].logits.shape == (
        6,
        9,
        99,
    )


@pytest.mark.parametrize("what", ["label_smoothing_factor", "compute_loss_func"])
def test_a_loss_of_the_trainers_own_gets_its_logits(what, tmp_path, caplog):
    shapes = []

    def own(outputs, labels, num_items_in_batch=None):
        shapes.append(tuple(outputs.logits.shape))
        return outputs.logits.float().pow(2).mean()

    model = training(LLAMA)
    seen = rows_seen(model)
    with caplog.at_level("INFO", logger="softprompt"):
        trainer_on_labels(model, tmp_path, max_steps=1, **{what: 0.1 if what.startswith("label") else own}).train()
    assert all(count in (14, 16, 18) for count in seen) and (not shapes or shapes[0][1] > 6)
    assert f"label_only_logits off: {what} makes its loss from logits" in caplog.text


def test_an_adapter_of_others_keeps_all_logits(tmp_path):
    model = get_peft_model(
        backbone(LLAMA, "causal_lm"), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    )
    seen = rows_seen(model)
    run = trainer_on_labels(model, tmp_path, max_steps=1)
    run.train()
    run.evaluate()
    assert seen[0] >= 14 and seen[1] == 6 * 9


TERMS = ("head_information", "representation_information", "latent_divergence")


# ---------------------------------------------------------------------- annealing and logs


class Watch(tf.TrainerCallback):
    """Note what every step of a run saw."""

    def __init__(self):
        self.clock, self.terms = [], []

    def on_substep_end(self, args, state, control, **kwargs):
        self.note(kwargs["model"])

    def on_step_end(self, args, state, control, **kwargs):
        self.note(kwargs["model"])

    def note(self, model):
        objectives = state_of(model).active_objectives()
        self.clock.append((objectives.progress, objectives.step))
        self.terms.append({k: v.item() for k, v in state_of(model).terms.items()})


@pytest.mark.parametrize("kind", [softprompt.PromptTrainer, tf.Trainer])
def test_a_trainer_tells_objectives_the_time(kind, tmp_path):
    watch = Watch()
    own = [softprompt.ObjectivesCallback()] if kind is tf.Trainer else []
    trainer(tuned(), tmp_path, callbacks=[*own, watch], kind=kind).train()
    assert watch.clock == [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3)]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_log_holds_the_mean_of_each_term(accumulated, tmp_path):
    watch = Watch()
    run = trainer(tuned(), tmp_path, callbacks=[watch], gradient_accumulation_steps=accumulated)
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(watch.terms) == 4 * accumulated
    for entry, part in zip(logged, (watch.terms[: 2 * accumulated], watch.terms[2 * accumulated :]), strict=True):
        for name in TERMS:
            assert entry[name] == pytest.approx(mean_of([terms[name] for terms in part]), rel=1e-5)
    assert not any(name in entry for entry in run.state.log_history if "loss" not in entry for name in TERMS)


def test_a_term_that_rests_is_logged_as_the_mean_of_its_own_steps(tmp_path):
    added = [objective("head_information"), objective("latent_divergence", every=2)]
    model = get_peft_model(
        backbone(BERT, "seq_cls"), softprompt.prompt_tuning(P, task_type="SEQ_CLS", objectives=added)
    )
    watch = Watch()
    run = trainer(model, tmp_path, callbacks=[watch], logging_steps=4)
    run.train()
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    for name, count in (("head_information", 4), ("latent_divergence", 2)):
        found = [terms[name] for terms in watch.terms if name in terms]
        assert len(found) == count and entry[name] == pytest.approx(mean_of(found), rel=1e-5)


def test_an_evaluation_adds_nothing_to_the_shares_of_training(tmp_path):
    found = []

    class Shares(tf.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            found.append(
                {name: share.item() for name, share in state_of(run.model).active_objectives().measured.items()}
            )
            if state.global_step == 1:
                run.evaluate(run.train_dataset)

    run = trainer(tuned(share_every=1), tmp_path, callbacks=[Shares()], logging_steps=4)
    run.train()
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    for name in TERMS[:2]:
        shares = [step[name] for step in found[1:]]  # the first sets the weight
        assert name not in found[0]
        assert len(set(shares)) > 1 and entry[f"share of {name}"] == pytest.approx(mean_of(shares), rel=1e-5)


def test_label_smoothing_does_not_switch_objectives_off(tmp_path):
    """The trainer then takes the labels away from the model, which makes no loss of its own."""
    with pytest.raises(SoftPromptError, match="expected no label_smoothing_factor and no compute_loss_func"):
        trainer(tuned(), tmp_path, label_smoothing_factor=0.1)


class Sum(tf.TrainerCallback):
    """The gradients of the one optimizer step."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.found = {k: p.grad.clone() for k, p in kwargs["model"].named_parameters() if p.grad is not None}


def pooled():
    base = backbone(BERT, "base")
    torch.manual_seed(0)
    return softprompt.PooledClassifier(base, ["a", "b", "c"], "mean")


@pytest.mark.parametrize(
    "make, head",
    [(lambda: backbone(LLAMA, "causal_lm"), "causal_lm"), (pooled, "seq_cls")],
    ids=["causal_lm", "pooled"],
)
def test_accumulation_counts_a_term_once(make, head, tmp_path):
    """One batch of four, or two of two: the divergence is a mean over rows, and all rows have as many labels."""
    found = []
    for size, times in ((4, 1), (2, 2)):
        added = [objective("latent_divergence", weight=1.0)]
        chosen = softprompt.prompt_tuning(P, task_type=TASK[head], objectives=added, init_seed=0)
        model, last = attached(make(), chosen), Sum()
        options = dict(
            per_device_train_batch_size=size, gradient_accumulation_steps=times, max_steps=1, max_grad_norm=0
        )
        trainer(model, tmp_path, encoded_rows(head, 8, 8, 8, 8), [last], **options).train()
        found.append(last.found)
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        close(gradient, found[1][key], 1e-5)


def test_accumulation_counts_labels_as_the_trainer_does():
    """A causal language model's loss has no use for the first label of a row, and the trainer does not count it."""
    added = [objective("latent_divergence", weight=1.0)]
    model = attached(backbone(LLAMA, "causal_lm"), softprompt.prompt_tuning(P, task_type="CAUSAL_LM", objectives=added))
    ids = torch.stack(tokens(8, 8))
    with state_of(model).plainly():
        bare = model(input_ids=ids, labels=ids).loss
    out = model(input_ids=ids, labels=ids, num_items_in_batch=2 * 7)
    close(out.loss, bare + out.objectives["latent_divergence"])


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


def test_a_batch_with_some_labels_stops_a_run_whose_loss_is_none(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}] * 4)
    trainer = _tiny_trainer(tmp_path, rows=rows, dev=None)
    trainer.model.base_model.model.lm_head.register_forward_hook(lambda m, a, o: o * float("nan"))
    with pytest.raises(NonFiniteError, match="expected a finite loss, got nan at step 1"):
        trainer.train()


@pytest.mark.parametrize(("given", "seed"), [({"seed": 3}, 3), ({"seed": 3, "data_seed": 0}, 0)])
def test_rows_of_one_length_come_in_the_order_of_the_datas_seed(
    given: dict[str, int], seed: int, tmp_path: Path
) -> None:
    trainer = _tiny_trainer(tmp_path, args={"train_sampling_strategy": "group_by_length", **given})
    assert trainer._get_train_sampler().seed == seed


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


def test_a_failed_evaluation_after_training_leaves_the_best_checkpoint(tmp_path: Path) -> None:
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = _tiny_trainer(tmp_path, args={**every, **best})
    trainer.train()
    step = trainer.state.best_global_step  # training lowers the loss, and here the highest counts
    chosen = _values(trainer.model)
    trainer.model.base_model.model.lm_head.register_forward_hook(lambda m, a, o: o * float("nan"))
    with trainer.restoring(), pytest.raises(NonFiniteError):
        trainer.evaluate()
    assert step == 1 and all(torch.equal(value, chosen[name]) for name, value in _values(trainer.model).items())


# ---------------------------------------------------------------------- ties


def planted(folder: Path, found: dict[str, list[tuple[float, float]]], metric: str, **more: Any) -> Any:
    """A trainer whose evaluations after steps 1, 2, ... give these (score, loss), by name of the dev set ("" is one alone)."""
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": metric, "greater_is_better": "loss" not in metric}
    args = {**every, **best, "max_steps": len(next(iter(found.values()))), **more.pop("args", {})}
    trainer = _tiny_trainer(folder, args=args, **more)
    if "" not in found:
        trainer.eval_dataset = dict.fromkeys(found, trainer.eval_dataset)

    def loop(loader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        score, loss = found[metric_key_prefix.removeprefix("eval").removeprefix("_")][trainer.state.global_step - 1]
        metrics = {f"{metric_key_prefix}_score": score, f"{metric_key_prefix}_loss": loss}
        return EvalLoopOutput(None, None, metrics, 1)

    trainer.evaluation_loop = loop
    return trainer


def kept(trainer: Any, folder: Path) -> int:
    """The step whose checkpoint the model holds and the state names."""
    (held,) = _values(trainer.model).values()
    step = trainer.state.best_global_step
    (saved,) = load_file(folder / f"checkpoint-{step}" / "adapter_model.safetensors").values()
    assert torch.equal(held, saved) and Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{step}"
    return int(step)


TIES = {
    "the lower loss": ([(0.5, 3), (0.7, 2), (0.7, 1), (0.6, 0)], "score", 3),
    "not the higher loss": ([(0.5, 3), (0.7, 2), (0.7, 2.5), (0.6, 0)], "score", 2),
    "of equal losses the later": ([(0.5, 3), (0.7, 2), (0.7, 2), (0.6, 0)], "score", 3),
    "the lowest of many": ([(0.7, 2), (0.7, 1), (0.7, 1.5), (0.7, 1.2)], "score", 2),
    "a better score, whatever its loss": ([(0.5, 0), (0.7, 1), (0.7, 0.5), (0.8, 9)], "score", 4),
    "of equal losses, where the loss is the score": ([(0.5, 3), (0.7, 1), (0.1, 1), (0.6, 2)], "loss", 3),
}


@pytest.mark.parametrize("case", TIES)
def test_of_equal_scores_the_lower_loss_is_kept_and_then_the_later(case: str, tmp_path: Path) -> None:
    found, metric, expected = TIES[case]
    trainer = planted(tmp_path, {"": found}, metric)
    trainer.train()
    assert kept(trainer, tmp_path) == expected


@pytest.mark.parametrize(("losses", "expected"), [((2, 1), 3), ((2, 3), 1), ((2, 2), 3)])
def test_a_tie_is_decided_alike_after_a_resume(losses: tuple[float, float], expected: int, tmp_path: Path) -> None:
    """Only the log in the checkpoint knows the loss of the best one."""
    found = {"": [(0.7, losses[0]), (0.5, 9), (0.7, losses[1]), (0.1, 0)]}
    planted(tmp_path, found, "score", args={"max_steps": 2}).train()
    trainer = planted(tmp_path, found, "score")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert kept(trainer, tmp_path) == expected


def test_of_several_dev_sets_the_loss_of_the_scored_one_decides(tmp_path: Path) -> None:
    found = {
        "a": [(0.1, 5), (0.9, 1), (0.9, 9)],
        "a_b": [(0.7, 3), (0.7, 2), (0.7, 1)],
        "a_c": [(0.7, 3), (0.7, 1), (0.7, 2)],
    }
    for metric, expected in (("a_b_score", 3), ("a_c_score", 2), ("a_score", 2)):
        trainer = planted(tmp_path / metric, found, metric)
        trainer.train()
        assert kept(trainer, tmp_path / metric) == expected


def test_a_tie_without_a_checkpoint_does_not_displace_one_that_has_it(tmp_path: Path) -> None:
    found = {"": [(0.5, 3), (0.7, 2), (0.7, 1), (0.6, 0)]}
    trainer = planted(tmp_path, found, "score", args={"save_steps": 2})
    trainer.train()
    assert kept(trainer, tmp_path) == 2


def test_a_tie_is_saved_where_only_the_best_is(tmp_path: Path) -> None:
    found = {"": [(0.7, 3), (0.7, 2), (0.7, 4), (0.6, 0)]}
    trainer = planted(tmp_path, found, "score", args={"save_strategy": "best"})
    trainer.train()
    assert kept(trainer, tmp_path) == 2
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_early_stopping_counts_no_tie_as_a_better_score(tmp_path: Path) -> None:
    found = {"": [(0.7, 5), (0.7, 4), (0.7, 3), (0.7, 2), (0.7, 1)]}
    trainer = planted(tmp_path, found, "score", callbacks=[EarlyStoppingCallback(2)])
    trainer.train()
    assert trainer.state.global_step == 3 and kept(trainer, tmp_path) == 3


def test_an_optimizer_of_other_groups_is_named(tmp_path: Path) -> None:
    """A checkpoint whose prompt had other groups of parameters, as `ept` had before its gate was one."""
    short = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    _tiny_trainer(tmp_path, args=dict(short)).train()
    path = tmp_path / "checkpoint-1" / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    saved["param_groups"].append({**saved["param_groups"][0], "params": []})
    torch.save(saved, path)
    again = _tiny_trainer(tmp_path, args=dict(short))
    with pytest.raises(
        SoftPromptError, match="its optimizer belongs to other groups of parameters than this model has"
    ):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
