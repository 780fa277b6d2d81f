"""Contract: only the prompt and the declared head move, all of it moves, and checkpointing changes no gradient."""

import pytest
import torch
from peft import get_peft_model

from house.batches import training_inputs
from house.families import FAMILIES, backbone, cases, config, prompt_parameters, prompted
from softprompt import SoftPromptError


def own_head(family, head):
    """PEFT knows heads called classifier and score; T5's and BART's has another name and must be declared."""
    return (
        {"modules_to_save": ["classification_head"]} if head == "seq_cls" and family.kind == "encoder_decoder" else {}
    )


trained = [c for c in cases() if c[1] in ("seq_cls", c[0].lm)]


@pytest.mark.parametrize("family, head, method", trained, ids=str)
def test_only_the_prompt_and_its_head_move_and_all_of_it(family, head, method):
    model = get_peft_model(backbone(family, head), config(method, head, **own_head(family, head))).train()
    inputs = training_inputs(family, head)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0)
    for _ in range(3):
        # D_k and W_g have no gradient in the first step, as U_k starts at zero; A has none, as B does
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # an evaluation in between must not stop training
            model.eval()(**inputs)
        model.train()
    for key, value in model.named_parameters():
        may_move = any(part in key for part in ("softprompt_", ".softprompt.objectives.", ".modules_to_save.default."))
        assert value.requires_grad == may_move, key
        assert torch.equal(value, before[key]) != may_move, key
    assert any("modules_to_save" in key for key in before) == (head == "seq_cls")
    assert (
        len(prompt_parameters(model))
        == {
            "prompt_tuning": 1,
            "deep_prompts": 1,
            "dept": 3,
            "ept": 6,
            "spt": 4,
            "infoprompt": 1,
            "tsloss": 1,
            "ulpt": 3,
        }[method]
    )


@pytest.mark.parametrize("family, head, method", [c for c in trained if c[1] == c[0].lm], ids=str)
def test_gradient_checkpointing_changes_no_gradient(family, head, method):
    inputs = training_inputs(family, head)
    weights = {
        "infoprompt": {"gamma": 0.1, "beta": 0.2},
        "tsloss": {"share": None},
    }  # a share needs use_reentrant=False

    def gradients(**checkpointing):
        model = prompted(family, head, method, **weights.get(method, {}))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model.train()
        torch.manual_seed(0)  # objectives draw noise
        # two passes before one backward, as DPO or a second view does
        (model(**inputs).loss + model(**{**inputs, "input_ids": inputs["input_ids"].flip(0)}).loss).backward()
        return {key: value.grad for key, value in prompt_parameters(model).items()}

    expected = gradients()
    assert all(bool(gradient.abs().sum() > 0) for gradient in expected.values())
    shares_keys = family.name == "gemma4"
    if shares_keys:
        with pytest.raises(
            SoftPromptError, match="share keys and values, whose gradient reentrant checkpointing loses"
        ):
            gradients(use_reentrant=True)
    for reentrant in (False,) if shares_keys else (False, True):
        for key, gradient in gradients(use_reentrant=reentrant).items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5)


def test_training_mode_of_the_backbone_is_left_alone():
    model = backbone(FAMILIES["bert"], "seq_cls").train()
    assert get_peft_model(model, config("deep_prompts", "seq_cls")).base_model.model.bert.training


def test_shares_are_measured_under_checkpoints_but_not_reentrant_ones():
    family = FAMILIES["llama"]
    inputs, losses = training_inputs(family, "causal_lm"), []
    for checkpointing in (None, False, True):
        model = prompted(family, "causal_lm", "tsloss")
        if checkpointing is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
        model.train()
        if checkpointing:
            with pytest.raises(SoftPromptError, match=r"reentrant gradient checkpoints cannot do; set gradient_check"):
                model(**inputs)
        else:
            losses.append(model(**inputs).loss)
    torch.testing.assert_close(*losses)
