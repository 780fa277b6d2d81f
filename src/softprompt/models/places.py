"""Where a backbone lies: embedded, in a folder, or on the hub; its config and its tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from .._types import SoftPromptError
from .embedded import PACKAGES, embedded_backbone

CONFIG_FILE = "config.json"


def backbone_path(name: str) -> str:
    """The folder or hub name behind ``name``; that of an embedded backbone is checked."""
    return str(embedded_backbone(name)) if name in PACKAGES else name


def is_folder(name: str | Path) -> bool:
    """Whether a backbone's config lies in the folder ``name``."""
    return (Path(name) / CONFIG_FILE).is_file()


def read_config(name: str) -> Any:
    """The backbone's config.

    Raises:
        SoftPromptError: there is no such folder and the hub does not have it or cannot be reached.
    """
    path = backbone_path(name)
    embedded = ", ".join(map(repr, PACKAGES))
    expected = (
        f"backbone {name!r}: expected {embedded}, a folder with {CONFIG_FILE}, or a hub name that can be reached; got: "
    )
    if is_path(path) and not is_folder(path):
        what = f"a folder without {CONFIG_FILE}" if Path(path).is_dir() else "no such folder"
        raise SoftPromptError(f"{expected}{what}.")
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SoftPromptError(f"{expected}{first_line(error)}") from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer, with a padding token.

    Raises:
        SoftPromptError: there is no such backbone, or it has none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(name))
    except (OSError, ValueError, KeyError, TypeError) as error:
        read_config(name)  # the better message where there is no backbone at all
        raise SoftPromptError(f"backbone {name!r} has no tokenizer that can be read ({first_line(error)}).") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def first_line(error: BaseException) -> str:
    """What an error says, without the advice behind it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_path(name: str) -> bool:
    """Whether a name can be nothing but a path: those of the hub are "name" or "owner/name"."""
    return Path(name).exists() or name.startswith((".", "~")) or os.path.isabs(name) or name.count("/") > 1
