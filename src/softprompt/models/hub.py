"""Adapters on the Hugging Face hub: which name means one there, where its files lie after a download, what went wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from .._types import SoftPromptError, announce
from .._version import __version__
from ..tuner import missing_file
from .places import first_line
from .task_card import TASK_FILE

CARD_FILE, RESULT_FILE, OPTIONS_FILE = "README.md", "result.json", "run.json"
GATES_FILE, SELECTION_FILE = "search/gates.jsonl", "search/selection.json"  # of a search of layers
FILES = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, TASK_FILE, CARD_FILE, RESULT_FILE)
RECORDS = (OPTIONS_FILE, "topology.jsonl.gz", GATES_FILE, SELECTION_FILE)  # of a run, beside its adapter
CLIENT: dict[str, Any] = {"library_name": "softprompt", "library_version": __version__}  # how requests name themselves


def adapter_folder(name: str | Path) -> Path:
    """The folder of an adapter: ``name`` itself, or the hub cache's copy of "owner/name" or "owner/name@revision".

    A path that is there wins, and so does one whose folder above is there. Only the files of a run are downloaded: JSON,
    Markdown and safetensors, and never a pickle. Without a network the copy in the cache is used.

    Args:
        name: a folder, or a name on the hub.

    Raises:
        SoftPromptError: the hub has no such adapter or cannot be reached, and the cache holds no copy.
    """
    text = name.as_posix() if isinstance(name, Path) else str(name)
    repo, _, revision = text.partition("@")
    if os.path.lexists(text) or not is_hub_name(repo) or os.path.isdir(repo.split("/")[0]):
        return Path(name)
    where = f"{text}: expected an adapter's folder, or the name of one on the hub; there is no such folder, and"
    with hub_errors(where):
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=[*FILES, *RECORDS], **CLIENT))
    if file := missing_file(folder):
        raise SoftPromptError(f"{where} the hub's {repo} has no {file} (pickled weights are never downloaded).")
    announce(f"adapter = {repo} on the hub", f"no folder has that name; its commit is {folder.name}")
    return folder


def is_hub_name(name: str) -> bool:
    """Whether a repository of the hub may have this name: owner/name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


@contextmanager
def hub_errors(where: str) -> Iterator[None]:
    """Turn what the hub's client raises, which is of many types, into one message that starts with ``where``."""
    try:
        yield
    except SoftPromptError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise SoftPromptError(f"{where} {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if is_offline_mode():
        return "HF_HUB_OFFLINE keeps the network off; unset it, or take what lies on this machine."
    if isinstance(error, GatedRepoError):
        return "the hub asks who wants to read it; ask for access on its page there."
    if isinstance(error, RevisionNotFoundError):
        return "the hub has no such revision of it."
    if status == 403:
        return "your token has no right to do this; take one that may write there (hf auth login, or HF_TOKEN)."
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has none, or none that your token may read (hf auth login, or HF_TOKEN)."
    if status == 401:
        return "the hub does not know your token; take another one (hf auth login, or HF_TOKEN)."
    if isinstance(error, HfHubHTTPError):
        return f"the hub refuses ({error.server_message or first_line(error)})."
    return f"the hub cannot be reached ({first_line(error)}); look at the network, or at HF_ENDPOINT."
