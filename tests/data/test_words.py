"""Label words as people write them: numbers for classes, YAML's no, words of several pieces."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from softprompt import SoftPromptError
from softprompt.data import Verbalizer
from softprompt.training.keys.options import parse_setting

TEMPLATE = "{text} It was {mask}."


WORDS = ["great", "terrible", "terrific", "0", "aw", "##ful", "un", "##great", "##ly"]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "[MASK]", "It", "was", ".", *WORDS])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", mask_token="[MASK]")


def refusal(tokenizer, words, names=None):
    with pytest.raises(SoftPromptError) as error:
        Verbalizer(tokenizer, TEMPLATE, words, names)
    return str(error.value)


def test_whole_numbers_are_class_names(tokenizer):
    _, words = parse_setting("label_words={0: terrible, 1: [great, terrific]}")
    verbalizer = Verbalizer(tokenizer, TEMPLATE, words, ["0", "1"])
    assert verbalizer.label_words == {"0": ["terrible"], "1": ["great", "terrific"]}
    assert Verbalizer(tokenizer, TEMPLATE, words).label_names == ["0", "1"]
    assert Verbalizer(tokenizer, TEMPLATE, words, [1, 0]).label_names == ["1", "0"]
    assert Verbalizer(tokenizer, TEMPLATE, {"no": 0, "yes": "great"}).label_words["no"] == ["0"]
    assert Verbalizer.from_dict(tokenizer, verbalizer.to_dict()).token_ids == verbalizer.token_ids


@pytest.mark.parametrize(
    ("setting", "names", "expected"),
    [
        ("{0: terrible, 2: great}", ["0", "1"], "label_words: no words for '1'; unknown class '2'. Expected one entry for each of 0, 1."),
        ("{false: terrible, true: great}", ["no", "yes"], "label_words: got False as a class name. true and false without quotes"),
        ("{0: false, 1: great}", ["0", "1"], "label_words: got False as a word of class '0'. true and false without quotes"),
        ("{0: [great, true], 1: terrible}", ["0", "1"], "label_words: got True as a word of class '0'."),
        ("{0: 1.5, 1: great}", ["0", "1"], "label_words: expected a word or a list of words for class '0', got 1.5."),
        ("{0: [1.5], 1: great}", ["0", "1"], "label_words: expected a text as word of class '0', got float 1.5."),
        ("{0: {a: b}, 1: great}", ["0", "1"], "label_words: expected a word or a list of words for class '0', got {'a': 'b'}."),
        ("{0: great, '0': terrible}", ["0", "1"], "label_words: class '0' is there twice, as a number and as a text; keep one."),
        ("[great, terrible]", ["0", "1"], "label_words: expected class names with their words, like {negative: terrible, positive: great}, got ['great', 'terrible']."),
        ("great", ["0", "1"], "expected class names with their words, like {negative: terrible, positive: great}, got 'great'."),
        ('{0: "gr\\ud800", 1: great}', ["0", "1"], "label_words, word of class '0': the text holds a lone surrogate"),
    ],
)  # fmt: skip
def test_words_as_yaml_reads_them(tokenizer, setting, names, expected):
    _, words = parse_setting(f"label_words={setting}")
    assert expected in refusal(tokenizer, words, names)


def test_quotes_keep_a_false(tokenizer):
    message = refusal(tokenizer, {False: "terrible", True: "great"})
    assert message.endswith('put such a text into quotes, as in {"false": no, "true": yes}.')
    for names in (["false", "true"], ["no", "yes"]):
        _, words = parse_setting('label_words={{"{}": terrible, "{}": great}}'.format(*names))
        assert Verbalizer(tokenizer, TEMPLATE, words).label_names == names


def test_all_words_of_several_pieces_are_named_at_once(tokenizer):
    message = refusal(tokenizer, {"a": ["terrible", "awful"], "b": "ungreatly", "c": "zzz"})
    assert message == (
        "label word 'awful' of class 'a' is 2 pieces (aw, ##ful), expected one; "
        "label word 'ungreatly' of class 'b' is 3 pieces (un, ##great, ##ly), expected one; "
        "label word 'zzz' of class 'c' is not in the tokenizer's vocabulary; try other, more common words, or set label_pieces=mean. "
        "One piece each: 'great'."
    )
    # only words that stand at the mask as one token are offered
    assert refusal(tokenizer, {"a": "terribly", "b": "great"}).endswith("One piece each: 'terrible'.")
