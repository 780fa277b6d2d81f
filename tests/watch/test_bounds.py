"""How much a prompt tells: bounds of information over training, which change nothing."""

import logging
import math

import pytest
import torch
from safetensors.torch import load_file

import softprompt
from house import families as f
from house.batches import collate, encoded_rows
from house.by_hand import mean_of, nce
from house.families import BERT, HIDDEN, LLAMA, P, backbone
from house.models import attached, infoprompt, passed, state_of, tuned
from house.runs import infoprompt_options
from softprompt import SoftPromptError, objective
from softprompt.objectives import build_objectives
from softprompt.training.prepare import prepare
from softprompt.tuner.calls.call import Mode
from softprompt.watch import bounds

TERMS = ("head_information", "representation_information", "latent_divergence")


LENGTHS = (9, 5, 12, 7, 3, 8, 6)


# ---------------------------------------------------------------------- how much a prompt tells


@pytest.mark.parametrize("generator", ["free", "instance"])
@pytest.mark.parametrize("family, head", [(BERT, "seq_cls"), (LLAMA, "causal_lm")], ids=str)
def test_information_stays_below_its_maxima_and_changes_nothing(family, head, generator):
    model = attached(backbone(family, head), infoprompt(head, generator=generator))
    fit, held = encoded_rows(head, *LENGTHS), encoded_rows(head, 8, 6, 5, 9, 4)
    expected = passed(model, collate(fit.to_list())).objectives
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.zero_grad()
    random = torch.get_rng_state()
    found = softprompt.information(model, fit, held, collate)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert state_of(model).terms == expected and state_of(model)._mode == Mode()
    assert set(found) == {"information head", "information representation"}
    assert found["information representation"] <= math.log(1 + 4 * len(held)) + 1e-6

    with torch.no_grad():
        seen = state_of(model).observe(model.get_base_model(), frozenset({"head_rows"}), **collate(held.to_list()))
    scores = build_objectives([objective("head_information")], HIDDEN).objectives[0].compared(seen)
    bounds = []
    for positive, candidates, real in zip(*(x.tolist() for x in scores), strict=True):
        counted = [c for c, r in zip(candidates, real, strict=True) if r]
        bounds.append(math.log(1 + len(counted)) - nce(positive, counted))
        assert bounds[-1] <= math.log(1 + len(counted))
    assert found["information head"] == pytest.approx(mean_of(bounds), abs=1e-4)
    torch.manual_seed(99)
    assert softprompt.information(model, fit, held, collate) == found
    other = softprompt.information(model, fit, held, collate, seed=1)
    assert other["information head"] == pytest.approx(found["information head"])
    model.eval()
    assert softprompt.information(model, fit, held, collate) == found and not model.training


def test_information_sees_a_prompt_that_speaks_the_heads_language():
    """A prompt whose virtual tokens point where the classes' rows do tells the head nearly all there is to tell."""
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls"))
    rows = encoded_rows("seq_cls", 9, 9, 9, 9)
    silent = softprompt.information(model, rows, rows, collate)["information head"]
    with torch.no_grad():
        head = model.get_base_model().classifier.weight
        spoken = torch.stack([head[j % len(head)] - head.mean(0) for j in range(P)])
        softprompt.active_prompt(model)[0].embedding.copy_(1e4 * spoken[None])
    assert softprompt.information(model, rows, rows, collate)["information head"] > 0.9 * math.log(10) > silent


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_information_leaves_the_accelerators_random_state_alone():
    model, rows = tuned().cuda(), encoded_rows("seq_cls", *LENGTHS)
    before = torch.cuda.get_rng_state()
    softprompt.information(model, rows, rows, collate)
    assert torch.equal(torch.cuda.get_rng_state(), before)


# ---------------------------------------------------------------------- runs


def test_a_run_with_and_without_tracking_is_the_same(encoder, few_animals, tmp_path):
    told = []
    results = {
        track: softprompt.train(
            infoprompt_options(encoder, few_animals, tmp_path / track, track=track),
            report=lambda *now: told.append(now),
            progress=False,
        )
        for track in ("none", "mi")
    }
    assert told[-1] == ("unprompted states", 24, 24)
    assert len(told) == 1  # the second run reads them
    found = {track: load_file(tmp_path / track / "adapter_model.safetensors") for track in results}
    assert found["none"].keys() == found["mi"].keys()
    assert not any("objectives" in key for key in found["mi"])
    assert all(torch.equal(value, found["mi"][key]) for key, value in found["none"].items())
    assert results["none"].metrics == results["mi"].metrics
    history = {track: result.document["train_info"]["metrics"] for track, result in results.items()}
    for entries in history.values():
        logged = [entry for entry in entries if "loss" in entry]
        assert len(logged) == 2 and all(set(TERMS) <= entry.keys() for entry in logged)
    assert not any("information head" in entry for entry in history["none"])
    tracked = [entry for entry in history["mi"] if "information head" in entry]
    evaluated = [entry for entry in history["mi"] if "eval_loss" in entry]
    assert [entry["step"] for entry in tracked] == [entry["step"] for entry in evaluated]
    assert [entry["step"] for entry in tracked][:2] == [3, 6]
    for entry in tracked:
        assert entry["information head"] <= math.log(25) and entry["information representation"] <= math.log(1 + 4 * 18)
    config = results["mi"].document["run_info"]["peft_config"]
    assert [entry["name"] for entry in config["objectives"]] == list(TERMS)


def test_a_run_says_that_a_probe_gives_the_head_term_nothing_to_read(encoder, few_animals, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="softprompt")
    said = "the objective 'head_information' starts at nothing"
    prepared = prepare(infoprompt_options(encoder, few_animals, tmp_path / "a", exact=True))
    rows = prepared.model.classifier.weight
    assert rows.mean(0).norm() < 1e-6 * rows.norm() and said in caplog.text
    caplog.clear()
    for more in ({"head_init": "random", "exact": True}, {"method": "prompt_tuning"}, {}):
        prepare(infoprompt_options(encoder, few_animals, tmp_path / "b", **more))
    assert said not in caplog.text
    prepare(
        infoprompt_options(
            encoder,
            few_animals,
            tmp_path / "c",
            method="prompt_tuning",
            objectives=[{"name": "head_information", "rows": "mean"}],
        )
    )
    assert said in caplog.text


def test_tracking_is_refused_for_prompts_of_others(encoder, few_animals, tmp_path):
    with pytest.raises(
        SoftPromptError,
        match=r"track reads the prompt of a softprompt method: expected a PEFT model with a soft prompt",
    ):
        softprompt.train(
            infoprompt_options(encoder, few_animals, tmp_path / "out", method="peft:prompt_tuning", track="mi")
        )


def test_tracking_is_refused_before_anything_is_trained(encoder, few_animals, tmp_path):
    with pytest.raises(SoftPromptError):
        softprompt.train(
            infoprompt_options(encoder, few_animals, tmp_path / "out", method="peft:prompt_tuning", track="mi")
        )
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_the_rows_that_are_read_are_not_the_shortest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dev rows are sorted by length."""
    monkeypatch.setattr(bounds, "ROWS", 8)
    model = attached(f.backbone(f.BERT, "seq_cls"), infoprompt("seq_cls"))
    read = bounds._observe(model, encoded_rows("seq_cls", *[3] * 20, *[9] * 20), collate)
    assert sum(len(seen.real) for seen in read) == 8 and max(int(seen.real.sum(1).max()) for seen in read) == 9


def test_the_critic_is_fitted_on_rows_apart() -> None:
    model = attached(f.backbone(f.BERT, "seq_cls"), infoprompt("seq_cls"))
    fit, held = encoded_rows("seq_cls", 9, 5, 12, 7, 3, 8, 6), encoded_rows("seq_cls", 8, 6, 5, 9, 4)
    apart, same = (softprompt.information(model, rows, held, collate) for rows in (fit, held))
    assert apart["information representation"] != same["information representation"]
