"""Prompts as a model continues them: as in training, and cut alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from house.batches import table
from house.tiny import tokenizer
from softprompt import SoftPromptError
from softprompt.data import encode_completion
from softprompt.models.completing import Writing, complete, encode_prompts


def test_a_decoder_reads_a_prompt_as_in_training(announced: Callable[[], list[str]]) -> None:
    tokens = tokenizer()  # puts [CLS] in front of a text and [SEP], its eos, behind it
    tokens.bos_token = "[CLS]"
    row = encode_completion(tokens, table(prompt=["red dog runs "], completion=["now"]), 16)[0]
    learned = row["input_ids"][: row["labels"].count(-100)]
    assert encode_prompts(tokens, ["red dog runs "], 16) == [learned]
    assert tokens.convert_ids_to_tokens(learned) == ["[CLS]", "red", "dog", "runs"]
    cut = encode_prompts(tokens, ["red dog runs now", "sun"], 3)
    assert [tokens.convert_ids_to_tokens(ids) for ids in cut] == [["[CLS]", "runs", "now"], ["[CLS]", "sun"]]
    assert announced() == ["cut 1 of 2 prompts (on their left): they are longer than max_length=3 tokens"]


def test_an_encoder_reads_it_as_its_tokenizer_says() -> None:
    tokens = tokenizer()
    found = encode_prompts(tokens, ["red dog runs now"], 4, decoder=False)
    assert [tokens.convert_ids_to_tokens(ids) for ids in found] == [["[CLS]", "red", "dog", "[SEP]"]]


def test_what_a_chat_template_wrote_stays() -> None:
    tokens = tokenizer()
    found = encode_prompts(tokens, ["[CLS] red [SEP] was"], 16, special=False)
    assert [tokens.convert_ids_to_tokens(ids) for ids in found] == [["[CLS]", "red", "[SEP]", "was"]]


@pytest.mark.parametrize(
    ("stop", "text"), [((), "a b. c. d"), (("c",), "a b. "), ((". ", "b"), "a "), (("x",), "a b. c. d")]
)
def test_a_text_is_cut_before_what_stops_it(stop: tuple[str, ...], text: str) -> None:
    assert Writing(stop=stop).cut("a b. c. d") == text


def test_a_completion_has_a_length() -> None:
    with pytest.raises(SoftPromptError, match="max_new_tokens: expected the length of a completion, got none"):
        complete(None, tokenizer(), [[1]], Writing(max_new_tokens=None))


def test_one_text_to_stop_at_may_stand_alone() -> None:
    assert Writing(stop="end").stop == ("end",)  # type: ignore[arg-type]
