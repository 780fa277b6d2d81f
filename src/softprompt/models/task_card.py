"""``task.json``: what an adapter needs beside its weights, and what it looked like when it was trained."""

from __future__ import annotations

import hashlib
import json
import typing
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from .._documents import read_object
from .._files import write_json
from .._types import SoftPromptError, check_choice, did_you_mean, shown
from ..data import CUTS, PIECES, PLACES
from ..tuner import PAIRINGS, POOLINGS
from ..typed import check_fields, conform
from .embedded import PACKAGES
from .kinds import COLUMNS, KINDS
from .places import is_folder, read_config

TASK_FILE = "task.json"
SEALED = (
    "kind",
    "head",
    "pooling",
    "pairs",
    "features",
    "label_names",
    "verbalizer",
    "cut",
)  # what the trained numbers mean
FREE = ("base_model_name_or_path", "inference_mode", "peft_version", "auto_mapping", "revision")  # of a PEFT config


@dataclass(frozen=True)
class TaskCard:
    """What an adapter needs, beside its weights, to be used on text again; ``task.json`` in its folder.

    Attributes:
        kind: one of `softprompt.models.KINDS`.
        backbone: name or folder of the backbone, as it was given.
        head: "pooled", "stock", "verbalizer" or "lm".
        pooling: of a pooled head.
        pairs: how a pooled head sees rows of two texts, "joined" or "apart"; None for rows of one.
        features: the layers that a pooled head reads; None for the last one.
        label_names: classes by index.
        max_length: tokens per row.
        cut: what longer texts lose, "end" or "middle".
        dtype: of the backbone.
        verbalizer: template and label words.
        columns: names of the text columns in the training data.
        backbone_dropout: whether the backbone's dropout was on in training.
        backbone_folder: where the backbone lay, if it was a folder.
        sha256: of the adapter's files and of the card's own fields when it was written, by their names; an entry that is
            removed is not checked.
    """

    kind: str
    backbone: str
    head: str
    label_names: list[str]
    max_length: int
    cut: str = "end"
    dtype: str = "float32"
    pooling: str | None = None
    pairs: str | None = None
    features: list[int] | None = None
    verbalizer: dict[str, Any] | None = None
    columns: dict[str, str] | None = None
    backbone_dropout: bool = False
    backbone_folder: str | None = None
    sha256: dict[str, str] | None = None

    def write(self, folder: str | Path) -> None:
        """Write the card beside the weights that it is for, with their hashes."""
        lies_in_folder = self.backbone not in PACKAGES and is_folder(self.backbone)
        where = str(Path(self.backbone).resolve()) if lies_in_folder else self.backbone_folder
        card = replace(self, backbone_folder=where)
        write_json(Path(folder) / TASK_FILE, asdict(replace(card, sha256=card._hashes(Path(folder)))))

    @classmethod
    def read(cls, folder: str | Path) -> TaskCard:
        """Raises `SoftPromptError` when the folder has no ``task.json``, or one that no training has written."""
        path = Path(folder) / TASK_FILE
        if not path.is_file():
            raise SoftPromptError(
                f"{folder}: expected a folder written by softprompt train, but it has no {TASK_FILE}."
            )
        document = read_object(path, "task card")
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(document.keys() - known.keys()):
            raise SoftPromptError(
                f"{path}: not a task card: {unknown[0]}: there is no such field.{did_you_mean(unknown[0], known)}"
            )
        for name, field in known.items():
            if name not in document and field.default is MISSING:
                raise SoftPromptError(f"{path}: not a task card: {name}: expected a value, got no such field.")
        check_fields(path, document, typing.get_type_hints(cls))
        card = cls(**document)
        try:
            card._check()
        except SoftPromptError as error:
            raise SoftPromptError(f"{path}: {error}") from error
        return card

    def check_seal(self, folder: str | Path) -> None:
        """Raise `SoftPromptError` where the card or the adapter beside it is no longer what training wrote."""
        got, path = self._hashes(Path(folder)), Path(folder) / TASK_FILE
        for name, expected in (self.sha256 or {}).items():
            if name in got and got[name] != expected:
                what = f"{Path(folder) / name}" if name.endswith((".json", ".safetensors")) else f"{path}: {name}"
                raise SoftPromptError(
                    f'{what}: changed since {TASK_FILE} was written: expected SHA-256 {expected}, got {got[name]}; copy or train the adapter again. If you changed it on purpose (save_pretrained into this folder does), remove the entry {name!r} under "sha256" in {path}.'
                )

    def place(self, folder: str | Path) -> str:
        """The name or folder under which the backbone of the adapter in ``folder`` is found now.

        Raises:
            SoftPromptError: it was a folder, and is neither there nor where it was given, from here or from ``folder``.
        """
        given = [self.backbone, str(Path(folder) / self.backbone)]
        places = [*given, self.backbone_folder] if self.backbone_folder else given
        if self.backbone not in PACKAGES and (there := next(filter(is_folder, places), None)):
            return there
        if self.backbone_folder is None:
            return self.backbone
        tried = ", ".join(dict.fromkeys(places))
        raise SoftPromptError(
            f"{folder}: the adapter's backbone {self.backbone!r} is not there any more; tried {tried}. Pass --backbone (in Python, backbone=...)."
        )

    @property
    def task_type(self) -> str | None:
        """PEFT's word for the task; None for label words, which PEFT has no word for."""
        return KINDS[self.kind].task_type(self.head, bool(read_config(self.backbone).is_encoder_decoder))

    def _check(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice(f"head of a card for {self.kind}", self.head, KINDS[self.kind].heads)
        check_choice("pooling", self.pooling, (None, *POOLINGS))
        check_choice("pairs", self.pairs, (None, *PAIRINGS))
        layers = [] if self.features is None else self.features
        if self.features is not None and (not layers or len(set(layers)) < len(layers) or min(layers) < 0):
            raise SoftPromptError(f"features: expected different numbers of layers, or null, got {shown(layers)}.")
        if layers and self.head != "pooled":
            raise SoftPromptError(
                f"features: expected null for head={self.head!r}, got {shown(layers)}; only a pooled head reads layers."
            )
        if not self.backbone:
            raise SoftPromptError("backbone: expected a name or folder, got an empty string.")
        check_choice("cut", self.cut, CUTS)
        if self.cut != "end" and self.head not in ("pooled", "stock"):
            raise SoftPromptError(
                f"cut={self.cut!r}: expected 'end' for head={self.head!r}; only texts under a pooled or stock head lose their middle."
            )
        conform("max_length", self.max_length, int, least=1)
        dtype = getattr(torch, self.dtype, None)
        # nothing computes in 8 bits
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
            raise SoftPromptError(
                f"dtype: expected the name of a floating-point dtype of torch, such as 'float32', got {self.dtype!r}."
            )
        distinct = bool(self.label_names) and len(set(self.label_names)) == len(self.label_names)
        if KINDS[self.kind].has_classes and not distinct:
            raise SoftPromptError(f"label_names: expected the names of the classes, got {shown(self.label_names)}.")
        for column in self.columns or {}:
            check_choice("column", column, [f"{name}_column" for name in COLUMNS])
        if (self.head == "verbalizer") != bool(self.verbalizer):
            raise SoftPromptError(
                f"verbalizer: expected template and label words for head='verbalizer' and null otherwise; got {shown(self.verbalizer)} for head={self.head!r}."
            )
        if self.verbalizer is not None:
            self._check_verbalizer(self.verbalizer)

    def _check_verbalizer(self, verbalizer: dict[str, Any]) -> None:
        hints: dict[str, Any] = {"template": str, "label_words": dict[str, str | list[str]], "label_names": list[str]}
        for name, choices in (("pieces", PIECES), ("place", PLACES)):
            if name in verbalizer:  # only cards that differ from the first choice say so
                hints[name] = str
                check_choice(name, verbalizer[name], choices)
        if verbalizer.keys() != hints.keys():
            raise SoftPromptError(
                f"verbalizer: expected the keys {', '.join(hints)}, got {', '.join(verbalizer) or 'none'}."
            )
        check_fields("verbalizer", verbalizer, hints)
        if verbalizer["label_names"] != self.label_names:
            raise SoftPromptError(
                f"verbalizer: label_names: expected those of the card, {shown(self.label_names)}, got {shown(verbalizer['label_names'])}."
            )

    def _hashes(self, folder: Path) -> dict[str, str]:
        """SHA-256 of the adapter's files that are there, and of the fields that say what its numbers mean."""
        hashes = {}
        if (weights := folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            hashes[SAFETENSORS_WEIGHTS_NAME] = hashlib.sha256(weights.read_bytes()).hexdigest()
        if (settings := folder / CONFIG_NAME).is_file():
            config = read_object(settings, "PEFT config")
            hashes[CONFIG_NAME] = _hash({key: _sorted(config[key]) for key in config.keys() - set(FREE)})
        return hashes | {name: _hash(getattr(self, name)) for name in SEALED}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sorted(value: Any) -> Any:
    """Names without order and repetition: PEFT keeps sets of modules, and adds the head's again at each load."""
    return sorted(set(value)) if isinstance(value, list) and all(isinstance(one, str) for one in value) else value
