"""A row in a mixed batch is the row alone with its adapter active: outputs, gradients and generated text."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import transformers as tf
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model

import softprompt
from house import families as f
from house.batches import training_batch
from house.models import alone, widths
from softprompt import SoftPromptError
from softprompt.prompts import PlainPrompt
from softprompt.tuner.placing.layout import Layout
from softprompt.tuner.placing.mixture import BASE, Mixture

# length, method and depth differ; "late" enters above layer 0, "sparse" reads the tokens there, "instance" the unprompted state
ADAPTERS = {
    "input": ("prompt_tuning", {"num_virtual_tokens": 3}),
    "deep": ("deep_prompts", {"num_virtual_tokens": 5}),
    "late": ("deep_late", {"num_virtual_tokens": 4}),
    "sparse": ("spt", {"num_virtual_tokens": 2}),
    "fused": ("ept", {}),
    "instance": ("infoprompt", {"objectives": []}),
    "gated": ("spt", {"layers": None, "num_virtual_tokens": 1}),
}
NAMES = ("input", "deep", "late", BASE, "sparse", "fused", "instance", "input", "gated")
SHARED = {
    "input": ("prompt_tuning", {"num_virtual_tokens": 6}),
    "deep": ("deep_prompts", {"num_virtual_tokens": 5}),
    "short": ("deep_prompts", {"num_virtual_tokens": 3, "tau": 0.5}),
    "fused": ("ept", {}),
}
LENGTHS = (6, 9, 4, 7, 14, 5, 8, 3, 6)  # one is longer than the deltas' 12 positions, most than a window of 8


WINDOWED = ()  # windows of the tiny families are longer than these prompts


def house_of(family: f.Family, head: str, adapters: Mapping[str, tuple[str, dict]] = ADAPTERS, **more) -> PeftModel:
    """A tiny model with these adapters, each off its start; heads differ, too."""
    model = None
    for name, (method, options) in adapters.items():
        options = {**options, **more}
        config = f.config(method, head, **options)
        if model is None:
            model = get_peft_model(f.backbone(family, head), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    assert model is not None
    f.stir(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "modules_to_save" in key:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def out(model, family, head, inputs, **more):
    made = model(**f.with_decoder(family, head, inputs), **more)
    return made.logits if "logits" in made else made.last_hidden_state


def check_rows(model, family, head, names, rows, side):
    together = out(model, family, head, f.batch(rows, side), adapter_names=list(names))
    per_token = head != "seq_cls" and (family.kind != "encoder_decoder" or head == "token_cls")
    for got, name, row in zip(together, names, rows, strict=True):
        want = alone(model, name, lambda row=row: out(model, family, head, f.batch([row])))[0]
        if per_token:
            got = got[-len(row) :] if side == "left" else got[: len(row)]
        f.close(got, want, 2e-5)


def reads_padding(family, head, side):
    """Whether the stock head itself reads what stands first, or decodes padding."""
    return side == "left" and (
        (head == "seq_cls" and family.kind != "decoder" and family.name != "bert")
        or (head == "base" and family.name == "bart")
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family, head", f.cases(methods=False), ids=str)
@torch.no_grad()
def test_a_row_in_a_mixed_batch_is_the_row_alone(family, head, side):
    if reads_padding(family, head, side):
        pytest.skip("the stock head reads padding there, with or without a prompt")
    check_rows(house_of(family, head), family, head, NAMES, f.tokens(*LENGTHS), side)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["bert", "modernbert", "deberta-v2", "gpt2", "llama", "gemma3", "opt", "t5"]),
    chosen=st.lists(st.sampled_from([*ADAPTERS, BASE]), min_size=1, max_size=6),
    lengths=st.lists(st.integers(2, 15), min_size=6, max_size=6),
    side=st.sampled_from(["right", "left"]),
    attention=st.sampled_from(["sdpa", "eager"]),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_whatever_adapters_lengths_and_padding(name, chosen, lengths, side, attention, seed):
    family = f.FAMILIES[name]
    model = house_of(family, family.lm)
    model.base_model.model.set_attn_implementation(attention if name != "deberta-v2" else "eager")
    check_rows(model, family, family.lm, chosen, f.tokens(*lengths[: len(chosen)], seed=seed), side)


@pytest.mark.parametrize("family", [x for x in f.FAMILIES.values() if x.kind != "encoder"], ids=str)
@torch.no_grad()
def test_text_is_generated_as_alone(family):
    """Greedy, with and without a cache; a beam search and several sequences repeat the names as they repeat rows."""
    model, rows = house_of(family, family.lm), f.tokens(*LENGTHS)
    side = "left" if family.kind == "decoder" else "right"
    inputs, quiet = f.batch(rows, side), {"max_new_tokens": 5, "pad_token_id": f.PAD, "eos_token_id": None}
    for options in (
        {"do_sample": False},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    ):
        together = model.generate(**inputs, adapter_names=list(NAMES), **options, **quiet)
        each = options.get("num_return_sequences", 1)
        for place, (name, row) in enumerate(zip(NAMES, rows, strict=True)):
            want = alone(
                model, name, lambda row=row, options=options: model.generate(**f.batch([row]), **options, **quiet)
            )
            new = 5 if family.kind == "decoder" else want.shape[1]
            got = together[place * each : (place + 1) * each, -new:]
            assert torch.equal(got, want[:, -new:]), f"{name}: {options}"


@torch.no_grad()
def test_reading_on_from_a_cache():
    """Step by step by hand, as the same rows in one pass."""
    for name in ("llama", "gpt2", "opt", "gemma3"):
        family = f.FAMILIES[name]
        model, inputs = house_of(family, "causal_lm"), f.batch(f.tokens(*LENGTHS), "left")
        names, longer = list(NAMES), torch.randint(f.FIRST, f.VOCAB, (len(NAMES), 2))
        first = model(**inputs, adapter_names=names, use_cache=True)
        ids = torch.cat([inputs["input_ids"], longer], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(longer)], 1)
        step = model(
            input_ids=longer, attention_mask=mask, past_key_values=first.past_key_values, adapter_names=names
        ).logits
        # generated prompts read the source: in one pass it would be longer
        fixed = [i for i, each in enumerate(names) if each not in ("sparse", "instance", "gated")]
        f.close(step[fixed], model(input_ids=ids, attention_mask=mask, adapter_names=names).logits[fixed, -2:], 2e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", f.DECODERS, ids=str)
def test_prompts_that_read_nothing_are_made_once_for_all_their_rows(family, side):
    """One pass makes four different prompts; loss and gradients are those of the slow path, a base row's too."""
    names = ["deep", "input", BASE, "deep", "fused", "short", "short", "deep", "input"]
    inputs, found = training_batch(family, "causal_lm", LENGTHS, side), []
    for shared in (True, False):
        model = house_of(family, "causal_lm", SHARED, shared_prefix=shared).train()
        model.set_requires_grad(list(SHARED), True)
        seen = widths(model)
        made = model(**inputs, adapter_names=names)
        made.loss.backward()
        assert seen == ([(4, 6), (9, 14)] if shared and family.name not in WINDOWED else [(9, 20)])
        real = inputs["attention_mask"] != 0
        grads = {key: p.grad for key, p in f.prompt_parameters(model).items()}
        found.append((made.loss.detach(), made.logits.detach()[real], grads))
    (loss, logits, grads), (slow_loss, slow_logits, slow_grads) = found
    f.close(loss, slow_loss, 2e-5)
    f.close(logits, slow_logits, 2e-5)
    for key, grad in grads.items():
        f.close(grad, slow_grads[key], 2e-5)


@torch.no_grad()
def test_windows_shorter_than_the_longest_prompt_take_the_slow_path():
    family = f.FAMILIES["gemma3"]  # its window is 8
    long = {**SHARED, "input": ("prompt_tuning", {"num_virtual_tokens": 8})}
    model = house_of(family, "causal_lm", long)
    # so many rows that prompts would be made once, were the window longer
    names = ["input", "deep", "short", "input", "input", "deep"]
    seen, rows = widths(model), f.tokens(6, 9, 4, 7, 5, 3)
    model(**f.batch(rows), adapter_names=names)
    assert seen == [(6, 8 + 9)]
    check_rows(model, family, "causal_lm", names, rows, "left")


@pytest.mark.parametrize("family", [x for x in f.DECODERS if x.name in ("llama", "gpt2", "gemma3", "opt")], ids=str)
@torch.no_grad()
def test_text_behind_prompts_that_are_made_once_is_that_of_the_row_alone(family):
    names = ["deep", "input", BASE, "deep", "fused", "short", "short", "deep", "input"]
    model, rows = house_of(family, "causal_lm", SHARED), f.tokens(*LENGTHS)
    quiet = {"max_new_tokens": 6, "pad_token_id": f.PAD, "eos_token_id": None, "do_sample": False}
    for beams in (1, 2):
        seen = widths(model)
        together = model.generate(**f.batch(rows, "left"), adapter_names=names, num_beams=beams, **quiet)
        assert (seen[0] == (4, 6)) == (family.name != "gemma3"), "padding fills a window"
        for got, name, row in zip(together, names, rows, strict=True):
            want = alone(
                model, name, lambda row=row, beams=beams: model.generate(**f.batch([row]), num_beams=beams, **quiet)
            )
            assert torch.equal(got[-6:], want[0, -6:]), name


@pytest.mark.parametrize("family", [f.FAMILIES["bert"], f.FAMILIES["roberta"]], ids=str)
@torch.no_grad()
def test_an_encoder_reads_several_prompts_as_keys_and_values(family):
    deep = {"deep": ("deep_prompts", {"num_virtual_tokens": 6}), "other": ("deep_prompts", {"num_virtual_tokens": 4})}
    for head in ("seq_cls", "masked_lm"):
        for side in ("right", "left"):
            if reads_padding(family, head, side):
                continue
            model = house_of(family, head, deep)
            names, rows, seen = ["deep", BASE, "other", "deep", "other"], f.tokens(*LENGTHS[:5]), widths(model)
            model(**f.batch(rows, side), adapter_names=names)
            assert seen == [(2, 6), (5, 14)]
            check_rows(model, family, head, names, rows, side)


def test_a_data_set_with_a_column_of_names_trains_several_tasks(tmp_path):
    """Rows of two tasks with contrary labels: each adapter learns its own."""
    model = house_of(f.FAMILIES["bert"], "seq_cls", {name: ADAPTERS[name] for name in ("input", "deep")}).train()
    model.set_requires_grad(["input", "deep"], True)
    rows = [
        {
            "input_ids": ids.tolist(),
            "attention_mask": [1] * len(ids),
            "labels": (i + (name == "deep")) % 2,
            "adapter_names": name,
        }
        for i, ids in enumerate(f.tokens(*[5, 7] * 4))
        for name in ("input", "deep")
    ]
    arguments = tf.TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=8,
        max_steps=60,
        learning_rate=0.05,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    collate = softprompt.data.WithAdapterNames(labelled)
    trainer = softprompt.PromptTrainer(model, arguments, train_dataset=Dataset.from_list(rows), data_collator=collate)
    trainer.train()
    with torch.no_grad():
        batch = collate(rows)
        labels = batch.pop("labels")
        right = (model.eval()(**batch).logits.argmax(-1) == labels).float().mean()
    assert (
        right > 0.85
    )  # both adapters see the same texts with other labels, so one prompt for all is right half the time
    with pytest.raises(
        SoftPromptError, match="expected the name of an adapter in column 'adapter_names' of each row, got None"
    ):
        collate([{**rows[0], "adapter_names": None}])


def labelled(rows):
    return {
        **f.batch([torch.tensor(row["input_ids"]) for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


@pytest.mark.parametrize("name, head", [("bert", "seq_cls"), ("llama", "causal_lm"), ("t5", "seq2seq_lm")])
def test_gradients_reach_the_prompt_and_head_of_their_own_row(name, head):
    family, chosen = f.FAMILIES[name], ["input", "deep", "fused"]
    model = house_of(family, head, {each: ADAPTERS[each] for each in chosen}).train()
    model.set_requires_grad(chosen, True)
    inputs = training_batch(family, head, lengths=(9, 5, 7, 6))
    names = ["deep", "input", "deep", BASE]
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def loss(logits, labels):
        shifted = (logits[:, :-1], labels[:, 1:]) if head == "causal_lm" else (logits, labels)
        rows = zip(*shifted, strict=True)
        return torch.stack([torch.nn.functional.cross_entropy(z.float(), y, ignore_index=-100) for z, y in rows])

    losses = loss(model(**inputs, adapter_names=names).logits, inputs["labels"])
    (weights * losses).sum().backward()
    mixed = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    assert any(".deep" in key for key in mixed) and not any(
        ".fused" in key and value.any() for key, value in mixed.items()
    )
    model.zero_grad()
    for row, adapter in enumerate(names[:3]):
        model.set_adapter(adapter)
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        (weights[row] * loss(model(**one).logits, one["labels"])).sum().backward()
    model.set_requires_grad(chosen, True)
    single = {key: p.grad for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {key for key, value in mixed.items() if value.any()} == single.keys()
    for key, grad in single.items():
        f.close(mixed[key], grad, 1e-4)


@torch.no_grad()
def test_texts_apart_have_one_head_row_for_two_inputs():
    family = f.FAMILIES["bert"]
    models = {}
    torch.manual_seed(0)
    base = softprompt.PooledClassifier(f.backbone(family, "base"), ["a", "b"], "mean", pairs="apart")
    model = None
    for name in ("input", "deep"):
        config = f.config(ADAPTERS[name][0], "seq_cls", **ADAPTERS[name][1])
        model = get_peft_model(base, config, adapter_name=name) if model is None else model
        if name not in model.peft_config:
            model.add_adapter(name, config)
    f.stir(model).eval()
    torch.nn.init.normal_(base.classifier.modules_to_save["deep"].weight)
    inputs = f.batch(f.tokens(6, 4, 7, 5))
    together = model(**inputs, adapter_names=["deep", "deep", "input", "input"]).logits
    for place, name in enumerate(("deep", "input")):
        two = {key: value[2 * place : 2 * place + 2] for key, value in inputs.items()}
        models[name] = alone(model, name, lambda two=two: model(**two).logits)
        f.close(together[place : place + 1], models[name])


@torch.no_grad()
def test_unprompted_states_may_be_given():
    model, inputs = house_of(f.FAMILIES["bert"], "seq_cls"), f.batch(f.tokens(9, 5))
    model.set_adapter("instance")
    states = model.base_model.state.bare_states(inputs)
    names = ["instance", "deep"]
    f.close(model(**inputs, adapter_names=names, unprompted=states).logits, model(**inputs, adapter_names=names).logits)


@torch.no_grad()
def test_one_name_for_all_rows_shares_its_prefix():
    model, inputs = house_of(f.LLAMA, "causal_lm"), f.batch(f.tokens(6, 6))
    seen = widths(model)
    got = model(**inputs, adapter_names=["deep", "deep"]).logits
    assert seen == [(1, 5), (2, 6)]
    f.close(got, alone(model, "deep", lambda: model(**inputs).logits))
    bare = model(**inputs, adapter_names=[BASE, BASE]).logits
    assert torch.equal(bare, alone(model, BASE, lambda: model(**inputs).logits))


def test_nothing_is_left_behind():
    """Also where a call raises: the next one is that of the active adapter, heads have their own forward."""
    model, inputs = house_of(f.FAMILIES["bert"], "seq_cls"), f.batch(f.tokens(6, 6))
    model.set_adapter("deep")
    before = model(**inputs).logits
    model(**inputs, adapter_names=["input", BASE])
    for bad in (dict(input_ids=inputs["input_ids"], attention_mask=torch.ones(2, 2, 2)), {}):
        with pytest.raises(SoftPromptError):
            model(**bad, adapter_names=["input", BASE])
    assert torch.equal(model(**inputs).logits, before)
    head = model.base_model.model.classifier
    assert "forward" not in vars(head) and model.base_model.state._mode.names is None
    with model.disable_adapter():
        assert model(**inputs, adapter_names=["input", "deep"]).logits.shape == (2, 3)


def test_what_is_refused():
    model, inputs = house_of(f.LLAMA, "causal_lm"), f.batch(f.tokens(6, 6, 4), "left")
    for call in (model, model.generate):
        for names, message in (
            (["inptu", "deep", "deep"], r"adapter_names: no adapter is called inptu; expected names of .*__base__"),
            (["input", "deep"], r"adapter_names: expected one name for each of 3 inputs, got 2; give '__base__'"),
            (["input"] * 6, r"adapter_names: expected one name for each of 3 inputs, got 6"),
            ([], "adapter_names: expected one name for each of 3 inputs, got 0"),
            ("deep", "adapter_names: expected a list of names, one for each input, got 'deep'"),
            ([None, "deep", "deep"], "adapter_names: expected a list of names"),
        ):
            with pytest.raises(SoftPromptError, match=message):
                call(**inputs, adapter_names=names)
    classifier = house_of(
        f.FAMILIES["bert"], "seq_cls", {"input": ADAPTERS["input"]}
    )  # PEFT's language models stumble first
    for names in (5, torch.ones(3)):
        with pytest.raises(SoftPromptError, match="adapter_names: expected a list of names, one for each input, got"):
            classifier(**inputs, adapter_names=names)
    model.train()
    with pytest.raises(SoftPromptError, match="adapter_names: gated is trained with objectives or gates, which read"):
        model(**inputs, labels=inputs["input_ids"], adapter_names=["gated", "deep", "deep"])
    with pytest.raises(SoftPromptError, match="adapter_names: states below one prompt's first layer"):
        model(**inputs, below=torch.zeros(3, 6, f.HIDDEN), adapter_names=["late", "deep", "deep"])


def test_a_source_given_in_parts_is_refused_for_the_adapters_of_the_rows():
    model, inputs = house_of(f.LLAMA, "causal_lm"), f.batch(f.tokens(6, 6))
    model.set_adapter("deep")
    with pytest.raises(SoftPromptError, match="prefill_chunk_size=2 gives the source in parts"):
        model.generate(**inputs, adapter_names=["sparse", "deep"], prefill_chunk_size=2, max_new_tokens=2)
    # a chunk of nothing but padding has no place for a prompt
    with pytest.raises(
        SoftPromptError, match="prefill_chunk_size=2 cuts a row that is padded on the left where its prompt"
    ):
        model.generate(**f.batch(f.tokens(6, 3), "left"), prefill_chunk_size=2, max_new_tokens=2)


def test_mixed_kinds_of_heads_are_refused():
    model = house_of(f.FAMILIES["bert"], "seq_cls", {name: ADAPTERS[name] for name in ("input", "deep")})
    inputs, head = f.batch(f.tokens(6, 6)), model.base_model.model.classifier
    other = torch.nn.Linear(f.HIDDEN, 5)
    with torch.no_grad():
        model(**inputs, adapter_names=["input", "deep"])
    kept = head.modules_to_save["deep"]
    head.modules_to_save["deep"] = other
    with pytest.raises(
        SoftPromptError, match="adapter_names: the heads of one batch need outputs of one size, got input: 3, deep: 5"
    ):
        model(**inputs, adapter_names=["input", "deep"])
    head.modules_to_save["deep"] = kept
    del head.modules_to_save["deep"]
    with pytest.raises(SoftPromptError, match="adapter_names: deep has no head of its own, input has"):
        model(**inputs, adapter_names=["input", "deep"])


def test_filler_stands_where_padding_stands():
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    filler = torch.tensor([[True, False], [False, False]])
    prompt, inputs = torch.tensor([[90, 91], [92, 93]]), torch.tensor([[10, 11, 12], [20, 21, 22]])
    causal = Layout.of(2, mask, True, filler=filler)
    assert causal.place(prompt, inputs).tolist() == [[10, 90, 91, 11, 12], [92, 93, 20, 21, 22]]
    assert causal.whole(mask).tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]
    encoder = Layout.of(2, mask, False, filler=filler)
    assert encoder.place(prompt, inputs).tolist() == [[91, 11, 12, 10, 90], [92, 93, 20, 21, 22]]
    behind = Layout.of(2, mask, False, torch.tensor([[True], [False]]), filler)
    assert behind.place(prompt, inputs).tolist() == [[11, 12, 91, 10, 90], [92, 93, 20, 21, 22]]
    for layout in (causal, encoder, behind):
        placed = layout.place(prompt, inputs)
        assert torch.equal(layout.remove(placed), inputs) and torch.equal(layout.prompt(placed), prompt)


@torch.no_grad()
def test_rows_without_any_prompt_are_the_row_alone_too():
    """In a stock pass padding on the left would count as positions of a table."""
    for name in ("gpt2", "llama", "bert"):
        family = f.FAMILIES[name]
        model = house_of(family, family.lm)
        check_rows(model, family, family.lm, [BASE] * 3, f.tokens(6, 4, 9), "left")
    model = house_of(f.GPT2, "causal_lm")
    rows, quiet = f.tokens(6, 4), {"max_new_tokens": 4, "pad_token_id": f.PAD, "eos_token_id": None, "do_sample": False}
    together = model.generate(**f.batch(rows, "left"), adapter_names=[BASE, BASE], **quiet)
    for got, row in zip(together, rows, strict=True):
        want = alone(model, BASE, lambda row=row: model.generate(**f.batch([row]), **quiet))
        assert torch.equal(got[-4:], want[0, -4:])


def test_names_that_pass_the_wrapper_by_are_refused():
    model, inputs = house_of(f.LLAMA, "causal_lm"), f.batch(f.tokens(6, 6))
    for called in (model.base_model, model.get_base_model()):
        with pytest.raises(
            SoftPromptError, match="adapter_names has reached LlamaForCausalLM itself, where nobody reads"
        ):
            called(**inputs, adapter_names=["input", "deep"])


def test_adapters_with_parts_of_the_backbone_of_their_own_are_refused():
    model = None
    for name in ("a", "b"):
        config = f.config("deep_prompts", "causal_lm", modules_to_save=["input_layernorm"])
        model = get_peft_model(f.backbone(f.LLAMA, "causal_lm"), config, name) if model is None else model
    model.add_adapter("b", config)
    with pytest.raises(SoftPromptError, match="adapter_names: adapters have parts of the backbone of their own"):
        model.eval()(**f.batch(f.tokens(6, 6)), adapter_names=["a", "b"])


@torch.no_grad()
def test_a_cache_goes_on_with_the_names_that_it_was_made_with():
    model, inputs = house_of(f.LLAMA, "causal_lm"), f.batch(f.tokens(6, 6))
    token, mask = torch.tensor([[7], [8]]), torch.ones(2, 7, dtype=torch.long)

    def cache(**call):
        return model(**inputs, use_cache=True, **call).past_key_values

    model.set_adapter("deep")
    for first, then in (
        ({"adapter_names": ["deep", "input"]}, {"adapter_names": ["input", "deep"]}),
        ({"adapter_names": ["deep", "input"]}, {}),
        ({}, {"adapter_names": ["deep", "input"]}),
    ):
        with pytest.raises(SoftPromptError, match="adapter_names: the KV cache was made for"):
            model(input_ids=token, attention_mask=mask, past_key_values=cache(**first), **then)
    with model.disable_adapter():
        bare = cache()
    with pytest.raises(
        SoftPromptError, match="adapter_names: the KV cache was made for one adapter, and the call names"
    ):
        model(input_ids=token, past_key_values=bare, adapter_names=["deep", "input"])


def test_adapters_that_stand_still_in_training_are_named(caplog):
    model, inputs = house_of(f.LLAMA, "causal_lm").train(), f.batch(f.tokens(6, 6))
    model.set_adapter("deep")
    with caplog.at_level("INFO", "softprompt"):
        model(**inputs, labels=inputs["input_ids"], adapter_names=["deep", "input"])
    assert (
        "input: not trained: these adapters take no gradient in mixed batches; model.set_requires_grad" in caplog.text
    )


def test_what_somebody_else_hung_on_a_head_stays():
    model = house_of(f.FAMILIES["bert"], "seq_cls", {name: ADAPTERS[name] for name in ("input", "deep")})
    head, calls = model.base_model.model.classifier, []
    inside = head.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return inside(*args, **kwargs)

    head.forward = counted
    with torch.no_grad():
        model(**f.batch(f.tokens(6, 6)), adapter_names=["input", "deep"])
        model(**f.batch(f.tokens(6, 6)))
    assert head.forward is counted and calls == [1]


def test_inputs_are_late_one_by_one_only_where_they_differ():
    """One word for all of them leaves positions to the stack, and families that cannot hide a prompt take one at layer 0."""
    early, late = (PlainPrompt(1, length, 4) for length in (2, 3))
    late.layers = (2,)
    for prompts, expected in (
        ([early, PlainPrompt(1, 3, 4)], False),
        ([early, None], False),
        ([None, late], True),  # an input without virtual tokens goes with either
    ):
        assert Mixture.of(prompts, torch.device("cpu")).late is expected
    assert Mixture.of([early, late], torch.device("cpu")).late.tolist() == [[False], [True]]


@torch.no_grad()
def test_states_of_an_encoder_may_be_given_to_generate():
    family = f.FAMILIES["t5"]
    model, inputs, names = house_of(family, "seq2seq_lm"), f.batch(f.tokens(6, 4, 9)), ["deep", "input", BASE]
    quiet = {"max_new_tokens": 4, "do_sample": False}
    with model.base_model.state.by_row(names):
        states = model.base_model.model.get_encoder()(**inputs)
    given = model.generate(
        encoder_outputs=states, attention_mask=inputs["attention_mask"], adapter_names=names, **quiet
    )
    assert torch.equal(given, model.generate(**inputs, adapter_names=names, **quiet))
