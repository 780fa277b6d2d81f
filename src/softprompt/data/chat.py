"""Conversations: rows of messages, and the text that a tokenizer's own chat template makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from .._types import SoftPromptError
from .read import Rows, check_unicode, is_blank, shown

ROLES = ("system", "user", "assistant")
Messages = list[dict[str, str]]


def check_messages(value: Any, where: str, answered: bool) -> Messages:
    """Return a conversation, each message with its role and content alone; without the answer, where it is not asked for.

    Args:
        value: a list of ``{"role": "system" | "user" | "assistant", "content": "..."}``.
        where: what an error calls its place.
        answered: whether it must end with the assistant's message; else such an end is left out, for it is what is to be written.

    Raises:
        SoftPromptError: it is no such list.
    """
    if not isinstance(value, list) or not value:
        got = "none" if value == [] else f"{type(value).__name__} {shown(value)}"
        raise SoftPromptError(f"{where}: expected a list of at least one message, got {got}.")
    made: Messages = []
    for number, message in enumerate(value, 1):
        at = f"{where}, message {number}"
        if not isinstance(message, Mapping):
            raise SoftPromptError(f"{at}: expected an object with role and content, got {shown(message)}.")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise SoftPromptError(f"{at}: expected one of the roles {', '.join(ROLES)}, got {shown(role)}.")
        if not isinstance(content, str) or is_blank(content):
            joined = " Join its parts to one text." if isinstance(content, list) else ""
            raise SoftPromptError(f"{at}: expected a text as content, got {shown(content)}.{joined}")
        if more := [key for key, given in message.items() if key not in ("role", "content") and given is not None]:
            raise SoftPromptError(f"{at}: {more[0]!r} is not supported; expected role and content alone.")
        made.append({"role": role, "content": check_unicode(content, at)})
    if not answered and made[-1]["role"] == "assistant":
        made = made[:-1]
    if not made or (answered and made[0]["role"] == "assistant"):
        raise SoftPromptError(f"{where}: expected a message to answer before the assistant's, got none.")
    if answered and made[-1]["role"] != "assistant":
        raise SoftPromptError(
            f"{where}: expected the assistant's message at the end, which is learned, got one of {made[-1]['role']!r}."
        )
    return made


def conversations(rows: Rows, column: str) -> list[Messages]:
    """The conversations in a column, each ending with the assistant's message.

    Raises:
        SoftPromptError: a row lacks the column, or holds no such conversation there.
    """
    return [
        check_messages(value, f"{rows.where(i)}, column {column!r}", answered=True)
        for i, value in enumerate(rows.column(column, "messages_column"))
    ]


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str, answer: bool) -> str:
    """The text of a conversation; with ``answer`` up to where the assistant's next message begins.

    Raises:
        SoftPromptError: the tokenizer has no chat template, or its template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise SoftPromptError(
            f"{where}: the tokenizer of this backbone has no chat template, which says how messages become a text; choose a backbone that chats, put a chat_template.jinja beside its tokenizer, or give prompts in place of messages."
        )
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))
    except (TemplateError, ValueError, TypeError) as error:  # a template may refuse an order of roles
        raise SoftPromptError(f"{where}: the backbone's chat template takes no such messages ({error}).") from error
