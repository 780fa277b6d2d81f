"""Critics: shared by size, never saved with an adapter, always with a checkpoint."""

import copy
import json
import logging

import pytest
import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

import softprompt
from house.batches import training_batch
from house.families import BERT, HIDDEN, P, backbone, output
from house.models import H, attached, gradients, infoprompt, passed, state_of, trainer, tuned, weights_of
from softprompt import objective
from softprompt.objectives import OBJECTIVES, build_objectives
from softprompt.objectives.information import Latent
from softprompt.training.loop.critics import load_critics

TERMS = ("head_information", "representation_information", "latent_divergence")


CRITIC_SHAPES = {"mu": 2, "log_sigma": 2, "out": 1, "context": 2}  # parameters of each linear layer


CRITICS = {
    f"critics.latent6.{layer}.{kind}" for layer, count in CRITIC_SHAPES.items() for kind in ("weight", "bias")[:count]
}


BALANCES = {f"balances.{name}.{kind}" for name in TERMS[:2] for kind in ("ratio", "largest")}  # of terms with a share


def test_critics_are_shared_by_size():
    entries = [objective("representation_information", latent=3), objective("latent_divergence", latent=3)]
    made = build_objectives(entries, H)
    assert list(made.critics) == ["latent3"]
    assert all(each.critic(made.critics) is made.critics["latent3"] for each in made.objectives)
    assert len(list(made.parameters())) == sum(CRITIC_SHAPES.values())
    apart = build_objectives([entries[0], objective("latent_divergence", latent=4)], H)
    assert list(apart.critics) == ["latent3", "latent4"]
    assert not list(build_objectives([objective("head_information")], H).parameters())


def test_a_set_owns_each_critic_once():
    """Under one name, and an objective holds none: a copy or a move of the set reaches all of them."""
    entries = [objective(name, **({"latent": 3} if "latent" in name or "repr" in name else {})) for name in OBJECTIVES]
    made = build_objectives(entries, H)
    owned = dict(made.named_modules(remove_duplicate=False))
    assert [name for name, module in owned.items() if isinstance(module, Latent)] == ["critics.latent3"]
    assert list(made.state_dict()) == [key for key, _ in made.named_parameters(remove_duplicate=False)]
    assert set(made.state_dict()) == {key.replace("latent6", "latent3") for key in CRITICS}
    assert not any(isinstance(value, nn.Module) for each in made.objectives for value in vars(each).values())
    twin = copy.deepcopy(made)
    assert twin.objectives == made.objectives and twin.critics["latent3"] is not made.critics["latent3"]


def test_critics_that_are_shared_draw_once():
    """What is drawn after them does not depend on how many objectives read them."""
    entries, after = [objective("representation_information"), objective("latent_divergence")], []
    for chosen in (entries, entries[:1]):
        torch.manual_seed(0)
        made = build_objectives(chosen, H)
        after.append((*made.state_dict().values(), torch.get_rng_state()))
    assert all(torch.equal(*pair) for pair in zip(*after, strict=True))


def test_critics_follow_the_seed_of_the_prompt():
    made = []
    tuned()  # the backbone is drawn once
    for seed in (1, 1, 2):
        torch.manual_seed(seed + len(made))
        before = torch.get_rng_state()
        model = tuned(init_seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        made.append(state_of(model).objectives.state_dict())
    assert all(torch.equal(value, made[1][key]) for key, value in made[0].items())
    assert not torch.equal(made[0]["default.critics.latent6.out.weight"], made[2]["default.critics.latent6.out.weight"])


def test_a_saved_adapter_has_no_critics_and_needs_none(tmp_path):
    model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls")).eval()
    model.save_pretrained(tmp_path)
    head = {f"base_model.model.classifier.{kind}" for kind in ("weight", "bias")}
    saved = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert saved == head | {"base_model.model.softprompt.softprompt_prompts.embedding"}
    entries = json.loads((tmp_path / "adapter_config.json").read_text())["objectives"]
    assert [entry["name"] for entry in entries] == list(TERMS)

    inputs = training_batch(BERT, "seq_cls")
    fixed = PeftModel.from_pretrained(backbone(BERT, "seq_cls"), tmp_path)
    assert len(state_of(fixed).objectives) == 0 and not any(p.requires_grad for p in fixed.parameters())
    assert torch.equal(output(fixed.eval(), **inputs), output(model, **inputs))
    assert "objectives" not in fixed.train()(**inputs)
    again = PeftModel.from_pretrained(backbone(BERT, "seq_cls"), tmp_path, is_trainable=True).train()
    assert set(state_of(again).objectives["default"].state_dict()) == CRITICS | BALANCES
    assert tuple(again(**inputs).objectives) == TERMS
    trained = {k for k, p in again.named_parameters() if p.requires_grad}
    assert trained == {k for k, p in model.named_parameters() if p.requires_grad}


def test_critics_are_real_when_weights_are_loaded_from_meta(tmp_path):
    tuned().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(
        backbone(BERT, "seq_cls"), tmp_path, is_trainable=True, low_cpu_mem_usage=True
    ).train()
    assert not any(p.is_meta for p in again.parameters())
    assert torch.isfinite(again(**training_batch(BERT, "seq_cls")).loss)


def two_adapters():
    """One adapter with objectives, a second without, a third with others."""
    model = tuned()
    model.add_adapter("plain", softprompt.prompt_tuning(P, task_type="SEQ_CLS", init_seed=0))
    added = [objective("latent_divergence", weight=0.5, latent=4)]
    model.add_adapter("other", softprompt.prompt_tuning(P, task_type="SEQ_CLS", init_seed=0, objectives=added))
    return model.train()


def test_only_the_active_adapters_objectives_act():
    model, inputs = two_adapters(), training_batch(BERT, "seq_cls")
    for name, terms in (("plain", ()), ("other", TERMS[2:]), ("default", TERMS), ("plain", ())):
        model.set_adapter(name)
        _, found = gradients(model, inputs)
        out = passed(model, inputs)
        assert tuple(out.get("objectives", ())) == terms
        assert all(f".objectives.{name}." in key for key in found if ".objectives." in key)
        assert any(".objectives." in key for key in found) == bool(terms)
    model.delete_adapter("default")
    assert list(state_of(model).objectives) == ["other"]
    assert not any("objectives.default" in key for key, _ in model.named_parameters())


def test_critics_of_inactive_adapters_are_not_trained():
    model = two_adapters()
    for name in ("other", "plain", "default"):
        model.set_adapter(name)
        trained = {
            k.split(".objectives.")[1].split(".")[0]
            for k, p in model.named_parameters()
            if ".objectives." in k and p.requires_grad
        }
        assert trained == ({name} if name != "plain" else set())


def test_the_head_of_the_active_adapter_is_compared():
    model = two_adapters()
    inputs = training_batch(BERT, "seq_cls")
    for name in ("default", "other"):
        model.set_adapter(name)
        with torch.no_grad():
            seen = state_of(model).observe(model.get_base_model(), frozenset({"head_rows"}), **inputs)
        assert seen.head_rows is model.get_base_model().classifier.modules_to_save[name].weight


@pytest.mark.parametrize("classes", [7, 6, HIDDEN])
def test_a_critic_is_not_taken_for_the_head(classes):
    """It has linear layers of its own, from H to the latent size (6) and from H to H."""
    base = tf.AutoModelForSequenceClassification.from_config(BERT.config(num_labels=classes))
    model = get_peft_model(base, infoprompt("seq_cls"))
    with torch.no_grad():
        seen = state_of(model).observe(base, frozenset({"head_rows"}), **training_batch(BERT, "seq_cls"))
    assert seen.head_rows is base.classifier.modules_to_save["default"].weight


def test_groups_hold_every_parameter_once_and_critics_learn_slowly():
    model = tuned(generator="instance")
    groups = {group["name"]: group for group in softprompt.parameter_groups(model, 0.5, 0.01, 0.2)}
    rates = {name: group["lr"] for name, group in groups.items()}
    assert rates == pytest.approx({"prompt": 0.5, "generator": 0.05, "critics": 0.05, "head": 0.2})
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len(groups["critics"]["params"]) == sum(CRITIC_SHAPES.values())
    assert {group["weight_decay"] for group in groups.values()} == {0.01}
    chosen = {"critics": 1e-3, "prompt": 0.3}
    asked = softprompt.parameter_groups(tuned(learning_rates=chosen), 0.5)
    assert {group["name"]: group["lr"] for group in asked} == pytest.approx({**chosen, "head": 0.5})


def test_critics_take_the_rate_of_the_active_adapter():
    model = tuned(learning_rates={"critics": 1e-3})
    model.add_adapter("second", infoprompt("seq_cls", learning_rates={"critics": 2e-3}))
    model.set_adapter("second")
    assert {g["name"]: g["lr"] for g in softprompt.parameter_groups(model, 0.5)}["critics"] == 2e-3


@pytest.mark.parametrize("generator", ["free", "instance"])
def test_a_resumed_run_equals_the_uninterrupted_one_in_prompt_and_critics(generator, tmp_path):
    def run(model, **more):
        made = trainer(model, tmp_path, max_steps=6, save_strategy="steps", save_steps=2, **more)
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if more else None)
        return weights_of(made.model)

    straight = run(tuned(generator=generator))
    assert set(load_file(tmp_path / "checkpoint-2" / "objectives.safetensors")) == CRITICS | BALANCES
    assert not any("objectives" in key for key in load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors"))
    resumed = run(tuned(generator=generator, init_seed=7), save_total_limit=9)  # other critics, until they are read
    assert straight.keys() == resumed.keys() and any(".critics." in key for key in straight)
    for key, value in straight.items():
        assert torch.equal(value, resumed[key]), key


def test_a_checkpoint_without_critics_is_announced(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="softprompt")
    options = dict(save_strategy="steps", save_steps=2)
    trainer(tuned(), tmp_path, max_steps=2, **options).train()
    (tmp_path / "checkpoint-2" / "objectives.safetensors").unlink()
    trainer(tuned(), tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [r for r in caplog.messages if r.startswith("critics start anew: ")]


@pytest.mark.parametrize("kind", [softprompt.PromptTrainer, tf.Trainer])
def test_a_run_that_begins_says_nothing_of_critics_and_one_that_goes_on_has_them(kind, tmp_path, announced):
    def run(**more):
        own = [softprompt.ObjectivesCallback()] if kind is tf.Trainer else []
        made = trainer(tuned(**more), tmp_path, callbacks=own, kind=kind, save_strategy="steps", save_steps=2)
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if more else None)
        return weights_of(made.model)

    straight = run()
    assert not any("critics" in line for line in announced())
    resumed = run(init_seed=7)
    critics = {key: value for key, value in straight.items() if ".critics." in key}
    assert critics and all(torch.equal(value, resumed[key]) for key, value in critics.items())


def test_objectives_without_critics_miss_none(tmp_path, announced):
    added = [objective("l2", weight=0.1)]
    for more in ({}, {"objectives": added}):
        model = attached(backbone(BERT, "seq_cls"), softprompt.prompt_tuning(P, task_type="SEQ_CLS", **more))
        load_critics(model, tmp_path)
    assert announced() == []


class Cut(tf.TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_checkpoint_has_its_critics_before_anyone_hears_of_it(tmp_path):
    """A run that ends in a callback on saving resumes from that checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        trainer(tuned(), tmp_path, callbacks=[Cut()], save_strategy="steps", save_steps=2).train()
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file()
    assert (tmp_path / "checkpoint-2" / "objectives.safetensors").is_file()


def test_critics_come_from_the_checkpoint_that_is_resumed_from(tmp_path):
    """A run may resume in another folder than the one that holds the checkpoint."""
    options = dict(save_strategy="steps", save_steps=2)
    first = trainer(tuned(), tmp_path / "first", **options)
    first.train()
    second = trainer(tuned(init_seed=7), tmp_path / "second", **options)
    second.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    for key, value in weights_of(first.model).items():
        assert torch.equal(value, weights_of(second.model)[key]), key
