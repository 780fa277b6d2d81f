"""Prompts as PEFT's own adapters, and PEFT's as ours: loaded without softprompt, with equal outputs."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import CartridgeConfig, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import softprompt
from house.families import (
    FAMILIES,
    LAYERS,
    LLAMA,
    P,
    backbone,
    batch,
    close,
    config,
    output,
    prompted,
    stir,
    tokens,
)
from softprompt import SoftPromptError
from softprompt.tuner.placing.mixture import BASE

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


UNIFORM = [FAMILIES[name] for name in ("gpt2", "llama", "qwen2", "qwen3", "gemma3", "opt", "gpt-oss")]
THEIRS = """
import pickle, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
root, names = sys.argv[1], sys.argv[2:]
ids = torch.tensor([[7, 8, 9, 11, 2], [12, 6, 5, 8, 2]])
made = {}
with torch.no_grad():
    for name in names:
        base = AutoModelForCausalLM.from_pretrained(f"{root}/{name}")
        model = PeftModel.from_pretrained(base, f"{root}/{name}-prompt").eval()
        made[name] = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        text = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=1, eos_token_id=None)
        made[name + "-text"] = text
assert "softprompt" not in sys.modules
torch.save(made, f"{root}/made.pt")
"""


@torch.no_grad()
def exported_prompts(folder):
    expected = {}
    ids = torch.tensor([[7, 8, 9, 2]])
    for name, head, auto, decoder in (
        ("llama", "causal_lm", AutoModelForCausalLM, {}),
        ("t5", "seq2seq_lm", AutoModelForSeq2SeqLM, {"decoder_input_ids": torch.tensor([[0, 5]])}),
    ):
        backbone(FAMILIES[name], head).save_pretrained(folder / name)
        model = stir(get_peft_model(auto.from_pretrained(folder / name), config("prompt_tuning", head))).eval()
        expected[name] = output(model, input_ids=ids, **decoder)
        assert softprompt.export_prompt_tuning(model, folder / f"{name}-prompt") == folder / f"{name}-prompt"
    return expected


@torch.no_grad()
def exported_prefixes(folder):
    ids, expected = torch.tensor([[7, 8, 9, 11, 2], [12, 6, 5, 8, 2]]), {}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    quiet = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    for family in UNIFORM:
        backbone(family, "causal_lm").save_pretrained(folder / family.name)
        base = AutoModelForCausalLM.from_pretrained(folder / family.name)
        method = "deep_prompts" if family.name in ("llama", "gpt2", "gemma3", "opt") else "prompt_tuning"
        model = stir(get_peft_model(base, config(method, "causal_lm"))).eval()
        softprompt.export_prefix_tuning(model, folder / f"{family.name}-prompt")
        expected[family.name] = model(**inputs).logits
        expected[f"{family.name}-text"] = model.generate(**inputs, **quiet)
    return expected


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Folders of exports and the expected outputs, after one process that has never heard of softprompt has read all of them."""
    prompts, prefixes = tmp_path_factory.mktemp("prompts"), tmp_path_factory.mktemp("prefixes")
    made = {"prompts": (prompts, exported_prompts(prompts)), "prefixes": (prefixes, exported_prefixes(prefixes))}
    code = f"import sys\nsys.argv = ['', {str(prompts)!r}]\n{VANILLA}"
    code += f"sys.argv = ['', {str(prefixes)!r}, *{[family.name for family in UNIFORM]!r}]\n{THEIRS}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return made


def test_vanilla_peft_loads_an_exported_prompt_with_equal_logits(elsewhere):
    folder, expected = elsewhere["prompts"]
    for name, logits in expected.items():
        close(torch.from_numpy(np.load(folder / f"{name}.npy")), logits)


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
            f"PROMPT_TUNING holds one [P, H] matrix at the input; this prompt enters {LAYERS} layers. Train one with placement='input'",
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


def test_vanilla_peft_reads_keys_and_values(elsewhere):
    """Deep and input prompts of seven families."""
    folder, expected = elsewhere["prefixes"]
    for name, value in torch.load(folder / "made.pt").items():
        close(value, expected[name])


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
@torch.no_grad()
def test_a_classifier_goes_with_its_head(name, tmp_path):
    family = FAMILIES[name]
    model = prompted(family, "seq_cls", "deep_prompts")
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for parameter in module.modules_to_save["default"].parameters():
                parameter.add_(0.3)
    softprompt.export_prefix_tuning(model, tmp_path)
    inputs = batch(tokens(6, 6)) if name == "llama" else batch(tokens(9, 5))
    theirs = PeftModel.from_pretrained(backbone(family, "seq_cls"), tmp_path).eval()
    close(theirs(**inputs).logits, model(**inputs).logits)
    softprompt.import_peft(tmp_path, tmp_path / "back")
    ours = PeftModel.from_pretrained(backbone(family, "seq_cls"), tmp_path / "back").eval()
    close(ours(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig, CartridgeConfig])
@torch.no_grad()
def test_adapters_of_peft_join_a_mixed_batch(kind, tmp_path):
    made = kind(
        task_type="CAUSAL_LM", num_virtual_tokens=3, **({} if kind is PromptTuningConfig else {"token_dim": 16})
    )
    if kind is not PromptTuningConfig:
        made.num_attention_heads, made.num_layers = 2, LAYERS
    theirs = get_peft_model(backbone(LLAMA, "causal_lm"), made).eval()
    for parameter in theirs.prompt_encoder.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    theirs.save_pretrained(tmp_path / "theirs")
    assert softprompt.import_peft(tmp_path / "theirs", tmp_path / "ours") == tmp_path / "ours"
    model = prompted(LLAMA, "causal_lm", "deep_prompts")
    model.load_adapter(str(tmp_path / "ours"), "theirs")
    rows, names = batch(tokens(6, 6, 6)), ["theirs", "default", BASE]
    together = model(**rows, adapter_names=names).logits
    want = theirs(**rows).logits[0, -6:]
    close(together[0], want)
    with model.disable_adapter():
        close(together[2], model(**rows).logits[2])
    model.set_adapter("theirs")
    assert model.peft_config["theirs"].peft_type == "SOFTPROMPT"
    close(model(**rows).logits[0], want)


def test_keys_and_values_of_another_backbone_are_refused(tmp_path):
    softprompt.export_prefix_tuning(prompted(FAMILIES["gpt2"], "causal_lm", "deep_prompts"), tmp_path / "theirs")
    softprompt.import_peft(tmp_path / "theirs", tmp_path / "ours")
    with pytest.raises(
        SoftPromptError, match="this prompt's keys and values are those of another backbone: expected 4 heads"
    ):
        PeftModel.from_pretrained(backbone(LLAMA, "causal_lm"), tmp_path / "ours")


@torch.no_grad()
def test_a_nested_module_of_theirs_comes_along(tmp_path):
    made = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3, modules_to_save=["bert.pooler", "classifier"])
    theirs = get_peft_model(backbone(FAMILIES["bert"], "seq_cls"), made).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    theirs.save_pretrained(tmp_path / "theirs")
    softprompt.import_peft(tmp_path / "theirs", tmp_path / "ours")
    ours = PeftModel.from_pretrained(backbone(FAMILIES["bert"], "seq_cls"), tmp_path / "ours").eval()
    close(ours(**batch(tokens(6, 6))).logits, theirs(**batch(tokens(6, 6))).logits)


def test_what_cannot_be_exchanged(tmp_path):
    out = tmp_path / "out"
    for family, head, method, message in (
        (
            LLAMA,
            "causal_lm",
            "dept",
            "PREFIX_TUNING cannot hold an input delta; this prompt changes the input embeddings",
        ),
        (LLAMA, "causal_lm", "deep_late", "this prompt has no keys and values that hold for every text: layers below"),
        (
            LLAMA,
            "causal_lm",
            "instance",
            "this prompt has no keys and values that hold for every text: the prompt reads",
        ),
        (FAMILIES["bert"], "seq_cls", "prompt_tuning", "in bert the prompt's states depend on the text behind it"),
        (FAMILIES["t5"], "seq2seq_lm", "deep_prompts", "in t5 the prompt's states depend on the text behind it"),
        (
            FAMILIES["bert"],
            "masked_lm",
            "deep_prompts",
            "PREFIX_TUNING needs a task_type, which PEFT has none of for this head",
        ),
    ):
        with pytest.raises(SoftPromptError) as error:
            softprompt.export_prefix_tuning(prompted(family, head, method), out)
        assert message in str(error.value)
    assert not out.exists()
    compiled = softprompt.compile(prompted(LLAMA, "causal_lm", "prompt_tuning"))
    with pytest.raises(SoftPromptError, match="PROMPT_TUNING holds virtual tokens, not keys and values"):
        softprompt.export_prompt_tuning(compiled, out)


def test_what_cannot_be_imported(tmp_path):
    def refuse(message, source="theirs"):
        with pytest.raises(SoftPromptError, match=message):
            softprompt.import_peft(tmp_path / source, tmp_path / "ours")
        assert not (tmp_path / "ours").exists()

    get_peft_model(backbone(LLAMA, "causal_lm"), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "lora")
    refuse("expected a PEFT adapter of PROMPT_TUNING, PREFIX_TUNING, CARTRIDGE, got LORA", "lora")
    refuse("no-such-folder", "no-such-folder")
    with pytest.raises(SoftPromptError, match="expected another folder than that of the adapter which is read"):
        softprompt.import_peft(tmp_path / "lora", tmp_path / "lora")
    softprompt.export_prefix_tuning(prompted(LLAMA, "causal_lm", "deep_prompts"), tmp_path / "theirs")
    settings = tmp_path / "theirs" / "adapter_config.json"
    text = settings.read_text()
    settings.write_text(text.replace('"token_dim": 16', '"token_dim": 24'))
    refuse(r"expected rows \[num_virtual_tokens, num_layers \* 2 \* token_dim\] = \[4, 144\], got \[4, 96\]")
    settings.write_text(text.replace("CAUSAL_LM", "SEQ_2_SEQ_LM"))
    refuse("PREFIX_TUNING of an encoder-decoder prompts its decoder, which softprompt does not")
    settings.write_text(text.replace("PREFIX_TUNING", "PROMPT_TUNING").replace("CAUSAL_LM", "SEQ_CLS"))
    refuse("PROMPT_TUNING with task_type SEQ_CLS was trained with a head that reads virtual tokens")
    settings.write_text(
        text.replace("PREFIX_TUNING", "PROMPT_TUNING").replace('"num_virtual_tokens": 4', '"num_virtual_tokens": 9')
    )
    refuse("expected 9 virtual tokens, as its config says, got 4")
    settings.write_text(text)
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(2)}, tmp_path / "theirs" / "adapter_model.safetensors")
    refuse("expected a tensor prompt_embeddings of two dimensions in adapter_model.safetensors")
