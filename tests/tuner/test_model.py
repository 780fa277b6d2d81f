"""The tuner inside PEFT: switching, detaching, copies, LoRA beside a prompt, modules that are saved."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

import softprompt
from house.families import (
    BERT,
    FAMILIES,
    LLAMA,
    PAD,
    VOCAB,
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
from house.models import hooks, trainable
from softprompt import SoftPromptError
from softprompt.tuner.state import PromptState

INPUTS = batch(tokens(9, 5), "left")


LABELS = INPUTS["input_ids"].masked_fill(INPUTS["attention_mask"] == 0, -100)


# ---------------------------------------------------------------------- several adapters on one model


@torch.no_grad()
def test_set_adapter_switches_outputs_and_trainability():
    alone = {
        name: output(prompted(LLAMA, "causal_lm", name, num_virtual_tokens=p), **INPUTS)
        for name, p in (("deep_prompts", 2), ("ept", 5))
    }
    model = get_peft_model(
        backbone(LLAMA, "causal_lm"),
        config("deep_prompts", "causal_lm", num_virtual_tokens=2),
        adapter_name="deep_prompts",
    )
    model.add_adapter("ept", config("ept", "causal_lm", num_virtual_tokens=5))
    for name in alone:
        stir(model, only=name)
    for name in ("ept", "deep_prompts", "ept"):
        model.set_adapter(name)
        close(output(model.eval(), **INPUTS), alone[name])
        assert trainable(model) and all(f"softprompt_prompts.{name}." in key for key in trainable(model))


def test_disabled_adapter_is_exactly_the_backbone():
    model, expected = prompted(LLAMA, "causal_lm", "ept"), output(backbone(LLAMA, "causal_lm"), **INPUTS)
    before = trainable(model)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(output(model, **INPUTS), expected)
        assert torch.equal(
            model.generate(**INPUTS, max_new_tokens=4, pad_token_id=PAD),
            backbone(LLAMA, "causal_lm").generate(**INPUTS, max_new_tokens=4, pad_token_id=PAD),
        )
    assert trainable(model) == before
    assert not torch.equal(output(model, **INPUTS), expected)


def test_an_adapter_added_after_training_leaves_the_first_as_it_was():
    model = prompted(LLAMA, "causal_lm", "ept").train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**INPUTS, labels=LABELS).loss.backward()
    optimizer.step()
    model.eval()
    expected, before = output(model, **INPUTS), trainable(model)
    model.add_adapter("second", config("deep_prompts", "causal_lm", num_virtual_tokens=7))
    assert torch.equal(output(model, **INPUTS), expected)
    assert trainable(model) == before
    fresh = get_peft_model(
        backbone(LLAMA, "causal_lm"), config("deep_prompts", "causal_lm", num_virtual_tokens=7)
    ).eval()
    model.set_adapter("second")  # drawn as on a bare backbone: the first prompt did not reach into its start
    assert torch.equal(output(model, **INPUTS), output(fresh, **INPUTS))


@torch.no_grad()
def test_delete_adapter():
    model = prompted(LLAMA, "causal_lm", "ept")
    expected = output(model, **INPUTS)
    model.add_adapter("second", config("deep_prompts", "causal_lm"))
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]
    assert not any("second" in key for key in model.state_dict())
    assert torch.equal(output(model, **INPUTS), expected)


def test_several_active_adapters_are_refused():
    model = prompted(LLAMA, "causal_lm", "ept")
    model.add_adapter("second", config("deep_prompts", "causal_lm"))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(
        SoftPromptError, match=r"expected one active prompt, got \['default', 'second'\]; choose one with set_adapter"
    ):
        model(**INPUTS)


@pytest.mark.parametrize(
    "family, head", [(LLAMA, "causal_lm"), (BERT, "seq_cls"), (FAMILIES["t5"], "seq2seq_lm")], ids=str
)
def test_unload_gives_the_bare_backbone_back(family, head):
    bare = backbone(family, head)
    names, count, modules = set(bare.state_dict()), hooks(bare), [type(m) for m in bare.modules()]
    model = prompted(family, head, "deep_prompts")
    assert hooks(model) > count
    restored = model.unload()
    assert (set(restored.state_dict()), hooks(restored), [type(m) for m in restored.modules()]) == (
        names,
        count,
        modules,
    )
    assert not hasattr(restored, "softprompt") and not hasattr(restored, "peft_config")
    assert all(torch.equal(value, bare.state_dict()[key]) for key, value in restored.state_dict().items())
    stir(get_peft_model(restored, config("ept", head)))  # and it can be used again


def test_merging_is_refused():
    model = prompted(LLAMA, "causal_lm", "ept")
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(
            SoftPromptError,
            match=r"a prompt cannot be merged into weights; use softprompt.collapse\(model\) .* or unload\(\) to drop it",
        ):
            merge()


# ---------------------------------------------------------------------- loading


@torch.no_grad()
def test_new_embeddings_are_used_after_a_resize():
    """A tokenizer that gained tokens resizes the embedding after the prompt was attached."""
    model = prompted(LLAMA, "causal_lm", "dept")
    model.base_model.model.resize_token_embeddings(VOCAB + 4)
    ids = torch.tensor([[7, VOCAB + 3, 8]])
    weight = model.base_model.model.get_input_embeddings().weight
    before = output(model, input_ids=ids)
    weight[VOCAB + 3] += 1
    assert (output(model, input_ids=ids) - before).abs().max() > 1e-3


# ---------------------------------------------------------------------- with LoRA


def test_prompt_and_lora_on_one_model():
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)

    def build(prompt, with_lora):
        base = backbone(LLAMA, "causal_lm")
        if prompt:
            stir(inject_adapter_in_model(config("ept", "causal_lm"), base))
        torch.manual_seed(0)
        return get_peft_model(base, lora) if with_lora else base

    both, only_lora, only_prompt = build(True, True), build(False, True), build(True, False)
    logits = [output(model.eval(), **INPUTS) for model in (both, only_lora, only_prompt)]
    for other in logits[1:]:
        assert (logits[0] - other).abs().max() > 1e-3
    both(**INPUTS, labels=LABELS).loss.backward()
    moved = {key for key, value in both.named_parameters() if value.grad is not None and bool(value.grad.any())}
    assert moved == trainable(both)
    assert {"lora_" in key for key in moved} == {"softprompt_" in key for key in moved} == {True, False}
    with both.disable_adapter(), torch.no_grad():
        assert torch.equal(output(both, **INPUTS), output(backbone(LLAMA, "causal_lm"), **INPUTS))


@torch.no_grad()
def test_lora_on_the_embedding_is_seen_by_the_prompted_pass():
    base = backbone(LLAMA, "causal_lm")
    stir(inject_adapter_in_model(config("ept", "causal_lm"), base))
    before = output(base.eval(), **INPUTS)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False)).eval()
    assert (output(model, **INPUTS) - before).abs().max() > 1e-3


# ---------------------------------------------------------------------- trainers


def test_active_prompt_of_each_adapter():
    model = prompted(LLAMA, "causal_lm", "ept")
    model.add_adapter("second", config("deep_prompts", "causal_lm", num_virtual_tokens=P + 1))
    model.set_adapter("second")
    prompt, found = softprompt.active_prompt(model)
    assert prompt.num_virtual_tokens == found.num_virtual_tokens == P + 1


@torch.no_grad()
def test_parts_of_the_stack_in_modules_to_save_keep_their_hooks():
    """PEFT copies what modules_to_save names; a copied hook must still belong to the one state."""
    plain = get_peft_model(backbone(BERT, "seq_cls"), softprompt.deep_prompts(P, task_type="SEQ_CLS", init_seed=1))
    names = ["pooler", "encoder.layer.1"]
    saved = get_peft_model(
        backbone(BERT, "seq_cls"), softprompt.deep_prompts(P, task_type="SEQ_CLS", init_seed=1, modules_to_save=names)
    )
    states = {id(m) for m in saved.modules() if isinstance(m, PromptState)}
    assert states == {id(saved.base_model.model.softprompt)}
    assert torch.equal(output(saved, **INPUTS), output(plain, **INPUTS))
    stir(saved, 3)
    assert not torch.equal(output(saved, **INPUTS), output(plain, **INPUTS))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_head_of_another_name_is_trained_and_saved(family, tmp_path):
    """PEFT knows classifier and score; T5 and BART call theirs classification_head."""
    model = get_peft_model(backbone(FAMILIES[family], "seq_cls"), softprompt.prompt_tuning(P, task_type="SEQ_CLS"))
    head = [n for n, p in model.named_parameters() if "classification_head" in n and p.requires_grad]
    assert head
    model.save_pretrained(tmp_path)
    assert any("classification_head" in key for key in load_file(tmp_path / "adapter_model.safetensors"))


def test_a_head_may_take_a_view_of_the_states():
    """ModernBERT's sparse prediction does."""
    family = FAMILIES["modernbert"]
    model = AutoModelForMaskedLM.from_config(family.config(sparse_prediction=True))
    tuned = get_peft_model(model, config("prompt_tuning")).train()
    inputs = batch(tokens(9, 5))
    loss = tuned(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_the_prompts_of_a_model_are_found_however_they_were_attached() -> None:
    model = prompted(FAMILIES["bert"], "seq_cls", "prompt_tuning")
    state = softprompt.prompts_of(model)
    assert state.active_prompt() is softprompt.active_prompt(model)[0]
    assert softprompt.prompts_of(model.get_base_model()) is state
    with pytest.raises(SoftPromptError, match=r"expected a model with a soft prompt, got Linear; attach one with"):
        softprompt.prompts_of(torch.nn.Linear(2, 2))
