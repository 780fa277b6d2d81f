"""Every way to load a saved prompt, and training that goes on from it."""

import copy

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForSequenceClassification,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from house.families import (
    BERT,
    LLAMA,
    backbone,
    batch,
    close,
    config,
    output,
    prompt_parameters,
    prompted,
    stir,
    tokens,
)
from house.models import hooks, trainable

INPUTS = batch(tokens(9, 5), "left")


LABELS = INPUTS["input_ids"].masked_fill(INPUTS["attention_mask"] == 0, -100)


@pytest.fixture
def saved(tmp_path):
    """A backbone on disk and, beside it, an EPT prompt for it: (backbone folder, adapter folder, expected logits)."""
    backbone(LLAMA, "causal_lm").save_pretrained(tmp_path / "llama")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "llama"), config("ept", "causal_lm"))
    stir(model).save_pretrained(tmp_path / "prompt")
    with torch.no_grad():
        return str(tmp_path / "llama"), str(tmp_path / "prompt"), output(model.eval(), **INPUTS)


def test_training_continues_from_a_saved_prompt(saved):
    folder, adapter, expected = saved
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter, is_trainable=True).train()
    stored = load_file(f"{adapter}/adapter_model.safetensors")
    values = prompt_parameters(model)
    assert trainable(model) == set(values) and len(values) == len(stored)
    for key, value in values.items():
        assert torch.equal(value, stored[key.replace(".default.", ".")])
    loss = model(**INPUTS, labels=LABELS).loss
    loss.backward()
    assert all(bool(value.grad.any()) for value in values.values())
    close(output(model.eval(), **INPUTS), expected, 0)
    assert not trainable(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter))


@torch.no_grad()
def test_every_way_to_load_a_causal_lm_gives_equal_logits(saved):
    folder, adapter, expected = saved
    by_transformers = AutoModelForCausalLM.from_pretrained(folder)
    by_transformers.load_adapter(adapter)
    models = {
        "PeftModel": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter),
        "low_cpu_mem_usage": PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder), adapter, low_cpu_mem_usage=True
        ),
        "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained(adapter),
        "transformers load_adapter": by_transformers,
        "transformers from_pretrained": AutoModelForCausalLM.from_pretrained(adapter),
    }
    for way, model in models.items():
        found = output(
            model.eval(), **INPUTS
        )  # values from a file may lie otherwise in memory, and are added in another order
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5), way
        assert not any(p.is_meta for p in model.parameters()), way


@torch.no_grad()
def test_auto_classes_of_other_tasks(tmp_path):
    for task, auto in (
        ("seq_cls", AutoPeftModelForSequenceClassification),
        ("base", AutoPeftModelForFeatureExtraction),
        ("masked_lm", AutoPeftModel),
    ):
        original = backbone(BERT, task)
        original.save_pretrained(tmp_path / task)
        model = get_peft_model(type(original).from_pretrained(tmp_path / task), config("dept", task))
        stir(model).eval().save_pretrained(tmp_path / f"{task}-prompt")
        loaded = auto.from_pretrained(tmp_path / f"{task}-prompt", **({"num_labels": 3} if task == "seq_cls" else {}))
        assert torch.equal(output(loaded.eval(), **INPUTS), output(model, **INPUTS))


@torch.no_grad()
def test_loading_a_second_adapter_by_name(saved):
    folder, adapter, expected = saved
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config("deep_prompts", "causal_lm")).eval()
    first = output(model, **INPUTS)
    model.load_adapter(adapter, "second")
    assert torch.equal(output(model, **INPUTS), first)
    model.set_adapter("second")
    assert torch.equal(output(model, **INPUTS), expected)


@torch.no_grad()
def test_a_deep_copy_is_equal_and_independent():
    model = prompted(LLAMA, "causal_lm", "deep_prompts")
    expected, twin = output(model, **INPUTS), copy.deepcopy(model)
    assert torch.equal(output(twin, **INPUTS), expected)
    stir(twin, 5)
    assert not torch.equal(output(twin, **INPUTS), expected)
    assert torch.equal(output(model, **INPUTS), expected)
    bare = twin.unload()
    assert hooks(bare) == 0 and torch.equal(output(bare, **INPUTS), output(backbone(LLAMA, "causal_lm"), **INPUTS))
    assert torch.equal(output(model, **INPUTS), expected)
