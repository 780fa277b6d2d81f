"""A term's weight as its share of the gradient on the virtual tokens."""

import copy

import pytest
import torch
from torch.nn import functional as F

import softprompt
from house import families as f
from house.batches import training_batch
from house.families import BERT, P, backbone, close
from house.models import H, attached, built, state_of
from softprompt import SoftPromptError, objective
from softprompt.objectives import Balance, ObjectiveSet, PromptedOutput, build_objectives
from softprompt.objectives.shares import StepGradients

PROMPT = "base_model.model.softprompt.softprompt_prompts.default.embedding"


def shared(*objectives, **options):
    chosen = softprompt.prompt_tuning(P, task_type="SEQ_CLS", init_seed=0, objectives=list(objectives), **options)
    return attached(backbone(BERT, "seq_cls"), chosen)


def prompt_gradient(model, inputs):
    """The gradient on a plain prompt, which is that on its virtual tokens."""
    (prompt,) = state_of(model).active_prompt().parameters()
    model.zero_grad()
    model(**inputs).loss.backward()
    return prompt.grad.clone()


def parts(model, inputs):
    """Gradients of the task's loss, and of all that is added to it."""
    with state_of(model).plainly():
        task = prompt_gradient(model, inputs)
    return task, prompt_gradient(model, inputs) - task


@pytest.mark.parametrize("name", ["ts_loss", "persistence", "l2", "pairwise", "contrastive", "head_information"])
@pytest.mark.parametrize("share", [0.3, -2.0])
def test_a_term_gets_its_share_of_the_gradient(name, share):
    """Measured from outside: the gradients of two backward passes, with and without the term."""
    model, inputs = shared(objective(name, share=share), share_every=1), training_batch(BERT, "seq_cls")
    inputs = {key: torch.cat([value, value.flip(0)]) for key, value in inputs.items()}
    inputs["labels"] = torch.tensor([0, 1, 0, 1])  # pairs, to compare
    task, added = parts(model, inputs)
    close(added.norm() / task.norm(), torch.tensor(abs(share)), 1e-3)
    objectives = state_of(model).active_objectives()
    assert not objectives.measured, "there was no weight in force: the share that was asked for is no measurement"
    model(**inputs)
    close(objectives.measured[name], torch.tensor(abs(share)), 1e-5)
    with torch.no_grad():  # the sign of a share is that of a weight
        weight = share * objectives.balances[name].ratio
    plain = shared(objective(name, weight=weight.item()))
    close(parts(plain, inputs)[1], added, 1e-4)


def test_each_term_has_its_own_share():
    given = objective("l2", share=0.5), objective("pairwise", share=0.1), objective("ts_loss", weight=2.0)
    model, inputs = shared(*given, share_every=1), training_batch(BERT, "seq_cls")
    model(**inputs)
    assert list(state_of(model).active_objectives().measured) == ["ts_loss"]
    model(**inputs)
    measured = {name: share.item() for name, share in state_of(model).active_objectives().measured.items()}
    assert measured == {"l2": pytest.approx(0.5), "pairwise": pytest.approx(0.1), "ts_loss": measured["ts_loss"]}
    task, added = parts(shared(objective("ts_loss", weight=2.0)), inputs)
    assert measured["ts_loss"] == pytest.approx((added.norm() / task.norm()).item(), rel=1e-3)  # a weight has one, too


def test_the_weight_rests_between_measurements():
    model, inputs = shared(objective("l2", share=0.5, decay=0.5), share_every=4), training_batch(BERT, "seq_cls")
    objectives = state_of(model).active_objectives()
    found = []
    for step in range(6):
        objectives.step, objectives.progress = step, step / 6
        model(**inputs)
        found.append((objectives.balances["l2"].ratio.item(), {k: v.item() for k, v in objectives.measured.items()}))
        with torch.no_grad():
            next(state_of(model).active_prompt().parameters()).mul_(1.1)
    assert [list(measured) for _, measured in found] == [[], [], [], [], ["l2"], []]
    assert found[0][0] == found[3][0] != found[4][0] == found[5][0]
    (held, _), (new, measured) = found[3:5]  # what is noted is what the weight gave until then, not what was asked for
    assert measured["l2"] == pytest.approx(0.5 * (1 - 0.5 * 4 / 6) * held / new) and held / new > 1.1


def test_a_checkpoint_holds_the_weight():
    model, inputs = shared(objective("l2", share=0.5), share_every=4), training_batch(BERT, "seq_cls")
    objectives = state_of(model).active_objectives()
    model(**inputs)
    saved = copy.deepcopy(objectives.state_dict())
    other = shared(objective("l2", share=0.5), share_every=4)
    taken_up = state_of(other).active_objectives()
    taken_up.load_state_dict(saved)
    taken_up.step = objectives.step = 1
    close(other(**inputs).loss, model(**inputs).loss, 0)
    assert not taken_up.measured


def test_a_term_at_its_minimum_is_not_blown_up():
    """Below a hundredth of its second largest gradient it gets less than its share."""
    balance = Balance()
    assert not balance.measured
    balance.measure(torch.tensor(2.0), torch.tensor(4e9))  # an outlier, as where virtual tokens start as equals
    balance.measure(torch.tensor(2.0), torch.tensor(4.0))
    assert balance.ratio == 0.5 and balance.measured
    balance.measure(torch.tensor(2.0), torch.tensor(1e-9))
    assert balance.ratio == pytest.approx(2.0 / 0.04)
    for task, term in ((0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, float("inf"))):
        balance.measure(torch.tensor(task), torch.tensor(term))
        assert balance.ratio == pytest.approx(50.0)
    balance.reset_parameters()
    assert not balance.measured and not balance.largest.any()


def test_a_term_that_acts_now_and_then_is_measured_as_often():
    """On the first step in ``share_every`` on which it acts, whatever its ``every``."""
    model = shared(objective("l2", share=0.5, every=3), objective("pairwise", weight=0.1), share_every=4)
    inputs, objectives = training_batch(BERT, "seq_cls"), state_of(model).active_objectives()
    found: list[int] = []
    balance = objectives.balances["l2"]
    balance.measure = lambda *norms: (found.append(objectives.step), type(balance).measure(balance, *norms))
    for step in range(13):
        objectives.step, objectives.progress = step, 0.0
        model(**inputs)
    assert found == [0, 6, 9, 12]


def test_nothing_is_measured_where_nothing_learns():
    model, inputs = shared(objective("l2", weight=0.5)), training_batch(BERT, "seq_cls")
    objectives = state_of(model).active_objectives()
    with torch.no_grad():
        model(**inputs)
    assert objectives.measured == {}
    model(**inputs)
    assert list(objectives.measured) == ["l2"]
    silent = shared(objective("l2", weight=0.5), share_every=0)
    silent(**inputs)
    assert state_of(silent).active_objectives().measured == {}


def test_measuring_changes_no_gradient_and_no_draw():
    for share_every in (0, 1):
        model = shared(objective("representation_information", weight=0.3), share_every=share_every)
        torch.manual_seed(1)
        gradient, draw = prompt_gradient(model, training_batch(BERT, "seq_cls")), torch.rand(1)
        if not share_every:
            expected = gradient, draw
    close(gradient, expected[0], 1e-6)
    assert torch.equal(draw, expected[1])


def test_objectives_come_first():
    """At the start of training the terms alone are minimised; the head waits."""
    model = shared(objective("l2", weight=0.5), objectives_first=0.25)
    inputs, objectives = training_batch(BERT, "seq_cls"), state_of(model).active_objectives()
    with state_of(model).plainly():
        task = model(**inputs).loss
    for progress, counts in ((0.0, 0.0), (0.24, 0.0), (0.25, 1.0), (1.0, 1.0)):
        objectives.progress = progress
        model.zero_grad()
        out = model(**inputs)
        close(out.loss, counts * task + 0.5 * out.objectives["l2"])
        out.loss.backward()
        head = [p for n, p in model.named_parameters() if "modules_to_save" in n and p.requires_grad]
        assert any(bool(p.grad.any()) for p in head) == bool(counts)


def test_the_task_waits_on_steps_where_no_term_acts_as_well():
    model = shared(objective("l2", weight=0.5, every=2), objectives_first=0.5)
    inputs, objectives = training_batch(BERT, "seq_cls"), state_of(model).active_objectives()
    objectives.progress, objectives.step = 0.1, 1
    model(**inputs).loss.backward()
    assert not any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
    objectives.progress = 0.5
    assert model(**inputs).loss.item() > 0


def test_without_a_callback_calls_are_counted_and_nothing_decays(caplog):
    model, inputs = shared(objective("l2", share=0.5, decay=1.0), share_every=3), training_batch(BERT, "seq_cls")
    objectives, found = state_of(model).active_objectives(), []
    with caplog.at_level("INFO", logger="softprompt"):
        for _ in range(5):
            model(**inputs)
            found.append({name: share.item() for name, share in objectives.measured.items()})
    assert [list(measured) for measured in found] == [[], [], [], ["l2"], []]
    assert found[3]["l2"] == pytest.approx(0.5)
    assert caplog.text.count("decay=0 of l2: nobody says how far training is; give the trainer callbacks=") == 1


# ---------------------------------------------------------------------- refusals


def test_terms_that_come_first_must_know_when_to_end():
    model, inputs = shared(objective("l2", weight=0.5), objectives_first=0.25), training_batch(BERT, "seq_cls")
    with pytest.raises(SoftPromptError, match=r"objectives_first=0\.25: expected to be told how far training is"):
        model(**inputs)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("l2", {"share": "abc"}, "objective 'l2': share: expected a number, got 'abc'"),
        ("l2", {"share": float("nan")}, "share: expected a number, got nan"),
        ("l2", {"share": True}, "share: expected a number, got True"),
        ("l2", {"every": 1.5}, "every: expected a whole number of at least 1, got 1.5"),
        ("l2", {"layers": 3}, "layers: expected a list of whole numbers, got 3"),
        ("pairwise", {"eps": -1.0}, "eps: expected a number of at least 0, got -1.0"),
        ("contrastive", {"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ("head_information", {"samples": 0}, "samples: expected a whole number of at least 1, got 0"),
        ("representation_information", {"latent": -2}, "latent: expected a whole number of at least 1, got -2"),
        ("l2", {"decay": 3.0}, "decay is the share of the weight that goes: expected 0 to 1, got 3.0"),
        ("ts_loss", {"scale_free": "maybe"}, "scale_free: expected true or false, got 'maybe'"),
        ("persistence", {"scale": "foo"}, "scale"),
        ("persistence", {"keep": -1.0}, "keep: expected a number of at least 0, got -1.0"),
        ("persistence", {"degrees": []}, "degrees: expected degrees of bars such as [0] or [0, 1], got none"),
        (
            "persistence",
            {"statistic": "target", "target": [1]},
            "target: expected a list whose items are each a list of numbers, got [1]",
        ),
        ("latent_divergence", {"share": 0.1}, "share: the term has no gradient on the prompt"),
    ],
)
def test_a_field_is_refused_where_the_entry_is_made(name, fields, message):
    with pytest.raises(SoftPromptError) as refused:
        objective(name, **fields)
    assert message in str(refused.value)
    with pytest.raises(SoftPromptError):
        softprompt.prompt_tuning(4, objectives=[{"name": name, **fields}])
    kept = softprompt.prompt_tuning(
        4, objectives=[{"name": name, **fields}], inference_mode=True
    )  # what was saved loads
    assert kept.objectives == [{"name": name, **fields}]
    if name == "latent_divergence":
        assert objective(name, through_state=True, **fields)


def test_a_number_in_a_text_is_a_number():
    """YAML reads 1e-3 as a text."""
    assert objective("l2", weight="1e-3", every=2.0) == {"name": "l2", "weight": 0.001, "every": 2}


def test_a_share_needs_a_measurement():
    with pytest.raises(SoftPromptError, match="share_every=0 measures no gradient, but l2 has a share of it"):
        build_objectives([objective("l2", share=0.1)], H, share_every=0)
    seen = PromptedOutput(
        virtual={0: torch.randn(1, 3, H, requires_grad=True)},
        tokens=torch.randn(2, 4, H),
        real=torch.ones(2, 4, dtype=torch.bool),
        representation=torch.randn(2, H),
    )
    with pytest.raises(SoftPromptError, match="the share of l2 is measured against the loss of a call"):
        build_objectives([objective("l2", share=0.1)], H)(seen)
    assert built("l2")(seen)[1].keys() == {"l2"}  # a weight needs none


def test_a_weight_or_a_share():
    with pytest.raises(
        SoftPromptError, match=r"objective 'l2' takes a weight or a share of the gradient, got weight=3"
    ):
        objective("l2", share=0.1, weight=3)


@pytest.mark.parametrize("first, objectives", [(1.0, [objective("l2")]), (0.5, [])])
def test_what_comes_first_is_a_part_of_training(first, objectives):
    with pytest.raises(SoftPromptError, match="objectives_first: expected a share of the training of at least 0"):
        softprompt.prompt_tuning(P, objectives_first=first, objectives=objectives)


def test_reentrant_checkpoints_cannot_be_measured(caplog):
    class Reentrant(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("Checkpointing is not compatible with .grad() or when an `inputs` parameter is passed")

    made = ObjectiveSet([*build_objectives([objective("l2", share=0.1)], H).objectives], H)
    virtual = torch.randn(1, 3, H, requires_grad=True)
    seen = PromptedOutput({0: virtual}, torch.randn(2, 4, H), torch.ones(2, 4).bool(), torch.randn(2, H))
    with pytest.raises(SoftPromptError, match="the share of a term in the gradient is measured by a backward pass to"):
        made(seen, F.relu(Reentrant.apply(virtual)).sum())
    weighed = build_objectives([objective("l2", weight=0.1)], H)  # needs no measurement, and says that there is none
    with caplog.at_level("INFO", logger="softprompt"):
        for _ in range(2):
            weighed(seen, F.relu(Reentrant.apply(virtual)).sum())
    assert caplog.text.count("share_every=0: reentrant gradient checkpoints know only a whole backward pass") == 1
    assert weighed.measured == {}


def test_the_share_is_of_the_step_that_is_accumulated() -> None:
    """A batch is a quarter of what the trainer divides by: term and task are measured alike."""
    chosen = softprompt.prompt_tuning(f.P, task_type="CAUSAL_LM", init_seed=0, objectives=[objective("l2", share=0.5)])
    model, inputs = attached(f.backbone(f.LLAMA, "causal_lm"), chosen), training_batch(f.LLAMA, "causal_lm")
    inputs["num_items_in_batch"] = 4 * int((inputs["labels"][:, 1:] != -100).sum())
    (prompt,) = state_of(model).active_prompt().parameters()

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(**inputs).loss.backward()
        return prompt.grad.clone()

    with state_of(model).plainly():
        task = gradient()
    added = gradient() - task
    assert (added.norm() / task.norm()).item() == pytest.approx(0.5, rel=1e-3)


def test_the_share_is_that_of_the_gradients_of_a_step_together() -> None:
    """Four calls, in which the task's gradients partly cancel and the term's do not: measured from outside on their sums."""
    model, inputs = shared(objective("l2", share=0.3), share_every=2), training_batch(BERT, "seq_cls")
    objectives = state_of(model).active_objectives()
    calls = [{**inputs, "labels": (inputs["labels"] + i) % 2} for i in range(4)]

    def step(number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        objectives.step, objectives.progress = number, number / 3
        return [parts(model, call) for call in calls]

    def share(found: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        task, added = (sum(gradients[1:], gradients[0]) for gradients in zip(*found, strict=True))
        return float(added.norm() / task.norm())

    step(0)
    held = objectives.balances["l2"].ratio.item()
    assert not objectives.measured, "the first step has no weight before it"
    found = step(1)
    assert share(found) == pytest.approx(0.3, rel=1e-3) and not objectives.measured
    assert share(found[:1]) < 0.27, "a call alone has a larger gradient of the task"
    with torch.no_grad():
        next(state_of(model).active_prompt().parameters()).mul_(1.3)
    step(2)
    new = objectives.balances["l2"].ratio.item()
    assert objectives.measured["l2"] == pytest.approx(0.3 * held / new) and held / new > 1.2
    assert share(step(3)) == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_gradients_of_rows_of_their_own_add_up_by_squares(count: int) -> None:
    virtual = torch.randn(count, 2, H, requires_grad=True)
    gradients = StepGradients(0)
    for factor in (3.0, -4.0):
        norms = gradients.add({"x": factor * virtual.sum(), "none": torch.ones(())}, [virtual])
    length = (count * 2 * H) ** 0.5
    assert norms["x"].item() == pytest.approx((0.5 if count == 1 else 2.5) * length) and norms["none"] == 0
