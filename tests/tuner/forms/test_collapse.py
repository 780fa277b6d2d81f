"""Ways out: PEFT's own format, and a prompt in its constant form."""

import pytest
import torch
from peft import PeftModel, get_peft_model

import softprompt
from house.families import (
    FAMILIES,
    LAYERS,
    LLAMA,
    P,
    backbone,
    batch,
    cases,
    close,
    config,
    output,
    prompted,
    stir,
    tokens,
    with_decoder,
)
from softprompt import SoftPromptConfig
from softprompt.prompts import PlainPrompt

# ---------------------------------------------------------------------- collapse


deep_ept = {
    "prompt": "decomposed",
    "placement": "deep",
    "num_virtual_tokens": P,
    "rank": 3,
    "max_positions": 12,
    "fusion_memory": "product",
    "num_spaces": 2,
    "space_bottleneck": 5,
    "gate": "token",
}


@pytest.mark.parametrize(
    "family, head, method",
    [c for c in cases(forms=True) if c[1] == c[0].lm and c[2] != "instance" and "spt" not in c[2]]
    + [(f, f.lm, "deep_ept") for f in FAMILIES.values()],
    ids=str,
)
@torch.no_grad()
def test_collapsed_prompt_gives_equal_outputs(family, head, method, tmp_path):
    inputs = with_decoder(family, head, batch(tokens(14, 5), "left" if family.kind == "decoder" else "right"))
    if method == "deep_ept":
        model = stir(get_peft_model(backbone(family, head), SoftPromptConfig(**deep_ept))).eval()
        assert softprompt.active_prompt(model)[0].short.shape[0] == LAYERS
    else:
        model = prompted(family, head, method)
    expected = output(model, **inputs)
    softprompt.collapse(model)
    assert model.active_adapter == "collapsed"
    assert isinstance(softprompt.active_prompt(model)[0], PlainPrompt)
    close(output(model, **inputs), expected)
    assert not any(p.requires_grad for p in model.parameters())

    model.save_pretrained(tmp_path, selected_adapters=["collapsed"])
    fresh = PeftModel.from_pretrained(backbone(family, head), tmp_path / "collapsed").eval()
    close(output(fresh, **inputs), expected)
    model.set_adapter("default")  # the prompt it came from is still there
    close(output(model, **inputs), expected, 0)


@torch.no_grad()
def test_collapsed_classifier_keeps_its_trained_head():
    model, inputs = prompted(FAMILIES["bert"], "seq_cls", "ept"), batch(tokens(9, 5))
    for key, parameter in model.named_parameters():
        if "modules_to_save" in key:
            parameter += 0.5
    expected = output(model, **inputs)
    softprompt.collapse(model, "small")
    close(output(model, **inputs), expected)


def test_a_config_is_written_whole(tmp_path):
    model = get_peft_model(backbone(LLAMA, "causal_lm"), config("ept", "causal_lm", learning_rates={"prompt": 0.3}))
    model.save_pretrained(tmp_path)
    loaded, live = SoftPromptConfig.from_pretrained(str(tmp_path)), model.peft_config["default"]
    assert {**live.to_dict(), "inference_mode": True} == {**loaded.to_dict(), "inference_mode": True}
    assert loaded.initialized and not live.initialized
    assert (loaded.hidden_size, loaded.num_layers, loaded.backbone_type) == (32, LAYERS, "llama")
