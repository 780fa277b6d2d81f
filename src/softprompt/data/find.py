"""Find a source (a folder, a file, the embedded data or a hub dataset) and read the rows of its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from .._types import SoftPromptError, check_choice, did_you_mean
from .doubts import Say
from .read import FORMATS, Rows, data_files, names_beside, read_object, read_rows, shown

EMBEDDED_DATA = "messages"
SPLIT_STEMS = {"train": ("train",), "dev": ("validation", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Files:
    """The files that a caller chose for the splits; for a hub dataset, the names of its splits.

    Raises:
        SoftPromptError: a value is no name.
    """

    train: str | None
    dev: str | None
    test: str | None

    def __post_init__(self) -> None:
        for split, name in vars(self).items():
            if name is not None and (not isinstance(name, str | Path) or not str(name)):
                raise SoftPromptError(f"{split}_file: expected the name of a file, got {shown(name)}.")


@dataclass(frozen=True)
class Source:
    """The rows and the names that a source holds, before its columns are read.

    Attributes:
        name: name of the task.
        path: the folder or file; None for a hub dataset.
        train: rows of the train split.
        dev: rows of the validation split, or None.
        test: rows of the test split, or None.
        info: the content of info.json.
        class_names: the class names of each hub column that carries them.
    """

    name: str
    path: Path | None
    train: Rows
    dev: Rows | None
    test: Rows | None
    info: dict[str, Any]
    class_names: dict[str, list[str]]

    @property
    def folder(self) -> Path | None:
        """The folder that the files lie in; None for a hub dataset."""
        return self.path if self.path is None or self.path.is_dir() else self.path.parent

    def each(self, change: Callable[[Rows], Rows]) -> Source:
        """Return the same source with the rows of every split changed."""
        dev, test = (None if rows is None else change(rows) for rows in (self.dev, self.test))
        return replace(self, train=change(self.train), dev=dev, test=test)


def find_source(source: str | Path, chosen: Files, hub_config: str | None, say: Say) -> Source:
    """Find and read the splits of a folder, a file, the embedded data or a hub dataset.

    Args:
        source: as for `load_task`.
        chosen: the files that the caller names.
        hub_config: configuration of a hub dataset.
        say: is told each automatic choice and its reason.

    Raises:
        SoftPromptError: the source does not exist, or a file cannot be read.
    """
    path = Path(os.path.expanduser(source))
    if str(source) == EMBEDDED_DATA:
        if path.exists():
            say(
                f"source = the embedded {EMBEDDED_DATA}",
                f"the word means them; write ./{EMBEDDED_DATA} for the folder of that name",
            )
        path = Path(__file__).parent / EMBEDDED_DATA
    elif not os.path.exists(path):  # unlike Path.exists it takes names that are too long for any path
        return _on_hub(str(source), chosen, hub_config, say)
    if hub_config is not None:
        raise SoftPromptError(f"hub_config is for hub datasets, but the source {str(source)!r} is a path.")
    folder = path if path.is_dir() else path.parent
    files = {split: folder / name if name else None for split, name in vars(chosen).items()}
    if path.is_dir():
        for split in files:
            files[split] = files[split] or _split_file(folder, split)
    elif files["train"] is not None:
        raise SoftPromptError(f"train_file is for folders, but the source {str(source)!r} is itself the train file.")
    else:
        files["train"] = path
    if files["train"] is None:
        there = ", ".join(data_files(folder)) or "none"
        raise SoftPromptError(
            f"{folder}: no train file; expected train with one of {', '.join(FORMATS)}. Data files there: {there}. "
            "Set train_file, or give the path of one file."
        )
    rows = {split: read_rows(file) for split, file in files.items() if file is not None}
    info = _info(folder / "info.json") if path.is_dir() else {}
    name = info.get("name") or path.absolute().stem
    return Source(name, path, rows["train"], rows.get("dev"), rows.get("test"), info, {})


def _split_file(folder: Path, split: str) -> Path | None:
    names = [stem + suffix for stem in SPLIT_STEMS[split] for suffix in FORMATS]
    there = [name for name in names if os.path.lexists(folder / name)]  # also a dead link, which reading refuses
    if len(there) > 1:
        raise SoftPromptError(
            f"{folder}: {', '.join(there)} could each be the {split} split; choose one with {split}_file."
        )
    return folder / there[0] if there else None


def _info(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        return {}
    info = read_object(path)
    if info.get("name") is not None and not isinstance(info["name"], str):
        raise SoftPromptError(f"{path}: expected a text as name, got {shown(info['name'])}.")
    return info


def _on_hub(source: str, chosen: Files, hub_config: str | None, say: Say) -> Source:
    loaded = _load_from_hub(source, hub_config)
    say(f"source = hub dataset {source}", "no path has that name")
    rows: dict[str, Rows] = {}
    for split, wanted in vars(chosen).items():
        if wanted is not None:
            check_choice(f"{split}_file (split of hub dataset {source})", wanted, list(loaded))
        name = wanted or next((stem for stem in SPLIT_STEMS[split] if stem in loaded), None)
        if name is not None:
            table = loaded[name].to_list()
            if not table:
                raise SoftPromptError(f"hub dataset {source}: the split {name!r} has no rows.")
            rows[split] = Rows(f"{source}[{name}]", table, list(range(1, len(table) + 1)), "row")
    if "train" not in rows:
        raise SoftPromptError(
            f"hub dataset {source}: no split 'train'; splits there: {', '.join(loaded)}. Set train_file to one."
        )
    names = _class_names(next(iter(loaded.values())).features)
    return Source(source.split("/")[-1], None, rows["train"], rows.get("dev"), rows.get("test"), {}, names)


def _load_from_hub(source: str, hub_config: str | None) -> datasets.DatasetDict:
    path = Path(source)
    looks_like_path = (
        source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or path.suffix.lower() in FORMATS
        or ("/" in source and os.path.isdir(path.parent))  # the hub would answer late, or with a stranger's data
    )
    expected = f"data source {source!r}: expected an existing path or a reachable hub dataset, got "
    if looks_like_path:
        near = did_you_mean(path.name, names_beside(Path(os.path.expanduser(path))))
        raise SoftPromptError(f"{expected}a path that does not exist.{near}")
    try:
        return datasets.load_dataset(source, hub_config)
    except Exception as error:  # the hub client raises many types
        reason = str(error).strip().split("\n")[0][:300].rstrip(".") or type(error).__name__
        near = did_you_mean(source, [EMBEDDED_DATA, *names_beside(path)])
        raise SoftPromptError(f"{expected}no such path here, and from the hub: {reason}.{near}") from error


def _class_names(features: datasets.Features) -> dict[str, list[str]]:
    single = {name: getattr(feature, "feature", feature) for name, feature in features.items()}  # of a list: its items
    return {name: feature.names for name, feature in single.items() if isinstance(feature, datasets.ClassLabel)}
