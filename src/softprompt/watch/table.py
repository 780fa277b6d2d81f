"""The watchers by the names that ``track`` gives them; a new watcher is a file beside this one and a line here."""

from __future__ import annotations

from .._types import SoftPromptError, check_choice
from ..models import Kind
from ._base import Watcher
from .accuracy import TrainAccuracyCallback
from .bounds import InformationCallback, without_prompt
from .shape import TopologyCallback
from .states import StatesCallback

WATCHERS: dict[str, type[Watcher]] = {
    "mi": InformationCallback,
    "topology": TopologyCallback,
    "accuracy": TrainAccuracyCallback,
    "states": StatesCallback,
}


def tracked(track: str) -> list[str]:
    """Split ``track`` into its names, which commas join, each once; "all" stands for every watcher, "none" for no watcher.

    Raises:
        SoftPromptError: there is no such watcher, or "all" or "none" stands beside others.
    """
    if track in (alone := {"none": [], "all": list(WATCHERS)}):
        return alone[track]
    names = list(dict.fromkeys(part.strip() for part in track.split(",")))
    for name in names:
        check_choice("track", name, (*WATCHERS, *alone) if len(names) == 1 else tuple(WATCHERS))
    return names


def watchers(track: str, kind: Kind, prompted: bool) -> list[type[Watcher]]:
    """Choose the watchers of a run; "all" leaves out those for which its rows have nothing.

    Args:
        track: see `tracked`.
        kind: the task's kind.
        prompted: whether there is a soft prompt.

    Raises:
        SoftPromptError: a watcher that is asked for has nothing to record.
    """
    chosen = []
    for watcher in (WATCHERS[name] for name in tracked(track)):
        if watcher.reads_prompt and not prompted:
            raise without_prompt()
        if watcher.wants(kind):
            chosen.append(watcher)
        elif track != "all":
            raise SoftPromptError(f"track={track!r}: {watcher.needs}, got a {kind.name} task; take it out.")
    return chosen
