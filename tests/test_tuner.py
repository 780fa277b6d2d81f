"""The tuner inside PEFT, transformers and TRL: switching, detaching, loading, precision, other people's trainers."""

import copy

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import softprompt
from families import (
    FAMILIES,
    PAD,
    VOCAB,
    P,
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
from softprompt import SoftPromptError
from softprompt.tuner.state import PromptState

LLAMA, BERT = FAMILIES["llama"], FAMILIES["bert"]
INPUTS = batch(tokens(9, 5), "left")
LABELS = INPUTS["input_ids"].masked_fill(INPUTS["attention_mask"] == 0, -100)


def trainable(model):
    return {key for key, value in model.named_parameters() if value.requires_grad}


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


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
        assert torch.equal(output(model.eval(), **INPUTS), expected), way
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


# ---------------------------------------------------------------------- precision


def train_steps(model, inputs, steps=3):
    """Loss after each of a few AdamW steps on what is trainable."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def assert_prompt_trains_in_float32(model):
    before = {key: value.detach().clone() for key, value in prompt_parameters(model).items()}
    assert {value.dtype for value in before.values()} == {torch.float32}
    losses = train_steps(model.train(), {**INPUTS, "labels": LABELS}, 8)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(value, before[key]) for key, value in prompt_parameters(model).items())
    assert {value.dtype for value in prompt_parameters(model).values()} == {torch.float32}


@pytest.mark.parametrize("method", ["deep_prompts", "ept"])
def test_a_bfloat16_backbone_keeps_a_float32_prompt(method, tmp_path):
    model = get_peft_model(backbone(LLAMA, "causal_lm").to(torch.bfloat16), config(method, "causal_lm"))
    assert_prompt_trains_in_float32(model)
    assert output(model, **INPUTS).dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    for low_cpu in (False, True):
        again = PeftModel.from_pretrained(
            backbone(LLAMA, "causal_lm").to(torch.bfloat16), tmp_path, low_cpu_mem_usage=low_cpu
        )
        for key, value in prompt_parameters(again).items():
            assert torch.equal(value, prompt_parameters(model)[key])
        assert torch.equal(output(again.eval(), **INPUTS), output(model.eval(), **INPUTS))
    by_transformers = backbone(LLAMA, "causal_lm").to(torch.bfloat16)
    by_transformers.load_adapter(str(tmp_path))
    for key, value in prompt_parameters(by_transformers).items():
        assert torch.equal(value, prompt_parameters(model)[f"base_model.model.{key}"])


def four_bit_model(folder, method):
    AutoModelForCausalLM.from_config(LLAMA.config(hidden_size=64, intermediate_size=128, head_dim=16)).save_pretrained(
        folder
    )
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=options)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    return get_peft_model(model, config(method, "causal_lm"))


@pytest.mark.parametrize("method", ["deep_prompts", "ept"])
def test_a_4_bit_backbone(method, tmp_path):
    model = four_bit_model(tmp_path / "llama", method)
    assert_prompt_trains_in_float32(model)
    model.save_pretrained(tmp_path / "prompt")
    assert {value.dtype for value in load_file(tmp_path / "prompt" / "adapter_model.safetensors").values()} == {
        torch.float32
    }


@pytest.mark.xfail(
    has_avx512bf16(),
    strict=True,
    reason="bitsandbytes packs 4-bit weights at the first evaluation on such a CPU, without a way back to training",
)
def test_a_4_bit_backbone_trains_after_an_evaluation(tmp_path):
    model = four_bit_model(tmp_path, "ept")
    with torch.no_grad():
        model.eval()(**INPUTS)
    assert_prompt_trains_in_float32(model)


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


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_runs_and_resumes(checkpointing, tmp_path):
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": i % 3}
        for i, row in enumerate(tokens(6, 6, 6, 6, 6, 6))
    ]

    def trainer(steps):
        model = get_peft_model(backbone(BERT, "seq_cls"), config("ept", "seq_cls"))
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=steps,
            per_device_train_batch_size=2,
            learning_rate=0.05,
            gradient_checkpointing=checkpointing,
            save_steps=2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            lr_scheduler_type="constant",
            seed=0,
        )
        return Trainer(model, arguments, train_dataset=rows)

    straight = trainer(3)
    before = {key: value.detach().clone() for key, value in straight.model.named_parameters()}
    straight.train()
    moved = {key for key, value in straight.model.named_parameters() if not torch.equal(value.cpu(), before[key])}
    assert moved == trainable(straight.model)

    resumed = trainer(3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for key, value in prompt_parameters(resumed.model).items():
        close(value, prompt_parameters(straight.model)[key])


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "<pad>": PAD, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def sft(tokenizer, folder, method="ept", **options):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": f"w{i} w{i + 1} w{i + 2}", "completion": f" w{2 * i} w{3 * i}"} for i in range(5, 17)]
    arguments = SFTConfig(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        **{"max_length": 32, **options},
    )
    return SFTTrainer(
        backbone(LLAMA, "causal_lm"),
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=config(method, "causal_lm"),
    )


@pytest.mark.parametrize("method", ["deep_prompts", "ept"])
def test_trl_sft_runs(tokenizer, tmp_path, method):
    trainer = sft(tokenizer, tmp_path, method)
    before = {key: value.detach().clone() for key, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {key for key, value in trainer.model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == set(prompt_parameters(trainer.model))
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("packed", [{"packing": True}, {"padding_free": True, "max_length": None}], ids=str)
def test_trl_packing_is_refused(tokenizer, tmp_path, packed):
    with pytest.raises(
        SoftPromptError,
        match=r"position_ids restart inside a row: packed sequences cannot share one prompt; turn packing \(padding_free\) off",
    ):
        sft(tokenizer, tmp_path, **packed).train()


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
