"""The shape of a prompt over training is what topology says of it, and recording changes nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback, TrainingArguments

import softprompt
from house import families as f
from house.families import BERT, P, backbone, close, config, tokens
from house.runs import options
from softprompt import SoftPromptError
from softprompt.topology import bottleneck, metrics, persistence, wasserstein
from softprompt.watch.shape import _described, topology_summary

# ---------------------------------------------------------------------- over training


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def run(folder, *callbacks, resume=None, every=None, method="deep_prompts"):
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": i % 3}
        for i, row in enumerate(tokens(6, 6, 6, 6, 6, 6))
    ]
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        save_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    model = get_peft_model(backbone(BERT, "seq_cls"), config(method, "seq_cls"))
    recorder = softprompt.TopologyCallback(folder / "topology.jsonl.gz", every)
    trainer = softprompt.PromptTrainer(model, arguments, train_dataset=rows, callbacks=[recorder, *callbacks])
    trainer.train(resume_from_checkpoint=resume)
    return model, softprompt.read_topology(folder / "topology.jsonl.gz")


def without_time(records):
    return [
        {
            key: value.tolist() if key == "prompt" else value
            for key, value in r.items()
            if key not in ("seconds", "share")
        }
        for r in records
    ]


def test_records_hold_what_topology_says_of_the_prompt(tmp_path):
    model, records = run(tmp_path)
    assert [record["step"] for record in records] == [0, 3, 6, 9]
    last, before = records[-1], records[-2]
    assert np.array_equal(last["prompt"], model.base_model.state.active_prompt().embedding.detach().numpy())
    assert list(last["layers"]) == ["0", "1", "2"] and last["prompt"].shape[:2] == (3, P)
    for i, found in enumerate(last["layers"].values()):
        new, old = (persistence(torch.from_numpy(record["prompt"][i])) for record in (last, before))
        assert found["metrics"] == metrics(new)
        close(torch.tensor(found["h0"]), new.h0)
        assert found["bottleneck"][0] == pytest.approx(bottleneck(new.h0, old.h0).item(), rel=1e-5)
        assert found["wasserstein"][0] == pytest.approx(wasserstein(new.h0, old.h0).item(), rel=1e-5)
        assert found["wasserstein"][0] > 0
    assert "bottleneck" not in records[0]["layers"]["0"]
    assert all(record["seconds"] > 0 and 0 < record["share"] <= 1 for record in records)


def test_records_come_every_few_steps(tmp_path):
    assert [record["step"] for record in run(tmp_path, every=2)[1]] == [0, 2, 4, 6, 8]
    with pytest.raises(SoftPromptError, match="every: expected a number of steps of at least 1, got 0"):
        softprompt.TopologyCallback(tmp_path / "x", every=0)


def test_a_killed_run_keeps_its_records_and_goes_on(tmp_path):
    whole = run(tmp_path / "whole", every=1)[1]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", StopAt(5), every=1)
    path = tmp_path / "cut" / "topology.jsonl.gz"
    assert [record["step"] for record in softprompt.read_topology(path)] == [0, 1, 2, 3, 4, 5]
    path.write_bytes(path.read_bytes()[:-20])  # killed while it wrote
    assert [record["step"] for record in softprompt.read_topology(path)] == [0, 1, 2, 3, 4]
    resumed = run(tmp_path / "cut", every=1, resume=str(tmp_path / "cut" / "checkpoint-3"))[1]
    assert without_time(resumed) == without_time(whole)


def test_recording_changes_nothing(tmp_path):
    recorded, _ = run(tmp_path / "a", every=1, method="ept")
    other, _ = run(tmp_path / "b", every=7, method="ept")
    for one, two in zip(recorded.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_only_prompts_are_recorded(tmp_path):
    model = get_peft_model(backbone(BERT, "seq_cls"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    trainer = softprompt.PromptTrainer(
        model,
        TrainingArguments(str(tmp_path), report_to=[], disable_tqdm=True, use_cpu=True, max_steps=1),
        train_dataset=[{"input_ids": torch.tensor([5, 6, 2]), "labels": 0}],
        callbacks=[softprompt.TopologyCallback(tmp_path / "t.gz")],
    )
    with pytest.raises(SoftPromptError, match="track reads the prompt of a softprompt method"):
        trainer.train()


# ---------------------------------------------------------------- runs


def test_a_run_says_what_recording_its_topology_cost(encoder: Path, animals: Path, tmp_path: Path) -> None:
    plain = softprompt.train(options(encoder, animals, tmp_path / "plain"), progress=False)
    tracked = softprompt.train(options(encoder, animals, tmp_path / "tracked", track="topology"), progress=False)
    assert "topology" not in plain.document["train_info"]
    found = tracked.document["train_info"]["topology"]
    assert found["records"] == 3 and 0 < found["share"] < 1  # at the start and after two epochs
    assert 0 < found["seconds"] < tracked.document["train_info"]["train_time"]
    records = softprompt.read_topology(tmp_path / "tracked" / "topology.jsonl.gz")
    shape, last = found["layers"]["0"], records[-1]["layers"]["0"]
    moved = shape.pop("h0_motion")
    assert shape == last["metrics"]
    assert moved == pytest.approx((records[1]["layers"]["0"]["wasserstein"][0] + last["wasserstein"][0]) / 2)


def test_h1_and_its_distances_are_those_of_h1() -> None:
    angles = torch.arange(12) * (2 * math.pi / 12)
    new, old = (persistence(torch.stack([a * angles.cos(), angles.sin()], 1)) for a in (1, 2))
    found = _described(new, old)
    f.close(torch.tensor(found["h1"]).view(-1, 2), new.h1)
    for name, distance in (("bottleneck", bottleneck), ("wasserstein", wasserstein)):
        assert found[name] == pytest.approx([distance(new.h0, old.h0).item(), distance(new.h1, old.h1).item()])


def test_motion_is_that_of_the_second_half() -> None:
    records = [
        {"step": i, "seconds": 1.0, "share": 0.1, "layers": {"0": {"metrics": {}, **moved}}}
        for i, moved in enumerate([{}, *({"wasserstein": [by, 0.0]} for by in (8.0, 4.0, 2.0))])
    ]
    assert topology_summary(records)["layers"]["0"]["h0_motion"] == 3.0
