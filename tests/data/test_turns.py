"""What of a conversation is learned."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import pytest

from house.tiny import CHAT, tokenizer
from softprompt import SoftPromptError
from softprompt.data import encode_chat, wanted_answer

TALK = [
    {"role": "user", "content": "red dog"},
    {"role": "assistant", "content": "dog runs"},
    {"role": "user", "content": "cat"},
    {"role": "assistant", "content": "cat"},
]


def encoded(messages, template=CHAT, max_length=32):
    tokens = tokenizer()
    tokens.chat_template = template
    row = encode_chat(tokens, datasets.Dataset.from_list([{"messages": messages}]), max_length)[0]
    said = [tokens.convert_ids_to_tokens(label) if label != -100 else "" for label in row["labels"]]
    return tokens.convert_ids_to_tokens(row["input_ids"]), said


def test_the_assistant_is_learned_up_to_the_end_of_its_turns() -> None:
    ids, said = encoded(TALK)
    assert ids == [
        "[CLS]",
        "It",
        "red",
        "dog",
        "[SEP]",
        "was",
        "dog",
        "runs",
        "[SEP]",
        "It",
        "cat",
        "[SEP]",
        "was",
        "cat",
        "[SEP]",
    ]
    assert said == ["", "", "", "", "", "", "dog", "runs", "[SEP]", "", "", "", "", "cat", "[SEP]"]


def test_an_end_is_written_where_the_template_has_none() -> None:
    ids, said = encoded(TALK[:2], CHAT.replace(" [SEP]", ""))
    assert ids == ["[CLS]", "It", "red", "dog", "was", "dog", "runs", "[SEP]"]
    assert said == ["", "", "", "", "", "dog", "runs", "[SEP]"]


def test_an_end_inside_an_answer_is_not_its_end() -> None:
    talk = [TALK[0], {"role": "assistant", "content": "dog [SEP] runs"}]
    ids, said = encoded(talk, CHAT.replace(" [SEP]{% endfor %}", "{% endfor %}"))
    assert said[-4:] == ["dog", "[SEP]", "runs", "[SEP]"] and ids[-1] == "[SEP]"


def test_an_end_in_an_earlier_turn_is_not_that_of_the_last() -> None:
    template = CHAT.replace(" [SEP]{% endfor %}", "{% if not loop.last %} [SEP]{% endif %}{% endfor %}")
    with pytest.raises(SoftPromptError, match="otherwise when more follows"):
        encoded(TALK, template)
    template = CHAT.replace(" [SEP]{% endfor %}", "{% if loop.index < 4 %} [SEP]{% endif %}{% endfor %}")
    ids, said = encoded(TALK, template)
    assert said[-2:] == ["cat", "[SEP]"] and ids[-2:] == ["cat", "[SEP]"]


def test_an_answer_that_joins_what_stands_before_it_is_refused(byte_bpe) -> None:
    byte_bpe.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    rows = datasets.Dataset.from_list(
        [{"messages": [{"role": "user", "content": "bad"}, {"role": "assistant", "content": "great"}]}]
    )
    with pytest.raises(SoftPromptError) as error:
        encode_chat(byte_bpe, rows, 64)
    assert "row 0: the tokenizer joins the end of what stands before an answer" in str(error.value)
    byte_bpe.chat_template = byte_bpe.chat_template.replace(": ", ":")
    assert encode_chat(byte_bpe, rows, 64)[0]["labels"][-1] == byte_bpe.eos_token_id


def test_what_a_template_writes_before_the_answer_is_wanted_too() -> None:
    tokens = tokenizer()
    tokens.chat_template = CHAT.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}then {% endif %}{{ m['content'] }}"
    )
    read, said = wanted_answer(tokens, TALK[:2], "row 1")
    assert read == "[CLS] It red dog [SEP] was" and said == " then dog runs [SEP]"


def test_a_long_conversation_loses_its_beginning(announced: Callable[[], list[str]]) -> None:
    ids, said = encoded(TALK, max_length=6)
    assert ids == ["It", "cat", "[SEP]", "was", "cat", "[SEP]"] and said[-2:] == ["cat", "[SEP]"]
    assert "cut 1 of 1 conversations (on their left): they are longer than max_length=6 tokens" in announced()
    with pytest.raises(SoftPromptError) as error:
        encoded(TALK, max_length=2)
    assert "row 0: the assistant's last message takes 2 tokens, max_length=2 has no room" in str(error.value)


def test_templates_that_hide_what_was_said_are_refused() -> None:
    forgets = "{{ messages[-1]['content'] }}"
    with pytest.raises(SoftPromptError) as error:
        encoded(TALK, forgets)
    assert "the chat template renders the beginning of a conversation otherwise when more follows" in str(error.value)
    refuses = "{{ raise_exception('no such order') }}"
    with pytest.raises(SoftPromptError) as error:
        encoded(TALK, refuses)
    assert "the backbone's chat template takes no such messages (no such order)" in str(error.value)


def test_a_line_break_behind_the_end_of_a_turn_makes_no_second_end(byte_bpe):
    byte_bpe.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    messages = [{"role": "user", "content": "bad"}, {"role": "assistant", "content": "great"}]
    row = encode_chat(byte_bpe, datasets.Dataset.from_list([{"messages": messages}]), 64)[0]
    assert row["input_ids"].count(byte_bpe.eos_token_id) == 2
