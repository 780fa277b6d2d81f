"""Contenders that train nothing: the probe, and a template with label words by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as tf

import softprompt
from house.suites import WORDED
from house.tiny import tokenizer
from softprompt.experiments.cell import flat_options, run_cell
from softprompt.experiments.checks import check_contenders
from softprompt.experiments.contenders import run_zero_shot
from softprompt.experiments.suite import read_suite


def test_the_probe_is_where_other_runs_start(suite_file: Any) -> None:
    probe, tuned = (
        run_cell(cell) for cell in read_suite(suite_file(methods={"probe": {}, "prompt_tuning": {}})).cells()
    )
    assert {"dev": probe["dev"], "test": probe["test"]}.items() <= tuned["extra"]["probe"].items()


def test_zero_shots_are_the_frozen_model_with_its_template(suite_file: Any, tmp_path: Path) -> None:
    """By hand: the largest of the logits of the three words at the mask, whatever the training rows and the seed."""
    path = suite_file(methods={"zero_shot": WORDED}, seeds=[1, 2])
    first, second = (run_cell(cell) for cell in read_suite(path).cells())
    assert first["status"] == "done", first["error"]
    assert (first["test"], first["parameters"], first["steps"]) == (second["test"], 0, 0)
    cell = read_suite(path).cells()[0]
    flat = flat_options(cell, tmp_path / "data", tmp_path / "out", None)
    outcome = run_zero_shot({**flat, "dtype": "float32"})
    true, predicted = outcome.predictions()
    assert np.mean(np.equal(true, predicted)) == outcome.test == first["test"]
    words, model = tokenizer(), tf.AutoModelForMaskedLM.from_pretrained(flat["backbone"])
    task = softprompt.load_task(flat["data"], shots=flat["shots"], seed=1)
    ids = words.convert_tokens_to_ids([WORDED["label_words"][name] for name in task.label_names])
    by_hand = []
    for row in task.test:
        given = words(f"{row['text']} . It was [MASK] .", return_tensors="pt")
        logits = model(**given).logits[0, (given["input_ids"][0] == words.mask_token_id).nonzero().item()]
        by_hand.append((row["label"], logits[ids].argmax().item()))
    assert sorted(by_hand) == sorted(zip(true, predicted, strict=True))  # cells read rows by their length


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (
            "zero_shot",
            {},
            "method 'zero_shot': expected head='verbalizer' with template and label_words, got head='pooled'",
        ),
        ("zero_shot", {"head": "verbalizer"}, "needs template"),
        ("probe", WORDED, "method 'probe': expected head='pooled', got 'verbalizer'; take it out."),
        ("full_finetuning", {"head": "stock"}, "method 'full_finetuning': expected head='pooled', got 'stock'"),
    ],
)
def test_a_head_that_a_contender_cannot_have_is_refused(
    method: str, given: dict[str, Any], message: str, suite_file: Any
) -> None:
    with pytest.raises(softprompt.SoftPromptError, match=re.escape(message)):
        check_contenders(read_suite(suite_file(methods={method: given})).cells())
