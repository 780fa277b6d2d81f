"""The prompts that are served: by name, on the models that they share."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..._types import SoftPromptError, Tally, announce, did_you_mean
from ...data import SECOND, Verbalizer, has_cut
from ...models import KINDS, Kind, TaskCard, Writing, load_tokenizer, read_config
from ...models.marked import know_marker
from ...tuner import SoftPromptConfig, read_adapter_config
from .backlog import Job
from .cohort import LEFT_OUT
from .lanes import LANES, Lane, lane_key, share_weights
from .request import Encoded, Request, TakenError, TooLongError, UnknownPromptError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(eq=False)
class Served:
    """A prompt that is served, as a kind of task asks for it (`softprompt.models.kinds.Adapted`).

    Attributes:
        name: what clients call it.
        key: what the model calls it.
        virtual: virtual tokens in a pass; none of a compiled prompt.
        compiled: whether it is read as keys and values.
        side: on which inputs are padded.
        tokenizing: is held while texts are cut: a tokenizer cuts for one caller at a time.
        created: when it was loaded, in seconds since 1970.
        pending: requests for it that have no answer yet.
    """

    name: str
    key: str
    card: TaskCard
    kind: Kind
    tokenizer: PreTrainedTokenizerBase
    verbalizer: Verbalizer | None
    lane: Lane
    virtual: int
    compiled: bool
    side: str
    tokenizing: threading.Lock
    created: int = field(default_factory=lambda: int(time.time()))
    pending: int = 0
    batch_size: int = 1

    @property
    def model(self) -> Any:
        return self.lane.model

    @property
    def group(self) -> tuple[int, bool, str]:
        """Prompts of one group are mixed in one batch: compiled ones are read otherwise than the others."""
        return id(self.lane), self.compiled, "" if self.lane.mixes else self.key

    @property
    def writes(self) -> bool:
        return self.lane.writes

    def encode(self, row: Mapping[str, Any], writing: Writing, truncate: bool, new_tokens: int = 512) -> Encoded:
        """A row as model inputs.

        Args:
            row: what the model reads.
            writing: how a completion is asked for.
            truncate: cut a text that is too long.
            new_tokens: the most that a completion may have.

        Raises:
            TooLongError: it is longer than the prompt was trained for, and is not to be cut, or than the backbone has positions.
            SoftPromptError: the row is not what the prompt reads.
        """
        if writing.completions > 1:
            raise SoftPromptError("completions: a request is answered by one; send it several times.")
        read = self.kind.read(self, row, "the request", {})
        with self.tokenizing, Tally() as tally:
            inputs = self.kind.encoded(self, [("the request", read)])[0]
        if not truncate and has_cut(tally):
            raise TooLongError(
                f"expected at most {self.card.max_length} tokens for {self.name!r}, as in its training, got {self._tokens(read)}; shorten the text, or send truncate=true, which cuts it as a prediction offline does."
            )
        first, second = len(inputs["input_ids"]), len(inputs.get(f"{SECOND}input_ids", ()))
        new = self._room(first, writing.max_new_tokens, new_tokens) if self.writes else 0
        return Encoded(read, inputs, first + second, max(first, second) + self.virtual, 1 + bool(second), new)

    def _tokens(self, row: Mapping[str, Any]) -> int:
        """How many tokens the longest of a row's texts has, uncut."""
        texts = [" ".join(value) if isinstance(value, list) else value for value in row.values() if value is not True]
        with self.tokenizing:
            return max(len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"])

    def _room(self, tokens: int, wanted: int | None, most: int) -> int:
        """How many tokens are written behind ``tokens`` of text."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        room = most if limit is None else min(most, limit - tokens - self._virtual_tokens)
        if room < (wanted or 1):
            has = f"the backbone has {limit} positions and the server allows {most} new tokens"
            raise TooLongError(
                f"expected at most {max(0, room)} new tokens behind {tokens} of text ({has}), got {wanted or 1}; ask for fewer, or shorten the text."
            )
        return room if wanted is None else wanted

    @property
    def _virtual_tokens(self) -> int:
        return int(self.model.peft_config[self.key].num_virtual_tokens)


class Shelf:
    """Prompts by name, and the models below them; all but `find` belongs to one thread.

    Args:
        backbone: name or folder; None takes that of the first prompt.
        compiles: whether prompts are turned into keys and values where this changes nothing but the time.
        device: where the models lie, such as "cuda:0"; None takes an accelerator where there is one.

    Raises:
        SoftPromptError: there is no such device.
    """

    def __init__(self, backbone: str | None = None, compiles: bool = True, device: str | None = None):
        self.backbone, self.compiles, self.device = backbone, compiles, choose_device(device)
        self.prompts: dict[str, Served] = {}
        self._lanes: dict[tuple[str, ...], Lane] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._numbers, self._tokenizing = count(), threading.Lock()

    def find(self, name: str) -> Served:
        """The prompt of a name.

        Raises:
            UnknownPromptError: there is none.
        """
        served = self.prompts.get(name)
        if served is None:
            known = sorted(self.prompts)
            there = f"expected one of {', '.join(known)}" if known else "no prompt is served"
            raise UnknownPromptError(f"model {name!r:.80}: {there}.{did_you_mean(name, known)}")
        return served

    def load(self, name: str, folder: Path) -> Served:
        """Load a prompt and try it once; it is found after `place`.

        Raises:
            SoftPromptError: a name that no client could use or that is taken; no adapter of ours in the folder; another backbone; a
                form of task that is not served.
        """
        if not NAME.fullmatch(name):
            raise SoftPromptError(
                f"prompt name {name!r:.80}: expected letters, digits, '.', '_' and '-', 64 at most, a letter or digit first."
            )
        if name in self.prompts:
            raise TakenError(f"prompt {name!r} is served already; remove it first, or take another name.")
        card = TaskCard.read(folder)
        place = self._place(name, card, folder)
        config = read_adapter_config(folder)
        if not isinstance(config, SoftPromptConfig):
            raise SoftPromptError(
                f"{folder}: expected a prompt of softprompt, which mixes with others in one batch, got PEFT's {config.peft_type.value}; softprompt.import_peft turns its prompts into ours."
            )
        card = replace(card, backbone=place)
        if card.kind == "completion" and read_config(place).is_encoder_decoder:
            raise SoftPromptError(f"{folder}: completions of encoder-decoders are not served; use softprompt predict.")
        key = lane_key(card)
        lane = self._lanes.get(key)
        fresh = lane is None or lane.model is None
        lane = self._lanes.setdefault(key, LANES[card.head](self.device)) if lane is None else lane
        adapter, compiled = lane.join(folder, f"prompt_{next(self._numbers)}", card, self.compiles)
        try:
            served = self._served(name, adapter, card, lane, config, compiled)
            if fresh and lane.model is not None:
                share_weights(
                    lane.model,
                    [
                        o.model
                        for k, o in self._lanes.items()
                        if o is not lane and o.model is not None and k[1] == key[1]
                    ],
                )
                _announce_settings(lane.model)
            self._try(served)
        except BaseException:
            lane.leave(adapter)
            raise
        return served

    def place(self, served: Served) -> None:
        """Let a loaded prompt be found."""
        self.backbone = self.backbone or served.card.backbone
        self.prompts[served.name] = served

    def take_off(self, name: str) -> Served:
        """Let a prompt be found no more; it stays loaded until `unload`.

        Raises:
            UnknownPromptError: there is none of this name.
        """
        served = self.find(name)
        del self.prompts[name]
        return served

    def unload(self, served: Served) -> None:
        """Take a prompt out of memory."""
        served.lane.leave(served.key)
        if served.lane.model is None:
            self._lanes = {key: lane for key, lane in self._lanes.items() if lane is not served.lane}

    def _place(self, name: str, card: TaskCard, folder: Path) -> str:
        if self.backbone is None:
            return card.place(folder)
        trained = card.backbone
        served = Path(self.backbone).name
        if not self.prompts or trained == self.backbone or Path(trained).name == served:
            return self.backbone
        try:
            same = Path(card.place(folder)).resolve() == Path(self.backbone).resolve()
        except SoftPromptError:  # it lay somewhere else when it was trained; its sizes and its fingerprint decide
            same = True
        if not same:
            raise SoftPromptError(
                f"prompt {name!r} in {folder}: expected one of the backbone {self.backbone!r}, got one of {trained!r}; serve each backbone by a server of its own."
            )
        return self.backbone

    def _served(
        self, name: str, key: str, card: TaskCard, lane: Lane, config: SoftPromptConfig, compiled: bool
    ) -> Served:
        marker = config.marker_token_id
        known = f"{card.backbone} {marker}"
        if known not in self._tokenizers:
            tokenizer = load_tokenizer(card.backbone)
            if marker is not None:
                know_marker(tokenizer, str(tokenizer.convert_ids_to_tokens(marker)))
            self._tokenizers[known] = tokenizer
        tokenizer = self._tokenizers[known]
        verbalizer = Verbalizer.from_dict(tokenizer, card.verbalizer) if card.verbalizer else None
        virtual = 0 if compiled else config.num_virtual_tokens
        kind, lock = KINDS[card.kind], self._tokenizing
        return Served(
            name, key, card, kind, tokenizer, verbalizer, lane, virtual, compiled, tokenizer.padding_side, lock
        )

    def _try(self, served: Served) -> None:
        """Run the prompt once, beside itself: what cannot work is said before anybody asks."""
        texts = ["a", "a longer text than the other"]
        marker = served.model.peft_config[served.key].marker_token_id
        if marker is not None:
            texts = [f"{served.tokenizer.convert_ids_to_tokens(marker)} {text}" for text in texts]
        rows: list[dict[str, Any]] = [{served.kind.plain: text} for text in texts]
        if served.card.pairs is not None:
            rows = [{**row, "text_pair": texts[0]} for row in rows]
        if served.verbalizer is not None and "text_pair" in served.verbalizer.template:
            rows = [{**row, "text_pair": texts[0]} for row in rows]
        made = [served.encode(row, Writing(max_new_tokens=2), True) for row in rows]
        if served.writes:
            cohort = served.lane.cohort(
                [Job(Request(served.name, row), served, one, 0.0, 0.0) for row, one in zip(rows, made, strict=True)],
            )
            for _, piece in cohort.step():
                if isinstance(piece, Exception):
                    raise piece
            return
        for one, logits in zip(made, served.lane.logits([(served, one.inputs) for one in made]), strict=True):
            served.kind.answer(served, ("a trial", one.row), one.inputs, logits)


def choose_device(name: str | None) -> torch.device:
    """The device of a name, or an accelerator where there is one.

    Raises:
        SoftPromptError: there is no such device.
    """
    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SoftPromptError(f"device {name!r}: expected one that torch has here, such as 'cpu'.") from error


def _announce_settings(model: Any) -> None:
    settings = getattr(model, "generation_config", None)
    left_out = [name for name in LEFT_OUT if getattr(settings, name, None)]
    if left_out:
        announce(f"{', '.join(left_out)} of generation_config.json not applied", "the server chooses tokens by itself")
