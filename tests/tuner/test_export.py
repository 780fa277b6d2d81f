"""Ways out: PEFT's own format, and a prompt in its constant form."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

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
from softprompt import SoftPromptConfig, SoftPromptError
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


# ---------------------------------------------------------------------- export to PEFT's own format


VANILLA = """
import sys, torch, numpy
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
root = sys.argv[1]
with torch.no_grad():
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(f"{root}/llama"), f"{root}/llama-prompt").eval()
    numpy.save(f"{root}/llama.npy", model(input_ids=torch.tensor([[7, 8, 9, 2]])).logits[:, 4:].numpy())
    model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(f"{root}/t5"), f"{root}/t5-prompt").eval()
    numpy.save(f"{root}/t5.npy", model(input_ids=torch.tensor([[7, 8, 9, 2]]), decoder_input_ids=torch.tensor([[0, 5]])).logits.numpy())
assert "softprompt" not in sys.modules
"""


@torch.no_grad()
def test_vanilla_peft_loads_an_exported_prompt_with_equal_logits(tmp_path):
    expected = {}
    ids = torch.tensor([[7, 8, 9, 2]])
    for name, head, auto, decoder in (
        ("llama", "causal_lm", AutoModelForCausalLM, {}),
        ("t5", "seq2seq_lm", AutoModelForSeq2SeqLM, {"decoder_input_ids": torch.tensor([[0, 5]])}),
    ):
        backbone(FAMILIES[name], head).save_pretrained(tmp_path / name)
        model = stir(get_peft_model(auto.from_pretrained(tmp_path / name), config("prompt_tuning", head))).eval()
        expected[name] = output(model, input_ids=ids, **decoder)
        assert softprompt.export_prompt_tuning(model, tmp_path / f"{name}-prompt") == tmp_path / f"{name}-prompt"
    subprocess.run([sys.executable, "-c", VANILLA, str(tmp_path)], check=True, capture_output=True, text=True)
    for name, logits in expected.items():
        close(torch.from_numpy(np.load(tmp_path / f"{name}.npy")), logits)


def test_an_ept_prompt_without_its_delta_is_exported_as_its_prefix(tmp_path):
    """B = 0 leaves no delta; fusion and projection are folded into the rows."""
    model = prompted(LLAMA, "causal_lm", "ept")
    prompt = softprompt.active_prompt(model)[0]
    with torch.no_grad():
        prompt.lowrank_b.zero_()
    softprompt.export_prompt_tuning(model, tmp_path)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(backbone(LLAMA, "causal_lm"), tmp_path).eval()
        ids = torch.stack(tokens(6))
        close(theirs(input_ids=ids).logits[:, P:], output(model, input_ids=ids))


@pytest.mark.parametrize(
    "head, method, message",
    [
        (
            "causal_lm",
            "deep_prompts",
            f"PROMPT_TUNING holds one [P, H] matrix in front of the input; this prompt enters {LAYERS} layers. Train one with placement='input'",
        ),
        (
            "causal_lm",
            "dept",
            "PROMPT_TUNING cannot hold an input delta; this prompt changes the input embeddings too (DePT, EPT)",
        ),
        ("seq_cls", "prompt_tuning", "export needs task_type CAUSAL_LM or SEQ_2_SEQ_LM, got SEQ_CLS"),
        ("base", "prompt_tuning", "export needs task_type CAUSAL_LM or SEQ_2_SEQ_LM, got FEATURE_EXTRACTION"),
    ],
)
def test_export_refusals(head, method, message, tmp_path):
    with pytest.raises(SoftPromptError) as error:
        softprompt.export_prompt_tuning(prompted(LLAMA, head, method), tmp_path)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_config_is_written_whole(tmp_path):
    model = get_peft_model(backbone(LLAMA, "causal_lm"), config("ept", "causal_lm", learning_rates={"prompt": 0.3}))
    model.save_pretrained(tmp_path)
    loaded, live = SoftPromptConfig.from_pretrained(str(tmp_path)), model.peft_config["default"]
    assert {**live.to_dict(), "inference_mode": True} == {**loaded.to_dict(), "inference_mode": True}
    assert loaded.initialized and not live.initialized
    assert (loaded.hidden_size, loaded.num_layers, loaded.backbone_type) == (32, LAYERS, "llama")
