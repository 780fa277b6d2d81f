"""Contract: a prompted model trains as any model: in lower precision, in 4 bit, in Trainer and in TRL."""

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast, Trainer, TrainingArguments

from house.families import BERT, LLAMA, PAD, VOCAB, backbone, batch, close, config, output, prompt_parameters, tokens
from house.models import trainable
from softprompt import SoftPromptError

INPUTS = batch(tokens(9, 5), "left")


LABELS = INPUTS["input_ids"].masked_fill(INPUTS["attention_mask"] == 0, -100)


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
