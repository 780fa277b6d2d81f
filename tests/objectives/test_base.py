"""Weights of objectives over time."""

import dataclasses

import pytest

import softprompt
from house.batches import training_batch
from house.families import BERT, P, backbone, close
from house.models import H, attached, built, state_of
from softprompt import objective
from softprompt.objectives import OBJECTIVES, build_objectives

# ---------------------------------------------------------------------- annealing and logs


def test_the_weight_falls_linearly_and_rests_between_steps():
    (only,) = built("head_information", weight=0.4, decay=0.5, every=3).objectives
    assert [only.factor(progress, 0) for progress in (0.0, 0.5, 1.0)] == pytest.approx([0.4, 0.3, 0.2])
    assert [only.factor(0.0, step) for step in range(5)] == [0.4, 0.0, 0.0, 0.4, 0.0]
    (gone,) = built("head_information", decay=1.0).objectives
    assert gone.factor(1.0, 7) == 0
    (kept,) = built("head_information").objectives
    assert kept.factor(1.0, 7) == 1


def test_progress_and_step_reach_the_loss_of_a_model():
    added = [objective("latent_divergence", weight=0.5, decay=1.0, every=2)]
    model = attached(backbone(BERT, "seq_cls"), softprompt.prompt_tuning(P, task_type="SEQ_CLS", objectives=added))
    inputs, objectives = training_batch(BERT, "seq_cls"), state_of(model).objectives["default"]
    with state_of(model).plainly():
        bare = model(**inputs).loss
    for progress, step, weight in ((0.0, 0, 0.5), (0.8, 2, 0.1), (0.8, 3, 0.0), (1.0, 4, 0.0)):
        objectives.progress, objectives.step = progress, step
        out = model(**inputs)
        assert ("objectives" in out) == bool(weight)
        close(out.loss, bare + weight * out.get("objectives", {}).get("latent_divergence", 0.0))


# ---------------------------------------------------------------------- critics


@pytest.mark.parametrize("kind", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_is_a_value(kind):
    """Frozen, and equal to another with the same fields; options that are named are its fields."""
    assert kind() == kind() and kind(weight=3.0) == kind(weight=3.0) != kind()
    assert kind(decay=0.5) != kind() != kind(every=2)
    assert all(kind() != other() for other in OBJECTIVES.values() if other is not kind)
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind(), field.name, getattr(kind(), field.name))
    with pytest.raises(TypeError):
        kind(1.0)
    entry = objective(kind.name, **dataclasses.asdict(kind()))
    assert build_objectives([entry], H).objectives == (kind(),)
