"""Answers of an engine in the forms that clients read."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from ..engine import Answer, Served


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    read, written = sum(one.prompt_tokens for one in answers), sum(one.completion_tokens for one in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def timing(answers: Sequence[Answer]) -> dict[str, str]:
    """The header that says how long the slowest row waited and was computed."""
    queued, computed = (1000 * max(getattr(one, name) for one in answers) for name in ("queued_s", "computed_s"))
    return {"Server-Timing": f"queue;dur={queued:.1f}, compute;dur={computed:.1f}"}


def model(served: Served) -> dict[str, Any]:
    card = served.card
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "softprompt",
        "task": card.kind,
        "classes": card.label_names,
        "texts": 2 if card.pairs is not None else 1,
        "max_length": card.max_length,
        "compiled": served.compiled,
    }


class Completions:
    """The documents of a completion or of a chat: whole, or piece by piece."""

    def __init__(self, name: str, chat: bool, usage: bool = False):
        self.name, self.chat, self.usage = name, chat, usage
        self.id, self.created = new_id("chatcmpl" if chat else "cmpl"), int(time.time())

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        choices = []
        for index, one in enumerate(answers):
            text = one.prediction["completion"]
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": one.finish_reason})
        return {**self._head(""), "choices": choices, "usage": usage(answers)}

    def piece(self, index: int, text: str, reason: str | None = None, first: bool = False) -> dict[str, Any]:
        delta = {**({"role": "assistant"} if first else {}), **({"content": text} if text or not reason else {})}
        said: dict[str, Any] = {"delta": delta} if self.chat else {"text": text}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
        return {**self._head(".chunk"), "choices": [choice], **({"usage": None} if self.usage else {})}

    def end(self, answers: Sequence[Answer]) -> dict[str, Any]:
        return {**self._head(".chunk"), "choices": [], "usage": usage(answers)}

    def _head(self, chunk: str) -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name}


def classes(name: str, served: Served, answers: Sequence[Answer]) -> dict[str, Any]:
    """In the form of vLLM's /classify: a row's label (or labels) and the probabilities in the order of the classes; its number; its tags."""
    data = []
    for index, one in enumerate(answers):
        made = one.prediction
        if "scores" in made:
            said: dict[str, Any] = {name: made[name] for name in ("label", "labels") if name in made}
            made = {**said, "probs": list(made["scores"].values()), "num_classes": len(made["scores"])}
        data.append({"index": index, **made})
    head = {"id": new_id("classify"), "object": "list", "created": int(time.time()), "model": name}
    return {**head, "classes": served.card.label_names, "data": data, "usage": usage(answers)}


def ranked(answer: Answer) -> list[dict[str, Any]]:
    """In the form of text-embeddings-inference's /predict: the classes of a row, the most probable first."""
    scores = answer.prediction["scores"]
    return [{"score": score, "label": label} for label, score in sorted(scores.items(), key=lambda item: -item[1])]
