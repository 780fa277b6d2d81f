"""The verbalized classifier: only masks reach the vocabulary."""

from __future__ import annotations

import torch
import transformers as tf
from datasets import Dataset
from peft import get_peft_model

import softprompt
from house import tiny
from house.families import batch, close, config, stir
from house.models import rows_seen


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
    expected = verbalizer.class_logits(verbalizer.at_mask(masked_lm(**inputs).logits, inputs["input_ids"]))
    seen = rows_seen(masked_lm)
    close(base(**inputs).logits, expected, 2e-6)
    model = stir(get_peft_model(base, config("ept"))).eval()
    prompted_logits = masked_lm(**inputs).logits  # the prompt is on the stack, so it acts without the classifier
    seen.clear()
    out = model(**inputs, labels=torch.tensor([0, 1]))
    close(out.logits, verbalizer.class_logits(verbalizer.at_mask(prompted_logits, inputs["input_ids"])), 2e-6)
    assert seen == [2] and (out.logits - expected).abs().max() > 1e-3
