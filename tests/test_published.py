"""What was published still loads: adapters, runs and results on the disks of users, made once by ``published/make.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

import softprompt
from published.rebuild import backbone, inputs, output

HERE = Path(__file__).resolve().parent / "published"
ADAPTERS = sorted(path.name for path in (HERE / "adapters").iterdir())
OURS = [name for name in ADAPTERS if not name.startswith("exported")]
OF_PEFT = {"peft_version", "inference_mode"}  # of who saves, not of what is saved


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def settings(folder: Path) -> dict[str, Any]:
    """An adapter's config without what says who saved it; PEFT adds the names of heads anew at each load."""
    found = {key: value for key, value in read(folder / "adapter_config.json").items() if key not in OF_PEFT}
    return {**found, "modules_to_save": sorted(set(found.get("modules_to_save") or []))}


# Adapters ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_gives_its_outputs_and_is_saved_as_it_was(name: str, tmp_path: Path) -> None:
    folder = HERE / "adapters" / name
    case = read(folder / "case.json")
    given = inputs(case["backbone"], case["head"])
    model = PeftModel.from_pretrained(backbone(case["backbone"], case["head"]), str(folder)).eval()
    expected = load_file(folder / "expected.safetensors")["output"]
    found = output(model, **given)
    close(found if name in OURS else found[:, -expected.shape[1] :], expected)  # PEFT leaves virtual tokens in logits
    model.save_pretrained(str(tmp_path))
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    published, now = settings(folder), settings(tmp_path)
    assert {key: now.get(key) for key in published} == published


@pytest.mark.parametrize("name", OURS)
def test_a_prompt_is_read_without_its_backbone(name: str) -> None:
    folder = HERE / "adapters" / name
    prompt, wanted = softprompt.read_prompt(folder), read(folder / "adapter_config.json")
    stored = load_file(folder / "adapter_model.safetensors")
    held = {key.partition("softprompt_prompts.")[2]: value for key, value in stored.items() if "softprompt_" in key}
    assert held.keys() == prompt.state_dict().keys()
    assert all(torch.equal(held[key], value) for key, value in prompt.state_dict().items())
    assert prompt.num_virtual_tokens == wanted["num_virtual_tokens"] and prompt.tau == wanted["tau"]
    assert wanted["layers"] in (None, list(prompt.layers))


@pytest.mark.parametrize("name", ["dept-t5-seq2seq_lm", "ept-bert-seq_cls", "deep_prompts-t5-seq_cls"])
def test_an_adapter_is_trained_on(name: str) -> None:
    folder = HERE / "adapters" / name
    case = read(folder / "case.json")
    fresh = backbone(case["backbone"], case["head"])
    model = PeftModel.from_pretrained(fresh, str(folder), is_trainable=True)
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert len(trained) == len(load_file(folder / "adapter_model.safetensors"))
