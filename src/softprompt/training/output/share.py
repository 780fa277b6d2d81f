"""A run on its way to the Hugging Face hub: what is uploaded, and nothing of this machine with it."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import HfApi, get_token, is_offline_mode
from yaml import YAMLError

from ..._documents import read_object
from ..._files import write_json, write_text
from ..._types import SoftPromptError, announce
from ...models import TASK_FILE, TaskCard
from ...models.embedded import PACKAGES
from ...models.hub import CARD_FILE, CLIENT, FILES, RECORDS, RESULT_FILE, hub_errors, is_hub_name
from ...models.places import first_line
from ...tuner import missing_file, read_adapter_config, read_weights
from .model_card import hub_name, is_local, readdressed

PATH = re.compile(r"(?:(?<=file://)|(?<![\w./:~\\-]))(?:/[^\s/\"'`<>()|,;:]+)+|\b[A-Za-z]:\\\w[^\s\"'`<>|,;]*")
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def push_run(
    folder: str | Path,
    name: str,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    records: bool = False,
    backbone: str | None = None,
) -> dict[str, Any]:
    """Upload the adapter of a run to the hub: weights, config, ``task.json``, model card and ``result.json``.

    The token is that of huggingface_hub: ``HF_TOKEN``, or what ``hf auth login`` has saved. What is uploaded is a copy in which
    paths of this machine are cut down to their last names; checkpoints stay here.

    Args:
        folder: as ``softprompt train`` writes it.
        name: "owner/name"; the repository is made where there is none.
        private: only the owner may read it; a public repository of that name is refused.
        revision: a branch, made where there is none; None is the main one.
        message: of the commit.
        records: also what the run recorded: its settings, the prompt's shape over training, the search of layers.
        backbone: name on the hub of the backbone; needed where the run was given a folder.

    Returns:
        "repo", "revision", "commit", "url" and "files".

    Raises:
        SoftPromptError: no such run, or its files have changed since they were written; its backbone is a folder; a bad name;
            no token, no right, no network.
    """
    folder = Path(folder)
    if not is_hub_name(name):
        raise SoftPromptError(
            f"{name}: expected a name on the hub, owner/name, of letters, digits, '-', '_' and '.', 96 at most."
        )
    card = _checked(folder)
    known = _known_backbone(folder, card, backbone)
    with tempfile.TemporaryDirectory() as staged:
        copy = Path(staged)
        files = _stage(folder, copy, name, card, known, records)
        if is_offline_mode():
            raise SoftPromptError(f"{name}: HF_HUB_OFFLINE keeps the network off; unset it to push.")
        if get_token() is None:
            raise SoftPromptError(
                f"{name}: expected a token of the hub, got none; set HF_TOKEN, or run: hf auth login."
            )
        with hub_errors(f"{name}: it was not pushed:"):
            return {"repo": name, **_upload(copy, name, private, revision, message), "files": files}


def _checked(folder: Path) -> TaskCard:
    """The card of a run whose files are what training wrote."""
    card = TaskCard.read(folder)
    if name := missing_file(folder):
        raise SoftPromptError(f"{folder}: expected the folder of a finished run; it has no {name}.")
    read_adapter_config(folder)
    read_weights(folder)
    card.check_seal(folder)
    for file in (CARD_FILE, RESULT_FILE):
        if not (folder / file).is_file():
            announce(f"{file} is not pushed", f"{folder} has none")
    return card


def _known_backbone(folder: Path, card: TaskCard, given: str | None) -> str:
    """The name under which others find the backbone."""
    if given is not None:
        if given not in PACKAGES and (is_local(given) or not is_hub_name(given if "/" in given else f"any/{given}")):
            raise SoftPromptError(f"--backbone {given}: expected a name on the hub, got a path or no name.")
        return given
    if card.backbone not in PACKAGES and (card.backbone_folder is not None or is_local(card.backbone)):
        raise SoftPromptError(
            f"{folder}: its backbone is a folder of this machine, {card.backbone!r}, which nobody else has; name the same weights on the hub with --backbone owner/name (push them first, if they are your own)."
        )
    return card.backbone


# what is uploaded ----------------------------------------------------------------------------------------------------


def _stage(folder: Path, copy: Path, name: str, card: TaskCard, backbone: str, records: bool) -> list[str]:
    """Write into ``copy`` what is uploaded, and check that nothing of this machine is in it; returns the files' names."""
    there = [file for file in (*FILES, *(RECORDS if records else ())) if (folder / file).is_file()]
    cut = 0
    for file in there:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        if file == TASK_FILE:
            continue
        if file == CARD_FILE:
            write_text(copy / file, _card(folder / file, name, card, backbone))
        elif file.endswith(".json"):
            document = _told(read_object(folder / file, "document of a run"), card.backbone, backbone)
            document, paths = without_paths(document)
            cut += paths
            write_json(copy / file, document)
        else:
            shutil.copyfile(folder / file, copy / file)
    replace(card, backbone=backbone, backbone_folder=None).write(copy)  # last: it seals the files as they are now
    if cut:
        announce(
            "paths of this machine are pushed as their last names alone", f"{cut} in all; others have no use for them"
        )
    for file in there:
        _check_nothing_told(folder / file, copy / file)
    return there


def _card(path: Path, name: str, card: TaskCard, backbone: str) -> str:
    try:
        return readdressed(path.read_text(encoding="utf-8"), name, card.backbone, backbone)
    except (OSError, ValueError, YAMLError) as error:
        raise SoftPromptError(
            f"{path}: expected a model card, it cannot be read ({first_line(error)}); mend it."
        ) from error


def _told(value: Any, before: str, backbone: str, key: str = "") -> Any:
    """A document of a run with the backbone's known name, and without tokens."""
    if isinstance(value, dict):
        return {name: _told(entry, before, backbone, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_told(entry, before, backbone) for entry in value]
    if key == "base_model_name_or_path":  # the place of the weights on this machine, even where they are embedded
        return hub_name(backbone) or backbone
    if key == "backbone" and value == before:
        return backbone
    return None if key.endswith("hub_token") else value


def without_paths(document: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Cut each absolute path in the texts of a JSON document down to its last name; also returns their number.

    A path inside a longer text counts where it is one of the document's own values, or leads into a folder of this machine.
    """
    whole = {text for text in _texts(document) if _is_absolute(text)}
    deep = [path for path in whole if len(re.findall(r"[\\/]\w", path)) > 1]  # "/s" stands inside other texts, too
    cut = 0

    def shorter(text: str) -> str:
        nonlocal cut
        if text in whole:
            cut += 1
            return _last(text)
        for path in sorted(deep, key=len, reverse=True):
            cut += text.count(path)
            text = text.replace(path, _last(path))
        for found in _paths_in(text):
            cut += 1
            text = text.replace(found, _last(found))
        return text

    def of(value: Any) -> Any:
        if isinstance(value, str):
            return shorter(value)
        if isinstance(value, dict):
            return {shorter(key): of(entry) for key, entry in value.items()}
        return [of(entry) for entry in value] if isinstance(value, list) else value

    return of(document), cut


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from _texts(part)


def _is_absolute(text: str) -> bool:
    one_line = "\n" not in text and _last(text) != ""  # "/" and "C:\\" tell nothing
    return one_line and (PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute())


def _last(path: str) -> str:
    if "\\" not in path:
        return PurePosixPath(path).name
    whole = PureWindowsPath(path)
    server = whole.drive.startswith("\\\\")  # \\server\share
    return whole.name or (whole.drive.rpartition("\\")[2] if server else "")


def _paths_in(text: str) -> list[str]:
    """Absolute paths in a text that lead into a folder that this machine has, the longest first."""
    found = {match.group() for match in PATH.finditer(text)}
    there = [path for path in found if path[0] != "/" or os.path.isdir("/" + path.split("/")[1])]
    return sorted(there, key=len, reverse=True)


def _check_nothing_told(source: Path, path: Path) -> None:
    """Raise `SoftPromptError` where a file that is to be uploaded names a path of this machine or holds a token."""
    for text in _shown(source, path):
        if SECRET.search(text):
            raise SoftPromptError(f"{source}: it holds a token of the hub; take it out before you push.")
        if paths := _paths_in(text):
            raise SoftPromptError(
                f"{source}: it names a path of this machine, {paths[0]}; take it out before you push."
            )


def _shown(source: Path, path: Path) -> Iterator[str]:
    """The texts of a file: those of a JSON document, else its lines; weights have none."""
    if path.suffix == ".safetensors":
        return
    if path.suffix == ".json":
        yield from _texts(read_object(path, "document of a run"))
        return
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SoftPromptError(
            f"{source}: it cannot be read as text ({first_line(error)}); move it away to push."
        ) from error


# the hub -------------------------------------------------------------------------------------------------------------


def _upload(copy: Path, name: str, private: bool, revision: str | None, message: str | None) -> dict[str, Any]:
    hub = HfApi(**CLIENT)
    url = hub.create_repo(name, private=private or None, exist_ok=True)
    if private and not hub.repo_info(name).private:
        raise SoftPromptError(
            f"{name}: --private: the hub has a public repository of that name; make it private on its page there, or take another name."
        )
    if revision is not None:
        hub.create_branch(name, branch=revision, exist_ok=True)
    commit = hub.upload_folder(
        repo_id=name,
        folder_path=copy,
        revision=revision,
        commit_message=message or "Upload a prompt with softprompt",
        delete_patterns=list(RECORDS),  # of an earlier push; those of this one replace them
    )
    return {"revision": revision or "main", "commit": commit.oid, "url": str(url)}
