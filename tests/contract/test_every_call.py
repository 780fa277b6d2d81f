"""A prompt acts in every call, or the call is refused: other people's adapters, assistants, decoders, losses and masks."""

import copy
import dataclasses

import pytest
import torch
import transformers as tf
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

import softprompt
from house.families import (
    DECODERS,
    FAMILIES,
    FORMS,
    GROUPED,
    LLAMA,
    METHODS,
    NO_DROPOUT,
    PAD,
    QWEN,
    SIZES,
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

READERS = ("spt", "spt_all", "spt_gated", "instance")  # prompts that read the source


def generate(model, inputs, **options):
    found = model.generate(**inputs, min_new_tokens=8, max_new_tokens=8, do_sample=False, pad_token_id=PAD, **options)
    return found[:, -8:]


# ---------------------------------------------------------------------- one config object, two adapters


def test_one_config_object_for_two_adapters_makes_two_prompts():
    shared = config("prompt_tuning", "causal_lm", init_seed=None)
    model = stir(get_peft_model(backbone(LLAMA, "causal_lm"), shared)).eval()
    inputs = batch(tokens(9, 5))
    with torch.no_grad():
        first = output(model, **inputs)
        model.add_adapter("second", shared)
        close(output(model, **inputs), first, 0)
        model.set_adapter("second")
        second = output(model, **inputs)
    assert (second - first).abs().max() > 1e-2
    assert {key.split(".")[-2] for key in prompt_parameters(model)} == {"default", "second"}
    assert prompt_parameters(model)["base_model.model.softprompt.softprompt_prompts.second.embedding"].requires_grad
    assert model.peft_config["default"] is shared and model.peft_config["second"] is not shared


def test_a_second_adapter_from_the_config_of_a_loaded_one_gets_first_values(tmp_path):
    prompted(LLAMA, "causal_lm", "prompt_tuning").save_pretrained(tmp_path)
    model = softprompt.load(tmp_path, str(_saved(tmp_path / "bare")), is_trainable=True)
    model.add_adapter("second", model.peft_config["default"])
    state = model.base_model.state
    rows = state.softprompt_prompts["second"].embedding[0]
    words = state.backbone.embed.weight
    assert all(any(torch.equal(row, word) for word in words) for row in rows)  # drawn from the vocabulary, as init says


def _saved(folder):
    backbone(LLAMA, "causal_lm").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(99)}, unk_token="w4"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="w1", eos_token="w2", unk_token="w4", bos_token="w0")


def preferences():
    return Dataset.from_list(
        [{"prompt": f"w{i} w{i + 1}", "chosen": f" w{2 * i} w{3 * i}", "rejected": f" w{i}"} for i in range(5, 13)]
    )


PLAIN = dict(max_steps=2, per_device_train_batch_size=4, learning_rate=0.05, report_to=[], disable_tqdm=True)
PLAIN |= dict(use_cpu=True, bf16=False, save_strategy="no")


def test_preferences_behind_a_tuned_prompt_keep_it(tokenizer, tmp_path):
    """TRL attaches its reference with the first adapter's own config object, and copies the values over by name."""
    from trl import DPOConfig, DPOTrainer

    model = stir(get_peft_model(backbone(LLAMA, "causal_lm"), config("prompt_tuning", "causal_lm")))
    (key, before), *_ = ((k, v.detach().clone()) for k, v in prompt_parameters(model).items())
    trainer = DPOTrainer(
        model,
        args=DPOConfig(str(tmp_path), **PLAIN),
        train_dataset=preferences(),
        processing_class=tokenizer,
    )
    torch.testing.assert_close(prompt_parameters(trainer.model)[key], before)
    torch.testing.assert_close(prompt_parameters(trainer.model)[key.replace(".default.", ".ref.")], before)
    trainer.train()
    after = prompt_parameters(trainer.model)
    assert (after[key] - before).abs().max() > 1e-3
    torch.testing.assert_close(after[key.replace(".default.", ".ref.")], before)


def sft(tokenizer, folder, **options):
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": f"w{i} w{i + 1} w{i + 2}", "completion": f" w{2 * i} w{3 * i}"} for i in range(5, 17)]
    return SFTTrainer(
        backbone(LLAMA, "causal_lm"),
        SFTConfig(str(folder), max_length=32, **PLAIN),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=config("spt_gated", "causal_lm", **options),
    )


def test_a_gated_prompt_where_no_logits_are_made_says_what_to_set(tokenizer, tmp_path):
    with pytest.raises(
        SoftPromptError,
        match=r"compares logits \(consistency=1\), but this forward returns FusedCausalLMOutput without logits; set consistency=0",
    ):
        sft(tokenizer, tmp_path).train()
    trainer = sft(tokenizer, tmp_path, consistency=0.0)
    before = {key: value.detach().clone() for key, value in prompt_parameters(trainer.model).items()}
    trainer.train()
    assert any(not torch.equal(value, before[key]) for key, value in prompt_parameters(trainer.model).items())


# ---------------------------------------------------------------------- a prompt that nothing would see


class PastTheStack(tf.LlamaForCausalLM):
    def forward(self, input_ids=None, labels=None, attention_mask=None, **kwargs):
        logits = self.lm_head(self.model.norm(self.model.embed_tokens(input_ids)))
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return tf.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)


def test_a_model_that_runs_past_its_stack_is_refused():
    model = get_peft_model(PastTheStack(LLAMA.config()), config("prompt_tuning", "causal_lm"))
    inputs = batch(tokens(9, 5))
    message = "PastTheStack has run without calling LlamaModel, where the prompt is placed"
    for call in (
        lambda: model(**inputs),
        lambda: model(**inputs, labels=inputs["input_ids"]),
        lambda: model.generate(**inputs, max_new_tokens=2, use_cache=False),
    ):
        with pytest.raises(SoftPromptError, match=message):
            call()
    with model.disable_adapter():
        model(**inputs)  # nothing is to act


def test_states_of_an_encoder_may_be_given():
    model, inputs = prompted(FAMILIES["t5"], "seq2seq_lm", "prompt_tuning"), batch(tokens(9, 5))
    ids = torch.full((2, 3), 7)
    with torch.no_grad():
        states = model.base_model.model.get_encoder()(**inputs)
        again = model(encoder_outputs=states, attention_mask=inputs["attention_mask"], decoder_input_ids=ids).logits
        close(again, model(**inputs, decoder_input_ids=ids).logits)


def test_modules_to_replace_are_refused_by_their_field():
    with pytest.raises(SoftPromptError, match=r"target_modules=\['q_proj'\]: a prompt replaces no module"):
        get_peft_model(backbone(LLAMA, "causal_lm"), config("prompt_tuning", target_modules=["q_proj"]))


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoder_does_not_continue_texts(name):
    family = FAMILIES[name]
    model = tf.AutoModelForCausalLM.from_config(family.config(is_decoder=False))
    with pytest.raises(
        SoftPromptError, match=rf"{type(model).__name__} \({name}\) is an encoder here: its positions see"
    ):
        get_peft_model(model, config("prompt_tuning", "causal_lm"))
    get_peft_model(tf.AutoModelForCausalLM.from_config(family.config(is_decoder=True)), config("prompt_tuning"))


def test_a_prompt_that_reads_the_source_is_evaluated_without_labels():
    for method in READERS:
        model = get_peft_model(backbone(LLAMA, "causal_lm").eval(), config(method, "causal_lm"))
        inputs = batch(tokens(9, 5))
        assert output(model, **inputs).shape[:2] == inputs["input_ids"].shape
        with pytest.raises(SoftPromptError, match="needs labels to know it"):
            model.train()(**inputs)


# ---------------------------------------------------------------------- generation: the source is what was given


def assistant():
    torch.manual_seed(1)
    return tf.AutoModelForCausalLM.from_config(LLAMA.config(num_hidden_layers=1)).eval()


@pytest.mark.parametrize("how", ["assistant", "lookup"])
@pytest.mark.parametrize("method", [*METHODS, *FORMS])
@pytest.mark.parametrize("family", [LLAMA, QWEN], ids=str)
@torch.no_grad()
def test_speculative_decoding_equals_greedy(family, method, how):
    model = prompted(family, "causal_lm", method)
    options = {"assistant_model": assistant()} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
    for row in tokens(13, 8, 5, 4):
        ids = torch.cat([row, row[:-1], row[:2]]) if how == "lookup" else row  # a text with something to look up
        inputs = batch([ids])
        assert torch.equal(generate(model, inputs, **options), generate(model, inputs))


@torch.no_grad()
def test_a_source_is_read_however_it_is_given():
    model, inputs = prompted(LLAMA, "causal_lm", "spt_all"), batch(tokens(9))
    expected, ids = generate(model, inputs), inputs["input_ids"]
    given = dict(min_new_tokens=8, max_new_tokens=8, do_sample=False, pad_token_id=PAD)
    raw = model.base_model.model
    assert torch.equal(raw.generate(ids, **given)[:, -8:], expected)
    assert torch.equal(raw.generate(inputs=ids, **given)[:, -8:], expected)
    rows = raw.get_input_embeddings()(ids)
    assert torch.equal(raw.generate(inputs_embeds=rows, input_ids=ids, use_cache=False, **given)[:, -8:], expected)


@pytest.mark.parametrize("method", READERS)
@torch.no_grad()
def test_an_adapter_of_transformers_own_door_generates_alike(method):
    """`add_adapter` of a transformers model gives no PEFT wrapper whose `generate` could be ours."""
    model, inputs = backbone(LLAMA, "causal_lm"), batch(tokens(9, 5), "left")
    model.add_adapter(config(method, "causal_lm"))
    stir(model).eval()
    expected = generate(prompted(LLAMA, "causal_lm", method), inputs)
    assert torch.equal(generate(model, inputs), expected)
    assert torch.equal(generate(model, inputs, use_cache=False), expected)


@torch.no_grad()
def test_a_prompted_assistant_is_refused_by_name():
    helper = get_peft_model(assistant(), config("prompt_tuning", "causal_lm", init_seed=3)).eval()
    model, inputs = prompted(LLAMA, "causal_lm", "prompt_tuning"), batch(tokens(9))
    with pytest.raises(SoftPromptError, match="the assistant of speculative decoding has a prompt of its own"):
        generate(model, inputs, assistant_model=helper)
    with helper.disable_adapter():
        assert torch.equal(generate(model, inputs, assistant_model=helper.base_model.model), generate(model, inputs))


@torch.no_grad()
def test_generate_goes_with_a_copy_and_comes_back_when_the_prompt_leaves():
    model, inputs = prompted(LLAMA, "causal_lm", "spt_all"), batch(tokens(9))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in prompt_parameters(twin).values():
            parameter += 0.5
    expected = generate(model, inputs)
    assert twin.base_model.model.generate.model is twin.base_model.model
    assert twin.base_model.model.generate.state is twin.base_model.state
    assert not torch.equal(generate(twin, inputs), expected)
    own = model.base_model.model
    bare = model.unload()
    assert bare is own and "generate" not in vars(bare)
    assert torch.equal(generate(bare, inputs), generate(backbone(LLAMA, "causal_lm"), inputs))
    model = backbone(LLAMA, "causal_lm")
    model.generate = kept = lambda *args, **kwargs: "somebody's own"
    model = get_peft_model(model, config("prompt_tuning", "causal_lm"))
    assert model.generate(**inputs) == "somebody's own"
    assert model.unload().generate is kept


def test_lora_beside_a_prompt_generates():
    model = prompted(LLAMA, "causal_lm", "spt_all")
    inputs = batch(tokens(9))
    expected = generate(model, inputs)
    both = get_peft_model(model.base_model.model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()
    assert torch.equal(generate(both, inputs), expected)  # a fresh LoRA changes nothing


# ---------------------------------------------------------------------- decoders whose positions count from elsewhere


TABLES = {
    "roberta": tf.RobertaConfig,
    "camembert": tf.CamembertConfig,
    "data2vec": tf.Data2VecTextConfig,
    "xlm-roberta": tf.XLMRobertaConfig,
    "bert": tf.BertConfig,
}


@pytest.mark.parametrize("method", ["prompt_tuning", "ept", "deep_late", "spt_all"])
@pytest.mark.parametrize("name", TABLES)
@torch.no_grad()
def test_encoders_turned_decoders_decode_with_a_cache_as_without(name, method):
    torch.manual_seed(0)
    shape = {"vocab_size": 99, "pad_token_id": PAD, **SIZES, **NO_DROPOUT, "is_decoder": True}
    model = tf.AutoModelForCausalLM.from_config(TABLES[name](**shape))
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    model = stir(get_peft_model(model, config(method, "causal_lm"))).eval()
    ids = torch.stack(tokens(9, 9))
    full = output(model, input_ids=ids)
    if method != "spt_all":  # what is read ends with the pass
        first = model(input_ids=ids[:, :5], use_cache=True)
        for t in range(5, 9):  # no mask, as in a loop by hand
            step = model(input_ids=ids[:, t : t + 1], past_key_values=first.past_key_values, use_cache=True)
            close(step.logits, full[:, t : t + 1])
    rows = tokens(13, 4)
    together = generate(model, batch(rows, "left"))
    assert torch.equal(together, generate(model, batch(rows, "left"), use_cache=False))
    assert torch.equal(together, torch.cat([generate(model, batch([row])) for row in rows]))


@pytest.mark.parametrize("family", DECODERS, ids=str)
@torch.no_grad()
def test_a_row_with_a_hole_in_its_mask_does_not_depend_on_its_neighbours(family):
    for method in ("prompt_tuning", "dept", "deep_late"):
        model = prompted(family, "causal_lm", method)
        row, *others = tokens(9, 13, 9, 9, 9)  # many rows share a pass of the prompt
        alone = batch([row])
        alone["attention_mask"][0, 4] = 0
        real = alone["attention_mask"][0] != 0
        expected = output(model, **alone)[0][real]
        for side, at, place in (("left", -5, slice(-9, None)), ("right", 4, slice(9))):
            together = batch([row, *others], side)
            together["attention_mask"][0, at] = 0
            close(output(model, **together)[0, place][real], expected)


def test_a_table_that_cannot_be_told_positions_refuses_padding_on_the_left():
    model = prompted(FAMILIES["gpt2"], "causal_lm", "prompt_tuning")
    state = model.base_model.state
    names = tuple(name for name in state.backbone.argument_names if name != "position_ids")
    state.backbone = dataclasses.replace(state.backbone, argument_names=names)
    with pytest.raises(SoftPromptError, match="gpt2 counts padding on the left as positions and takes no position_ids"):
        model(**batch(tokens(9, 5), "left"))
    model(**batch(tokens(9, 5), "right"))


def test_layers_with_several_states_per_position_take_no_deep_prompt():
    shape = {**GROUPED, "vocab_size": 99, "pad_token_id": PAD, "hidden_size_per_layer_input": 6, "laurel_rank": 4}
    shape |= {"vocab_size_per_layer_input": 99, "num_kv_shared_layers": 0, "altup_num_inputs": 2}
    shape |= {"layer_types": ["full_attention"] * 3, "activation_sparsity_pattern": [0.0] * 3}
    model = tf.AutoModelForCausalLM.from_config(tf.Gemma3nTextConfig(**shape))
    with pytest.raises(
        SoftPromptError,
        match="deep prompts need layers with one state per position, but gemma3n_text keeps 2; train with placement='input'",
    ):
        get_peft_model(model, config("deep_prompts", "causal_lm"))
    get_peft_model(model, config("prompt_tuning", "causal_lm"))


@torch.no_grad()
def test_a_text_keeps_its_inputs_of_each_layer():
    """Gemma 4 looks a part of each layer's input up by id: text behind a prompt keeps it, with embeddings given as well."""
    model, ids = prompted(FAMILIES["gemma4"], "causal_lm", "prompt_tuning"), torch.stack(tokens(9, 9))
    raw, prompt = model.base_model.model, model.base_model.state.active_prompt()
    stack = backbone(FAMILIES["gemma4"], "causal_lm")
    rows = torch.cat([prompt().prefix.expand(2, -1, -1), raw.model.embed_tokens(ids)], 1)
    per_layer = stack.model.get_per_layer_inputs(ids, None)
    per_layer = torch.cat([per_layer.new_zeros(2, P, *per_layer.shape[2:]), per_layer], 1)
    close(output(model, input_ids=ids), stack(inputs_embeds=rows, per_layer_inputs=per_layer).logits[:, P:])


# ---------------------------------------------------------------------- a class with a loss of its own


class Weighted(tf.LlamaForCausalLM):
    @property
    def loss_function(self):
        def loss(logits, labels, vocab_size, **kwargs):
            weights = torch.linspace(0.5, 2, logits.shape[1] - 1)
            each = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100
            )
            return (each.view(len(logits), -1) * weights).mean()

        return loss


def test_loss_only_keeps_the_loss_that_a_class_defines(announced):
    torch.manual_seed(0)
    model = get_peft_model(Weighted(LLAMA.config()), config("prompt_tuning", "causal_lm")).train()
    inputs = batch(tokens(9, 9))
    labels = inputs["input_ids"].clone()
    labels[:, :5] = -100
    expected = model(**inputs, labels=labels).loss
    with model.base_model.loss_only():
        found = model(**inputs, labels=labels).loss
    close(found, expected, 0)
    assert any("Weighted defines a loss function of its own, which may read positions" in line for line in announced())


@torch.no_grad()
def test_positions_of_generate_are_those_of_training():
    """`generate` hands positions from 0 on; RoBERTa's table begins behind its padding row."""
    torch.manual_seed(0)
    shape = {"vocab_size": 99, "pad_token_id": PAD, **SIZES, **NO_DROPOUT, "is_decoder": True}
    model = tf.AutoModelForCausalLM.from_config(tf.RobertaConfig(**shape))
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    for method in ("prompt_tuning", "ept", "deep_late"):
        prompted_model = stir(get_peft_model(copy.deepcopy(model), config(method, "causal_lm"))).eval()
        ids = batch(tokens(9))["input_ids"]
        for _ in range(8):
            scores = output(prompted_model, input_ids=ids)[:, -1]
            scores[:, [0, PAD, 2]] = -torch.inf  # generate may not end here
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
        found = prompted_model.generate(
            batch(tokens(9))["input_ids"],
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=PAD,
            suppress_tokens=[0, PAD, 2],
        )
        assert torch.equal(found, ids)
        rows = torch.stack(tokens(9, 9, 9, 9, 9, 9))
        alone = torch.cat([output(prompted_model, input_ids=row[None]) for row in rows])
        told = torch.arange(2, 11).expand(6, -1)
        close(output(prompted_model, input_ids=rows, position_ids=told), alone)


def test_a_source_in_parts_is_refused_where_the_prompt_reads_it():
    model = prompted(LLAMA, "causal_lm", "spt_all")
    with pytest.raises(SoftPromptError, match="prefill_chunk_size=2 gives the source in parts"):
        generate(model, batch(tokens(9)), prefill_chunk_size=2)
    plain = prompted(LLAMA, "causal_lm", "ept")
    assert torch.equal(generate(plain, batch(tokens(9)), prefill_chunk_size=2), generate(plain, batch(tokens(9))))
