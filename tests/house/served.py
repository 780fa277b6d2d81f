"""Prompts that are served: trained ones on disk, and made-up ones without a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from house.runs import train_shortly
from house.tiny import (
    save_backbone,
    write_classification,
    write_completion,
    write_numbers,
    write_several,
    write_tokens,
)
from softprompt import NonFiniteError, SoftPromptError
from softprompt.serving.engine import PromptEngine, Request, Served, Shelf, UnknownPromptError, Writing
from softprompt.serving.engine.request import Encoded

# name -> what it is trained with; each reads a head, a placement or a form of rows of its own
READERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"method": "deep_prompts", "num_virtual_tokens": 5, "features": [1, 2]},
    "ept": {"method": "ept"},
    "pair": {"data": "pairs", "pairs": "apart"},
    "joined": {"data": "pairs", "pairs": "joined", "method": "deep_prompts"},
    "tags": {"data": "pets"},
    "words": {
        "head": "verbalizer",
        "template": "{text} It was {mask} .",
        "label_words": {"dog": "good", "cat": "bad", "bird": "warm"},
    },
    "stock": {"head": "stock"},
    "several": {"data": "several"},
    "number": {"data": "numbers", "kind": "regression"},
}
ROWS: dict[str, list[dict[str, Any]]] = {
    name: [
        {"tokens": text.split()} if name == "tags" else {"text": text, **second}
        for text in ("red dog runs", "blue cat", "sun and a green bird sits here now")
        for second in ([{"text_pair": "It was good"}] if name in ("pair", "joined") else [{}])
    ]
    for name in READERS
}
PROMPTS = ("red dog", "blue cat runs here there now", "green cat sits then")


def train_readers(root: Path, *names: str) -> dict[str, Path]:
    """Prompts that read, on one encoder: name -> folder."""
    encoder = save_backbone(root / "encoder")
    data = {
        "animals": write_classification(root / "animals"),
        "pairs": write_classification(root / "pairs", pair=True),
        "pets": write_tokens(root / "pets"),
        "several": write_several(root / "several"),
        "numbers": write_numbers(root / "numbers"),
    }
    folders = {}
    for name in names or READERS:
        options = dict(READERS[name])
        folders[name] = train_shortly(encoder, data[options.pop("data", "animals")], root / "prompts" / name, **options)
    return folders


def train_writers(root: Path) -> dict[str, Path]:
    """Prompts that write, on one decoder: name -> folder."""
    decoder, data = save_backbone(root / "decoder", "decoder"), write_completion(root / "letters")
    return {
        "short": train_shortly(decoder, data, root / "prompts" / "short"),
        "long": train_shortly(decoder, data, root / "prompts" / "long", method="deep_prompts", num_virtual_tokens=6),
    }


def shelved(folders: Mapping[str, Path], **options: Any) -> Shelf:
    shelf = Shelf(**options)
    for name, folder in folders.items():
        shelf.place(shelf.load(name, folder))
    return shelf


def settle(engine: PromptEngine, futures: Sequence[Future[Any]] = ()) -> list[Any]:
    """Step until there is nothing to do; returns what came of the futures."""
    while engine.step():
        pass
    return [future.result(0) for future in futures]


def near(one: Any, other: Any) -> bool:
    """Whether two predictions are the same up to rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    return abs(one - other) < 1e-5 if isinstance(one, float) else one == other


class MadeUpText:
    def __init__(self, job: Any):
        self.text, self.reason, self.ids, self.most = "", None, [], job.encoded.new


class MadeUpCohort:
    """Writes the name of the prompt and the text, a letter at a time."""

    def __init__(self, lane: MadeUpLane, jobs: Sequence[Any]):
        self.lane, self.jobs, self.texts = lane, list(jobs), [MadeUpText(job) for job in jobs]

    @property
    def over(self) -> bool:
        return all(text.reason for text in self.texts)

    def step(self) -> list[tuple[int, str | Exception]]:
        made: list[tuple[int, str | Exception]] = []
        for at, (job, text) in enumerate(zip(self.jobs, self.texts, strict=True)):
            if text.reason is not None:
                continue
            if "poison" in job.encoded.row["text"]:
                raise RuntimeError("poison")
            whole = f"{job.served.key}:{job.encoded.row['text']}"
            text.ids.append(0)
            text.text = whole[: len(text.ids)]
            text.reason = "stop" if text.text == whole else "length" if len(text.ids) == text.most else None
            made.append((at, text.text[-1]))
        return made

    def end(self, at: int) -> None:
        self.texts[at].reason = self.texts[at].reason or "stopped"


class MadeUpLane:
    mixes = True

    def __init__(self, writes: bool):
        self.writes, self.batches = writes, []
        self.loaded: set[str] = set()

    def logits(self, rows: Sequence[tuple[Any, dict[str, Any]]]) -> list[Any]:
        self.batches.append([(served.name, inputs["text"]) for served, inputs in rows])
        assert {served.key for served, _ in rows} <= self.loaded, "a prompt has left before its rows were read"
        if any("poison" in inputs["text"] for _, inputs in rows):
            raise RuntimeError("poison")
        return [f"{served.key}:{inputs['text']}" for served, inputs in rows]

    def cohort(self, jobs: Sequence[Any]) -> MadeUpCohort:
        self.batches.append([(job.served.name, job.encoded.row["text"]) for job in jobs])
        return MadeUpCohort(self, jobs)


class MadeUpShelf:
    """Prompts whose answer to a text is their own key and the text; a text with "poison" breaks its batch, "nan" its row."""

    def __init__(self) -> None:
        self.prompts: dict[str, Any] = {}
        self.lanes = {writes: MadeUpLane(writes) for writes in (False, True)}
        self.numbers: Iterator[int] = iter(range(10**9))

    def find(self, name: str) -> Any:
        if name not in self.prompts:
            raise UnknownPromptError(f"model {name!r}: no")
        return self.prompts[name]

    def load(self, name: str, folder: Path) -> Any:
        if folder.name == "broken":
            raise SoftPromptError("broken")
        if name in self.prompts:
            raise SoftPromptError("taken")
        writes = folder.name == "writes"
        lane, key = self.lanes[writes], f"{name}_{next(self.numbers)}"
        lane.loaded.add(key)
        kind = SimpleNamespace(answer=_answer)

        def encode(row: Mapping[str, Any], writing: Writing, truncate: bool, new_tokens: int) -> Encoded:
            if not row.get("text"):
                raise SoftPromptError("expected a text")
            size = len(row["text"])
            new = min(writing.max_new_tokens or new_tokens, new_tokens) if writes else 0
            return Encoded(dict(row), dict(row), size, size + new, 1, new)

        return SimpleNamespace(
            name=name, key=key, lane=lane, writes=writes, kind=kind, encode=encode, pending=0, group=writes
        )

    def place(self, served: Any) -> None:
        self.prompts[served.name] = served

    def take_off(self, name: str) -> Any:
        served = self.find(name)
        del self.prompts[name]
        return served

    def unload(self, served: Any) -> None:
        assert served.pending == 0
        served.lane.loaded.remove(served.key)


def _answer(served: Any, row: Any, inputs: Mapping[str, Any], logits: str) -> dict[str, Any]:
    if "nan" in inputs["text"]:
        raise NonFiniteError("the request: the model's scores are not finite")
    return {"label": logits}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ask(name: str, text: str, **options: Any) -> Request:
    return Request(name, {"text": text}, **options)


def equal_weights(one: Served, other: Served) -> bool:
    """Whether two prompts' models hold one copy of the backbone's tensors."""
    return {p.data_ptr() for p in _stack(one)} == {p.data_ptr() for p in _stack(other)}


def _stack(served: Served) -> list[torch.Tensor]:
    from softprompt.tuner import prompts_of

    return list(prompts_of(served.model).backbone.stack.encoder.parameters())
