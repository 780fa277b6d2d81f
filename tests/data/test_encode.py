"""Tokens: what comes out of rows, pairs, completions and tagged words, and how batches are padded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from house.batches import table, tagged
from house.refusals import said
from house.tiny import tokenizer
from softprompt import SoftPromptError
from softprompt.data import collator, encode_classification, encode_completion, encode_seq2seq, encode_tokens

# Tokens --------------------------------------------------------------------------------------------------------------


def test_encode_classification(wordpiece, announced):
    encoded = encode_classification(wordpiece, table(text=["a b", "a b c d e f"], label=[1, 0]), max_length=6)
    assert encoded.column_names == ["input_ids", "token_type_ids", "attention_mask", "labels"]
    assert wordpiece.convert_ids_to_tokens(encoded["input_ids"][1]) == ["[CLS]", "a", "b", "c", "d", "[SEP]"]
    assert encoded["labels"][:] == [1, 0]
    assert announced() == ["cut 1 of 2 inputs: they are longer than max_length=6 tokens"]
    whole = encode_classification(wordpiece, table(text=["a b c d"], label=[1]), max_length=6)  # just fits
    assert len(whole["input_ids"][0]) == 6 and len(announced()) == 1


def test_encode_pairs(wordpiece, announced):
    encoded = encode_classification(wordpiece, table(text=["a b c d"], text_pair=["e f"], label=[0]), max_length=8)
    assert wordpiece.convert_ids_to_tokens(encoded["input_ids"][0]) == [
        "[CLS]",
        "a",
        "b",
        "c",
        "[SEP]",
        "e",
        "f",
        "[SEP]",
    ]
    assert encoded["token_type_ids"][0] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert announced() == ["cut 1 of 1 inputs: they are longer than max_length=8 tokens"]


def test_a_long_text_keeps_head_and_tail(wordpiece, announced):
    text = "a b c d e f g it was great good bad"  # 12 tokens and two special ones
    whole = encode_classification(wordpiece, table(text=[text], label=[0]), 14, cut="middle")
    assert announced() == [] and len(whole["input_ids"][0]) == 14
    short = encode_classification(wordpiece, table(text=[text, "a b"], label=[0, 1]), 10, cut="middle")
    tokens = [wordpiece.convert_ids_to_tokens(ids) for ids in short["input_ids"]]
    assert [" ".join(row) for row in tokens] == ["[CLS] a b g it was great good bad [SEP]", "[CLS] a b [SEP]"]
    assert [len(row) for row in short["attention_mask"]] == [10, 4]
    assert announced() == ["cut 1 of 2 inputs (in their middle): they are longer than max_length=10 tokens"]
    of_nine = encode_classification(wordpiece, table(text=[text], label=[0]), 11, cut="middle")["input_ids"][0]
    assert wordpiece.convert_ids_to_tokens(of_nine)[:5] == ["[CLS]", "a", "b", "c", "g"]  # a quarter of 9, rounded up
    apart = table(text=[text], text_pair=[text], label=[0])
    two = encode_classification(wordpiece, apart, 10, pairs="apart", cut="middle")
    assert two["input_ids"][0] == two["second_input_ids"][0] == short["input_ids"][0]
    with pytest.raises(
        SoftPromptError, match="cut='middle' keeps head and tail of one text, and pairs='joined' puts two"
    ):
        encode_classification(wordpiece, apart, 10, cut="middle")
    with pytest.raises(SoftPromptError, match="unknown cut 'start': expected one of end, middle"):
        encode_classification(wordpiece, apart, 10, cut="start")


def test_encode_completion(wordpiece, announced):
    data = table(prompt=["a b c ", "a b c d e f "], completion=["d", "g g"])
    encoded = encode_completion(wordpiece, data, max_length=6)
    a, d, g, eos = (wordpiece.convert_tokens_to_ids(t) for t in ("a", "d", "g", "[EOS]"))
    assert encoded["input_ids"][0] == [a, a + 1, a + 2, d, eos]
    assert encoded["labels"][0] == [-100, -100, -100, d, eos]
    assert encoded["input_ids"][1] == [d, d + 1, d + 2, g, g, eos]  # cut on its left
    assert encoded["labels"][1] == [-100, -100, -100, g, g, eos]
    assert encoded["attention_mask"][1] == [1] * 6
    assert announced() == ["cut 1 of 2 prompts (on their left): they are longer than max_length=6 tokens"]
    with pytest.raises(SoftPromptError) as error:
        encode_completion(wordpiece, data, max_length=3)
    assert said(error) == (
        "row 1: the completion with eos takes 3 tokens, max_length=3 has no room for it and one token of the prompt; "
        "raise max_length or remove the row."
    )
    encode_completion(wordpiece, table(prompt=["a"], completion=["b"]), max_length=6)
    assert announced()[-1].startswith("1 of 1 completions follow their prompt without white space")


def test_a_cut_prompt_keeps_its_beginning_of_text(byte_bpe):
    encoded = encode_completion(byte_bpe, table(prompt=["the film was great"], completion=[" bad"]), max_length=4)
    tokens = byte_bpe.convert_ids_to_tokens(encoded["input_ids"][0])
    assert tokens == ["<s>", "Ġgreat", "Ġbad", "</s>"] and encoded["labels"][0][:2] == [-100, -100]


def test_encode_seq2seq(wordpiece, announced):
    encoded = encode_seq2seq(wordpiece, table(prompt=["a b", "a b c d e"], completion=["d", "e f"]), max_length=5)
    assert wordpiece.convert_ids_to_tokens(encoded["input_ids"][1]) == ["[CLS]", "a", "b", "c", "[SEP]"]
    assert wordpiece.convert_ids_to_tokens(encoded["labels"][0]) == ["[CLS]", "d", "[SEP]", "[EOS]"]
    assert announced() == ["cut 1 of 2 prompts: they are longer than max_length=5 tokens"]
    with pytest.raises(
        SoftPromptError, match=r"row 0: the completion with eos takes 6 tokens, max_length=5 has no room"
    ):
        encode_seq2seq(wordpiece, table(prompt=["a"], completion=["a b c"]), max_length=5)


def test_encode_checks(wordpiece):
    with pytest.raises(SoftPromptError, match=r"expected a dataset with columns text, label, got text\."):
        encode_classification(wordpiece, table(text=["a"]), 8)
    with pytest.raises(
        SoftPromptError,
        match=r"max_length: expected a whole number above 2 \(the tokenizer's special tokens\), got 2\.",
    ):
        encode_classification(wordpiece, table(text=["a"], label=[0]), 2)
    no_end = PreTrainedTokenizerFast(tokenizer_object=wordpiece.backend_tokenizer)
    with pytest.raises(SoftPromptError, match="the tokenizer has no eos token"):
        encode_completion(no_end, table(prompt=["a"], completion=["b"]), 8)
    with pytest.raises(SoftPromptError, match="the tokenizer has neither a pad nor an eos token"):
        collator(no_end, "classification")


def test_collators_pad_to_a_multiple_of_8(wordpiece, byte_bpe, announced):
    rows = encode_classification(wordpiece, table(text=["a b", "a b c d e f g"], label=[1, 0]), 32)
    batch = collator(wordpiece, "classification")([rows[i] for i in range(2)])
    assert batch["input_ids"].shape == (2, 16) and batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].sum(1).tolist() == [4, 9]
    rows = encode_completion(byte_bpe, table(prompt=["it was", "the film was"], completion=[" bad", " great"]), 32)
    batch = collator(byte_bpe, "completion")([rows[i] for i in range(2)])
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 8)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert announced()[-1] == "pad_token = </s>: the tokenizer has none; padding is masked, so any token will do"
    with pytest.raises(SoftPromptError, match=r"unknown kind 'clasification'.*Did you mean 'classification'\?"):
        collator(wordpiece, "clasification")


# Labels of tokens ----------------------------------------------------------------------------------------------------


def test_the_first_token_of_a_word_carries_its_tag(announced: Callable[[], list[str]]) -> None:
    rows = tagged([["red", "dog.", "runs"], ["cat"], ["red", "", "sun", "now"]], [[0, 1, 2], [3], [0, 1, 2, 3]])
    encoded = encode_tokens(tokenizer(), rows, max_length=5)
    assert set(encoded.column_names) == {"input_ids", "attention_mask", "labels"}
    assert tokenizer().convert_ids_to_tokens(encoded["input_ids"][0]) == ["[CLS]", "red", "dog", ".", "[SEP]"]
    assert encoded["labels"][:] == [[-100, 0, 1, -100, -100], [-100, 3, -100], [-100, 0, 2, 3, -100]]
    assert announced() == [
        "cut 1 of 3 rows: they are longer than max_length=5 tokens",
        "2 of 8 words have no token, so they are neither learned nor scored: they are cut off, or nothing that the tokenizer knows is in them",
    ]
    with pytest.raises(SoftPromptError, match="expected a dataset with columns tokens, tags, got tokens"):
        encode_tokens(tokenizer(), rows.remove_columns("tags"), 5)
    with pytest.raises(SoftPromptError, match="expected a whole number above 2"):
        encode_tokens(tokenizer(), rows, 2)


@pytest.mark.parametrize("trim", [True, False])
def test_pieces_that_carry_the_space(trim: bool) -> None:
    """RoBERTa, GPT-2, Llama and Qwen: words are read as in running text, and found again."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(["the film was great, it was bad"] * 50, trainer)
    raw.decoder = decoders.ByteLevel()
    if trim:
        raw.post_processor = processors.ByteLevel(trim_offsets=True)
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=raw)
    encoded = encode_tokens(fast, tagged([["it", "was", "gré😀", "New York"]], [[0, 1, 2, 3]]), 64)
    ids, labels = encoded["input_ids"][0], encoded["labels"][0]
    assert ids == fast("it was gré😀 New York")["input_ids"]
    starts = [i for i, label in enumerate(labels) if label != -100]
    assert [labels[i] for i in starts] == [0, 1, 2, 3]
    assert [fast.decode(ids[i:j]).strip() for i, j in zip(starts, [*starts[1:], None], strict=True)] == [
        "it",
        "was",
        "gré😀",
        "New York",
    ]


def test_slow_tokenizers_are_refused() -> None:
    class Slow(tf.PreTrainedTokenizerFast):
        is_fast = property(lambda self: False)

    slow = Slow(tokenizer_object=tokenizer().backend_tokenizer)
    with pytest.raises(SoftPromptError, match="Slow is a slow tokenizer; words are found by its offsets"):
        encode_tokens(slow, tagged([["a"]], [[0]]), 8)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_collator_pads_labels_on_the_side_of_the_tokens(side: str) -> None:
    words = tokenizer()
    words.padding_side = side
    encoded = encode_tokens(words, tagged([["red", "dog"], ["cat"]], [[1, 2], [3]]), 24)
    batch = collator(words, "tokens")(encoded.to_list())
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 8)
    assert (batch["labels"] != -100).sum() == 3
    vocabulary = words.get_vocab()
    for word, tag in (("red", 1), ("dog", 2), ("cat", 3)):
        assert batch["input_ids"][batch["labels"] == tag].tolist() == [vocabulary[word]]


def test_a_beginning_that_a_tokenizer_knows_and_does_not_write_stays_away(wordpiece):
    wordpiece.bos_token = "[MASK]"
    row = encode_completion(wordpiece, table(prompt=["a "], completion=["b"]), 8)[0]
    assert wordpiece.convert_ids_to_tokens(row["input_ids"]) == ["a", "b", "[EOS]"]


def test_an_end_that_the_tokenizer_writes_is_not_written_twice():
    words = tokenizer()
    rows = encode_seq2seq(words, table(prompt=["red"], completion=["dog"]), 8)
    assert words.convert_ids_to_tokens(rows["labels"][0]) == ["[CLS]", "dog", "[SEP]"]
