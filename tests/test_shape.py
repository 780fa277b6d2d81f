"""Objectives that read a prompt as a point cloud: TSLoss, exact persistence, and the controls."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback, TrainingArguments

import softprompt
from families import FAMILIES, P, backbone, close, config, tokens
from softprompt import SoftPromptError
from softprompt.objectives import (
    NormControl,
    PairControl,
    PersistenceObjective,
    PromptedOutput,
    TSLoss,
    build_objectives,
    objective,
)
from softprompt.topology import bottleneck, metrics, persistence, wasserstein
from test_contract_train import training_inputs

BERT, LLAMA = FAMILIES["bert"], FAMILIES["llama"]
TRIANGLE = [[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]  # sides 3, 4 and 5


def made(kind, **fields):
    """The term of an objective, which has no critics."""
    return partial(kind(**fields), critics=torch.nn.ModuleDict())


def seen(*clouds):
    """What a pass shows of a prompt with one cloud per layer, each [P, H] or [B, P, H]."""
    rows = {i: cloud if cloud.dim() == 3 else cloud[None] for i, cloud in enumerate(clouds)}
    tokens = torch.zeros(2, 3, clouds[0].shape[-1])
    return PromptedOutput(rows, tokens, torch.ones(2, 3, dtype=torch.bool), tokens[:, 0])


def softmin(values, alpha):
    weights = [math.exp(-alpha * v) for v in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def by_hand(sides, alpha, l1, l2, power=1):
    """TSLoss of three points, one number at a time; ``sides`` are the distances (0, 1), (0, 2), (1, 2)."""
    near = [softmin(pair, alpha) for pair in (sides[:2], (sides[0], sides[2]), sides[1:])]  # j = i is no neighbour
    mean = sum(near) / 3
    connectivity = sum((d - mean) ** 2 for d in near) / 3
    low, high = softmin(sides, alpha), softmin(sides, -alpha)
    excess = [max(low - d, 0) ** power + max(d - high, 0) ** power for d in sides]
    return l1 * connectivity + l2 * sum(excess) / 3


@pytest.mark.parametrize("form, power", [("hinge", 1), ("squared", 2)])
@pytest.mark.parametrize("scale_free", [False, True])
def test_ts_loss_of_three_points(form, power, scale_free):
    sides = [3.0, 4.0, 5.0]
    if scale_free:
        sides = [side / 4 for side in sides]
    loss = made(TSLoss, l1=0.3, l2=0.7, alpha=0.9, scale_free=scale_free, form=form)(seen(torch.tensor(TRIANGLE)))
    assert loss.item() == pytest.approx(by_hand(sides, 0.9, 0.3, 0.7, power), rel=1e-5)
    for part in ("l1", "l2"):  # both parts act
        alone = made(TSLoss, **{"l1": 0.3, "l2": 0.7, "alpha": 0.9, "scale_free": scale_free, "form": form, part: 0.0})
        assert abs(alone(seen(torch.tensor(TRIANGLE))).item() - loss.item()) > 1e-4


def test_a_point_is_not_its_own_neighbour():
    """With j = i every d_i would be near 0 and even an uneven cloud would look even."""
    cloud = torch.tensor([[0.0], [1.0], [1.1], [5.0]])
    assert made(TSLoss, l2=0.0, l1=1.0, alpha=50.0, scale_free=False)(seen(cloud)) > 1


@pytest.mark.parametrize("points", [2, 5])
@pytest.mark.parametrize(
    "fields", [{}, {"detach_band": False}, {"form": "squared", "scale_free": False}], ids=["default", "band", "squared"]
)
def test_gradients_of_ts_loss(points, fields, monkeypatch):
    """Without the detached parts, which finite differences do not know."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # objectives compute in float32
    torch.manual_seed(0)
    cloud = torch.randn(points, 3, dtype=torch.float64, requires_grad=True)
    loss = made(TSLoss, **{"alpha": 1.3, "detach_band": False, **fields, "scale_free": False})
    if loss.func.detach_band:
        return
    assert torch.autograd.gradcheck(lambda x: loss(seen(x)), cloud)


@pytest.mark.parametrize("kind", [TSLoss, PersistenceObjective, PairControl, NormControl])
def test_equal_tokens_and_a_single_token_have_a_finite_gradient(kind):
    for count in (1, 2, 4):
        cloud = torch.ones(count, 3, requires_grad=True)
        loss = made(kind)(seen(cloud))
        (gradient,) = torch.autograd.grad(loss, cloud)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
        assert loss.item() == (3.0 if kind is NormControl else pytest.approx(0.0, abs=1e-5))


def test_controls_by_hand():
    cloud = torch.tensor(TRIANGLE)
    assert made(NormControl)(seen(cloud)).item() == pytest.approx((0 + 9 + 16) / 3)
    assert made(PairControl)(seen(cloud)).item() == pytest.approx(4.0)


@pytest.mark.parametrize("scale_free", [False, True])
def test_statistics_of_persistence_by_hand(scale_free):
    """A triangle of sides 3, 4 and 5: two components die at 3 and 4, and no loop is born."""
    cloud, bars = torch.tensor(TRIANGLE), [3.0, 4.0]
    bars = [bar / 3.5 for bar in bars] if scale_free else bars
    share = [bar / sum(bars) for bar in bars]
    expected = {
        "total": sum(bars),
        "variance": ((bars[1] - bars[0]) / 2) ** 2,
        "entropy": -sum(q * math.log(q) for q in share),
    }
    for statistic, value in expected.items():
        loss = made(PersistenceObjective, statistic=statistic, scale_free=scale_free)(seen(cloud))
        assert loss.item() == pytest.approx(value, rel=1e-5)
    target = [[0.0, bars[0] + 0.25], [0.0, bars[1]]]
    near = made(PersistenceObjective, statistic="target", degrees=[0], target=target, scale_free=scale_free)
    assert near(seen(cloud)).item() == pytest.approx(0.25, rel=1e-4)


def test_loops_count_when_they_are_asked_for():
    angles = torch.arange(12) * (2 * math.pi / 12)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    found = persistence(circle)
    assert len(found.h1) == 1
    both, loops = (made(PersistenceObjective, degrees=d, scale_free=False)(seen(circle)).item() for d in ((0, 1), (1,)))
    assert loops == pytest.approx(found.lifetimes(1).sum().item())
    assert both == pytest.approx(loops + found.lifetimes(0).sum().item())


@pytest.mark.parametrize("kind", [TSLoss, PersistenceObjective, PairControl, NormControl])
def test_layers_are_chosen_and_averaged(kind):
    torch.manual_seed(0)
    clouds = [torch.randn(5, 3) for _ in range(3)]
    alone = [made(kind)(seen(cloud)) for cloud in clouds]
    close(made(kind)(seen(*clouds)), torch.stack(alone).mean())
    close(made(kind, layers=[1])(seen(*clouds)), alone[1])
    with pytest.raises(
        SoftPromptError,
        match=r"reads the layers \[1, 7\], but the prompt enters \[0, 1, 2\]; name layers of these, without \[7\]",
    ):
        made(kind, layers=[1, 7])(seen(*clouds))


@pytest.mark.parametrize("kind", [TSLoss, PersistenceObjective, NormControl, PairControl])
def test_a_layer_counts_once_however_many_rows_it_has(kind):
    torch.manual_seed(0)
    shared, own = torch.randn(1, 5, 3), torch.randn(4, 5, 3)
    close(made(kind)(seen(shared, own)), (made(kind)(seen(shared)) + made(kind)(seen(own))) / 2)


def test_prompts_that_differ_between_rows_are_clouds_of_their_own():
    torch.manual_seed(0)
    rows = torch.randn(2, 5, 3)
    close(made(TSLoss)(seen(rows)), torch.stack([made(TSLoss)(seen(row)) for row in rows]).mean())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"statistic": "totl"}, "unknown statistic 'totl': expected one of total, variance, entropy, target"),
        ({"degrees": [2]}, "unknown degree 2: expected one of 0, 1"),
        ({"metric": "chord"}, "unknown metric 'chord': expected one of euclidean, cosine"),
        ({"statistic": "target"}, "statistic='target' and a target diagram of one degree go together"),
        (
            {"statistic": "target", "degrees": [0], "target": [[1.0, 0.0]]},
            "target: expected bars [birth, death] with birth <= death, got [[1.0, 0.0]]",
        ),
    ],
)
def test_wrong_persistence_objectives_are_named(fields, message):
    with pytest.raises(SoftPromptError) as error:
        build_objectives([objective("persistence", **fields)], 4)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["ts_loss", "persistence", "l2", "pairwise"])
@pytest.mark.parametrize("method", ["prompt_tuning", "deep_prompts", "ept", "spt", "infoprompt"])
def test_shapes_compose_with_every_prompt(name, method):
    """The term joins the loss, and its gradient reaches the prompt; EPT's is that of the reconstructed rows."""
    extra = {"objectives": [objective(name, weight=0.7)]}
    model = get_peft_model(backbone(BERT, "seq_cls"), config(method, "seq_cls", **extra)).train()
    inputs = training_inputs(BERT, "seq_cls")
    torch.manual_seed(0)
    found = model(**inputs)
    assert name in found.objectives
    others = {"head_information": 0.1, "representation_information": 0.2, "latent_divergence": 0.1, name: 0.7}
    with model.base_model.state.plainly():
        bare = model(**inputs).loss
    close(found.loss, bare + sum(others[key] * value for key, value in found.objectives.items()))
    prompt = model.base_model.state.active_prompt()
    before = [p.grad for p in prompt.parameters()]
    assert before == [None] * len(before)
    found.loss.backward()
    assert any(bool(p.grad.any()) for p in prompt.parameters())


def test_minimising_ts_loss_evens_a_prompt_out():
    """A short optimisation: nearest distances, which start uneven, come together."""
    torch.manual_seed(1)
    cloud = torch.cat([torch.randn(6, 4), 0.05 * torch.randn(6, 4)]).requires_grad_()
    loss, optimizer = made(TSLoss, l1=1.0, l2=0.0), torch.optim.Adam([cloud], 0.05)
    first = loss(seen(cloud)).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(seen(cloud)).backward()
        optimizer.step()
    assert loss(seen(cloud)).item() < 0.1 * first


def test_tsloss_is_prompt_tuning_with_one_more_term():
    made_config = softprompt.tsloss(P, l1=0.2, objectives=[objective("l2")])
    assert [entry["name"] for entry in made_config.objectives] == ["ts_loss", "l2"]
    assert made_config.objectives[0] == objective("ts_loss", l1=0.2, l2=0.1, alpha=10.0)
    plain, shaped = (
        get_peft_model(backbone(LLAMA, "causal_lm"), config(name, "causal_lm")) for name in ("prompt_tuning", "tsloss")
    )
    rows = [model.base_model.state.active_prompt().embedding for model in (plain, shaped)]
    assert np.array_equal(*(row.detach().numpy() for row in rows))


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
