"""The verbalized classifier: words at a mask, behind a text, first in a decoder; only their places reach the vocabulary."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as tf
from datasets import Dataset
from peft import get_peft_model

import softprompt
from house import tiny
from house.families import DECODERS, FAMILIES, METHODS, backbone, batch, close, config, stir
from house.models import attached, rows_seen, state_of, verbalized
from softprompt.models.verbalized import word_place


def test_only_masks_reach_the_vocabulary_of_a_verbalized_classifier():
    torch.manual_seed(0)
    sizes = dict(tiny.SIZES, vocab_size=40, pad_token_id=0, initializer_range=0.3)
    masked_lm = tf.BertForMaskedLM(tf.BertConfig(**sizes)).eval()
    verbalizer = softprompt.Verbalizer(
        tiny.tokenizer(), "{text} . It was {mask} .", {"x": ["good", "warm"], "y": "bad"}
    )
    made = verbalizer.encode(Dataset.from_dict({"text": ["red dog runs", "blue cat"], "label": [0, 1]}), max_length=16)
    inputs = batch([torch.tensor(ids) for ids in made["input_ids"]], "left")
    base = softprompt.VerbalizedClassifier(masked_lm, verbalizer)
    at = (torch.arange(2), verbalizer.word_positions(inputs["input_ids"]))
    expected = verbalizer.class_logits(masked_lm(**inputs).logits[at])
    seen = rows_seen(masked_lm)
    close(base(**inputs).logits, expected, 2e-6)
    model = stir(get_peft_model(base, config("ept"))).eval()
    prompted_logits = masked_lm(**inputs).logits  # the prompt is on the stack, so it acts without the classifier
    seen.clear()
    out = model(**inputs, labels=torch.tensor([0, 1]))
    close(out.logits, verbalizer.class_logits(prompted_logits[at]), 2e-6)
    assert seen == [2] and (out.logits - expected).abs().max() > 1e-3


TEXTS = ["red dog runs", "blue cat"]
WORDS = {"x": ["good", "warm"], "y": "bad"}


def asked(place, side):
    """A verbalizer, its rows as token ids, and as a batch padded on a side."""
    verbalizer = softprompt.Verbalizer(tiny.tokenizer(pairs=False), "{text} . It was {mask}", WORDS, place=place)
    made = verbalizer.encode(Dataset.from_dict({"text": TEXTS, "label": [0, 1]}), max_length=16)
    rows = [torch.tensor([ids]) for ids in made["input_ids"]]
    return verbalizer, rows, batch([row[0] for row in rows], side)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", DECODERS, ids=str)
def test_a_causal_model_is_asked_for_the_next_word(family, side):
    verbalizer, rows, inputs = asked("next", side)
    language_model = backbone(family, "causal_lm")
    base = softprompt.VerbalizedClassifier(language_model, verbalizer)

    def alone():
        return verbalizer.class_logits(torch.cat([language_model(row).logits[:, -1] for row in rows]))

    bare = alone()
    close(base(**inputs).logits, bare, 2e-5)
    model = stir(get_peft_model(base, config("ept"))).eval()
    seen = rows_seen(language_model)
    logits = model(**inputs, labels=torch.tensor([0, 1])).logits
    assert seen == [2]
    close(logits, alone(), 2e-5)  # the prompt is on the stack, so it acts without the classifier
    assert (logits - bare).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_padding_in_front_is_no_position_of_an_encoder_that_became_causal(family):
    verbalizer, rows, inputs = asked("next", "left")
    torch.manual_seed(0)
    made = FAMILIES[family].config(is_decoder=True, initializer_range=0.3)
    language_model = tf.AutoModelForCausalLM.from_config(made).eval()
    expected = verbalizer.class_logits(torch.cat([language_model(row).logits[:, -1] for row in rows]))
    close(softprompt.VerbalizedClassifier(language_model, verbalizer)(**inputs).logits, expected, 2e-5)


def test_a_decoder_begins_as_its_generation_does():
    verbalizer, rows, inputs = asked("first", "right")
    language_model = backbone(FAMILIES["t5"], "seq2seq_lm")
    language_model.config.decoder_start_token_id = language_model.generation_config.decoder_start_token_id = None
    language_model.generation_config.bos_token_id = 7
    start = torch.tensor([[7]])
    said = [language_model(row, decoder_input_ids=start).logits[:, 0] for row in rows]
    classifier = softprompt.VerbalizedClassifier(language_model, verbalizer)
    close(classifier(**inputs).logits, verbalizer.class_logits(torch.cat(said)), 2e-5)
    language_model.generation_config.bos_token_id = language_model.config.bos_token_id = None
    language_model.get_decoder().config.bos_token_id = None
    with pytest.raises(
        softprompt.SoftPromptError, match="does not say from which token its decoder begins: expected dec"
    ):
        softprompt.VerbalizedClassifier(language_model, verbalizer)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_encoder_decoder_is_asked_for_its_first_word(side):
    verbalizer, rows, inputs = asked("first", side)
    language_model = backbone(FAMILIES["t5"], "seq2seq_lm")
    base = softprompt.VerbalizedClassifier(language_model, verbalizer)
    start = torch.tensor([[language_model.config.decoder_start_token_id]])

    def alone():
        said = [language_model(row, decoder_input_ids=start).logits[:, 0] for row in rows]
        return verbalizer.class_logits(torch.cat(said))

    bare = alone()
    close(base(**inputs).logits, bare, 2e-5)
    model = stir(get_peft_model(base, config("ept"))).eval()
    logits = model(**inputs).logits
    close(logits, alone(), 2e-5)
    assert (logits - bare).abs().max() > 1e-3


@pytest.mark.parametrize("family, head, place", [("llama", "causal_lm", "next"), ("t5", "seq2seq_lm", "first")])
def test_all_methods_learn_from_the_next_word_alone(family, head, place):
    verbalizer, _, inputs = asked(place, "right")
    base = softprompt.VerbalizedClassifier(backbone(FAMILIES[family], head), verbalizer)
    rows = base.below.get_output_embeddings().weight
    good, warm, bad = (verbalizer.tokenizer.convert_tokens_to_ids(word) for word in ("good", "warm", "bad"))
    close(base.class_rows(), torch.stack([(rows[good] + rows[warm]) / 2, rows[bad]]), 1e-6)
    for method in METHODS:
        model = get_peft_model(copy.deepcopy(base), config(method)).train()
        model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert moved and all("softprompt" in name for name in moved), method


def test_the_last_state_makes_the_logits_of_the_next_word():
    """What objectives and instance prompts read is what the words are read off; logits are float32, as losses need them."""
    verbalizer, _, inputs = asked("next", "left")
    for dtype, apart in ((torch.float32, 2e-6), (torch.bfloat16, 0.1)):
        base = softprompt.VerbalizedClassifier(backbone(FAMILIES["llama"], "causal_lm").to(dtype), verbalizer)
        model = attached(base, config("infoprompt"))
        with torch.no_grad():
            seen = state_of(model).observe(base, frozenset({"head_rows"}), **inputs)
        assert model.base_model.state.settings["default"].representation == "last"
        words = base.below.get_output_embeddings()(seen.representation.to(dtype))
        close(verbalizer.class_logits(words.float()), seen.logits, apart)
        assert seen.logits.dtype == torch.float32


def test_what_trainers_and_saved_files_know_of_a_classifier():
    made = {
        "masked_lm": verbalized({"x": "good", "y": "bad"})[0],
        "language_model": softprompt.VerbalizedClassifier(
            backbone(FAMILIES["llama"], "causal_lm"), asked("next", "right")[0]
        ),
    }
    for name, classifier in made.items():  # LoRA's files carry the name
        assert all(key.startswith(f"{name}.") for key, _ in classifier.named_parameters())
        assert classifier.accepts_loss_kwargs is False
    asked_with: list[dict[str, Any]] = []
    made["language_model"].below.register_forward_pre_hook(
        lambda module, args, kwargs: asked_with.append(kwargs), with_kwargs=True
    )
    made["language_model"](torch.tensor([[7, 8]]))
    assert asked_with[0]["use_cache"] is False


def test_words_are_read_where_the_language_model_says_them():
    bert = tf.BertConfig(**tiny.SIZES, vocab_size=40)
    assert word_place(bert) == "mask"
    assert word_place(tf.BertConfig(is_decoder=True)) == "next"
    assert word_place(tf.BartConfig()) == "mask"  # its decoder fills the mask of a whole text
    assert [word_place(made()) for made in (tf.ModernBertConfig, tf.GPT2Config, tf.T5Config)] == [
        "mask",
        "next",
        "first",
    ]
    verbalizer, _, _ = asked("next", "right")
    with pytest.raises(
        softprompt.SoftPromptError,
        match="BertForMaskedLM is asked for words with place='mask', got a Verbalizer with place='next'",
    ):
        softprompt.VerbalizedClassifier(tf.BertForMaskedLM(bert), verbalizer)


def test_class_weights_act_in_training() -> None:
    model, _ = verbalized({"a": "red", "b": "blue"})
    ids = model.verbalizer.encode(Dataset.from_dict({"text": ["dog runs", "sun"], "label": [0, 1]}), max_length=16)
    asked = {
        key: torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids[key]], batch_first=True)
        for key in ("input_ids", "attention_mask")
    }
    labels, weights = torch.tensor([0, 1]), torch.tensor([3.0, 0.5])
    model.eval()
    each = torch.nn.functional.cross_entropy(model(**asked).logits, labels, reduction="none")
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.class_weights = weights
    assert model(**asked, labels=labels).loss.item() == pytest.approx((each * weights).mean().item(), rel=1e-4)
