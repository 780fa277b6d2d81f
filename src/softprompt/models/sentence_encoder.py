"""What a sentence encoder says of itself, in the files of sentence-transformers beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers.utils import cached_file

from .._types import SoftPromptError, announce

POOLING = "1_Pooling"  # the part that pools, where modules.json does not name it
MODES = {"mean": "mean", "mean_sqrt_len_tokens": "mean", "cls": "cls", "lasttoken": "last"}  # theirs, and ours
OLD_FORM = "pooling_mode_"  # one flag for each mode, before sentence-transformers 6
OLD_MODES = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "weightedmean_tokens": "weightedmean"}


def declared_pooling(name: str | Path) -> list[str] | None:
    """The pooling modes of a sentence encoder, in the words of sentence-transformers; None for any other backbone.

    Args:
        name: folder or hub name of a backbone; a hub name is looked up in the cache and then on the hub.

    Raises:
        SoftPromptError: a file is there and is no JSON of the expected form.
    """
    modules, folder = _read(name, "modules.json"), POOLING
    if modules is not None:
        paths = [part["path"] for part in _parts(name, modules) if str(part.get("type", "")).endswith(".Pooling")]
        if not paths:
            return None
        folder = paths[0]
    file = f"{folder}/config.json"
    facts = _read(name, file)
    if facts is None:
        if _unknown(name, file):
            announce(
                f"{name} is taken for no sentence encoder",
                f"{file} is not in the cache, and the hub cannot be reached to ask for it",
            )
        return None
    if not isinstance(facts, dict):
        raise _unexpected(name, file, "a mapping", facts)
    given = facts.get("pooling_mode")
    if given is not None:
        return [str(mode) for mode in (given if isinstance(given, list) else [given])]
    flags = [key.removeprefix(OLD_FORM) for key, on in facts.items() if key.startswith(OLD_FORM) and on]
    return [OLD_MODES.get(flag, flag) for flag in flags] or ["mean"]  # mean is what sentence-transformers does unasked


def _parts(name: str | Path, modules: Any) -> list[dict[str, Any]]:
    if not isinstance(modules, list) or not all(isinstance(part, dict) and "path" in part for part in modules):
        raise _unexpected(name, "modules.json", "a list of mappings with a path", modules)
    return modules


def _read(name: str | Path, file: str) -> Any:
    """A JSON file beside a backbone; None where there is none."""
    try:
        path = cached_file(str(name), file) if str(name) else None
    except OSError:  # of the hub's client, for a missing file and for a missing network
        return None
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise SoftPromptError(f"{path}: expected JSON, as sentence-transformers writes it ({error}).") from error


def _unknown(name: str | Path, file: str) -> bool:
    """Whether nobody could say if a file is on the hub: the cache also remembers what is not there."""
    if not str(name) or Path(name).is_dir():
        return False
    try:
        return try_to_load_from_cache(str(name), file) is None
    except HFValidationError:  # a folder that is gone
        return False


def _unexpected(name: str | Path, file: str, expected: str, got: Any) -> SoftPromptError:
    return SoftPromptError(f"{name}: {file}: expected {expected}, as sentence-transformers writes it, got {got!r:.60}.")
