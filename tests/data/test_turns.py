"""What of a conversation is learned."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import pytest

from house.tiny import CHAT, tokenizer
from softprompt import SoftPromptError
from softprompt.data import encode_chat

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
