"""The trainer of several prompts: gradients of a mixed batch, and the state that each prompt keeps."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback

import softprompt
from house.runs import StopAfter, options
from softprompt.data import WithAdapterNames
from softprompt.training.check_together import check_together
from softprompt.training.loop.mixed import Choice, Learner, MixedTrainer
from softprompt.training.output.checkpoints import newest_checkpoint
from softprompt.training.prepare import gather, start_head
from softprompt.training.together import attach

METHODS = [
    ("prompt_tuning", {}),
    ("deep_prompts", {}),
    ("ept", {"max_length": 24, "rank": 2, "num_virtual_tokens": 4}),
]


@pytest.mark.parametrize("method, more", METHODS, ids=[name for name, _ in METHODS])
def test_a_mixed_batch_gives_each_prompt_the_gradient_of_its_own_rows(method, more, encoder, mixed, tmp_path):
    run = check_together(options(encoder, mixed, tmp_path, method=method, task_column="task", **more))
    shares, rows, alone = {"animal": 3, "sky": 5}, [], {}
    for part in run.parts:
        prepared = start_head(part.options, part.prepared)
        apart = gather(part.options, task=prepared.task)  # a backbone of its own
        apart.model.classifier.load_state_dict(prepared.model.classifier.state_dict())
        model = get_peft_model(apart.model, copy.deepcopy(part.config))
        encoded = prepared.encoded["train"].to_list()[: shares[part.name]]
        batch = prepared.kind.collator(prepared.tokenizer)(encoded)
        alone[part.adapter] = (model, batch)
        rows += [{**row, "adapter_names": part.adapter} for row in encoded]
    model = attach(run.parts, seed=0)
    rows = [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    kind, tokenizer = run.parts[0].prepared.kind, run.parts[0].prepared.tokenizer
    loss = model(**WithAdapterNames(kind.collator(tokenizer))(rows)).loss
    loss.backward()
    losses = []
    for adapter, (own, batch) in alone.items():
        mine = {name: p for name, p in model.named_parameters() if f".{adapter}." in name}
        theirs = dict(own.named_parameters())
        pairs = [(p, theirs[name.replace(f".{adapter}.", ".default.")]) for name, p in mine.items()]
        with torch.no_grad():
            for p, q in pairs:
                q.copy_(p)
        its_loss = own(**batch).loss
        its_loss.backward()
        share = len(batch["labels"]) / len(rows)
        losses.append(share * its_loss)
        assert len(pairs) >= 3
        for p, q in pairs:
            torch.testing.assert_close(p.grad, share * q.grad, atol=1e-6, rtol=1e-4)
        assert any(q.grad.abs().max() > 1e-4 for _, q in pairs)
    torch.testing.assert_close(loss, sum(losses))


def test_rows_of_all_tasks_share_batches_in_random_order(encoder, mixed, tmp_path, monkeypatch):
    seen, compute = [], MixedTrainer.compute_loss

    def noting(self, model, inputs, *args, **kwargs):
        seen.append(inputs["adapter_names"])
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(MixedTrainer, "compute_loss", noting)
    monkeypatch.setattr(MixedTrainer, "evaluate", lambda *args, **kwargs: {"eval_accuracy": 0.0})
    asked = {"task_column": "task", "num_train_epochs": 1, "train_sampling_strategy": "random", "save_strategy": "no"}
    softprompt.train(options(encoder, mixed, tmp_path / "run", **asked), progress=False)
    batches = [names for names in seen if len(names) == 8]
    assert sum(len(set(names)) == 2 for names in batches) > 0.8 * len(batches)
    assert len({tuple(names) for names in batches}) > 0.8 * len(batches)


class Spoil(TrainerCallback):
    """One prompt is moved away after step 5, the other after step 9."""

    def __init__(self):
        self.good = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        at = {"task000": 5, "task001": 9}
        with torch.no_grad():
            for name, p in model.named_parameters():
                adapter = next((one for one in at if f".{one}." in name), None)
                if adapter is None:
                    continue
                if state.global_step > at[adapter]:
                    p.copy_(self.good[name] + 50 * torch.randn_like(p))
                else:
                    self.good[name] = p.detach().clone()


def test_each_prompt_keeps_the_state_that_was_best_for_its_own_dev_rows(encoder, mixed, tmp_path):
    spoil = Spoil()
    asked = {"task_column": "task", "max_steps": 12, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    asked |= {"metric_for_best_model": "loss", "learning_rate": 1e-3}
    result = softprompt.train(options(encoder, mixed, tmp_path / "run", **asked), callbacks=[spoil], progress=False)
    found = {name: info["best_checkpoint_step"] for name, info in result.document["train_info"]["tasks"].items()}
    assert found["animal"] <= 5 < found["sky"] <= 9
    for name, own in (("animal", "task000"), ("sky", "task001")):
        history = json.loads((tmp_path / "run" / name / "result.json").read_text())["train_info"]
        losses = {entry["step"]: entry["eval_loss"] for entry in history["metrics"]}
        assert min(losses, key=losses.get) == found[name] and len(losses) == 12
        assert history["dev loss"] == pytest.approx(losses[found[name]], rel=1e-5)
        assert all(p.isfinite().all() and p.abs().max() < 20 for n, p in result.model.named_parameters() if own in n)


def test_without_a_choice_the_last_step_is_kept(encoder, mixed, tmp_path):
    asked = {"task_column": "task", "max_steps": 3, "load_best_model_at_end": False, "eval_strategy": "steps"}
    asked |= {"eval_steps": 1, "save_strategy": "no"}
    last = {}

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            last.update({name: p.detach().clone() for name, p in model.named_parameters() if ".task00" in name})

    result = softprompt.train(options(encoder, mixed, tmp_path / "run", **asked), callbacks=[Note()], progress=False)
    live = dict(result.model.named_parameters())
    assert last and all(torch.equal(live[name], value) for name, value in last.items())
    assert {info["best_checkpoint_step"] for info in result.document["train_info"]["tasks"].values()} == {None}
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_resumed_run_still_has_the_best_states_of_before(encoder, mixed, tmp_path):
    asked = {"task_column": "task", "num_train_epochs": 3, "metric_for_best_model": "loss"}
    chosen = options(encoder, mixed, tmp_path / "run", **asked)
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(chosen, callbacks=[StopAfter(2)], progress=False)
    best = load_file(newest_checkpoint(tmp_path / "run" / "checkpoints") + "/best.safetensors")

    class Worse(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                for name in best:
                    model.get_parameter(name).normal_(0, 50)

    result = softprompt.train(chosen, resume=True, callbacks=[Worse()], progress=False)
    assert best and all(torch.equal(result.model.get_parameter(name), value) for name, value in best.items())


def test_of_ties_the_lower_loss_is_kept_and_then_the_later_step() -> None:
    def kept(greater: bool, scores: list[tuple[float, float]]) -> int | None:
        trainer = object.__new__(MixedTrainer)
        trainer.choices, trainer._best, trainer.values_of = {"a": Choice()}, {}, lambda adapter: {}
        trainer.args = SimpleNamespace(metric_for_best_model="accuracy", greater_is_better=greater)
        for step, (score, loss) in enumerate(scores, 1):
            trainer.state = SimpleNamespace(global_step=step, epoch=0.0)
            learner = Learner("t", "a", None, "classification", [])
            trainer._choose(learner, {"eval_accuracy": score, "eval_loss": loss})
        return trainer.choices["a"].step

    found = [(0.5, 1.0), (0.5, 0.8), (0.5, 0.8), (0.5, 0.9), (0.4, 0.1)]
    assert (kept(True, found), kept(False, found), kept(False, found[:4])) == (3, 5, 3)
