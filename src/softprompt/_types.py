"""What every floor shares: the user's error, near-miss suggestions, and announcements of automatic choices."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterable
from contextvars import ContextVar, Token
from typing import Any

log = logging.getLogger("softprompt")
IGNORED = -100  # the label that losses of transformers leave out


class SoftPromptError(ValueError):
    """A mistake that the user can mend. The message says what was expected, what came, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class NonFiniteError(SoftPromptError):
    """The loss or a prompt stopped being a finite number."""


def did_you_mean(name: str, valid: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of ``valid``, or an empty string when none is as near as ``cutoff``."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_choice(what: str, value: object, valid: Iterable[object]) -> None:
    """Raise `SoftPromptError` unless ``value`` is one of ``valid``; the message suggests the nearest of them."""
    options = list(valid)
    if value not in options:
        names = [str(option) for option in options]
        raise SoftPromptError(
            f"unknown {what} {value!r}: expected one of {', '.join(names)}.{did_you_mean(str(value), names)}"
        )


def shown(value: Any) -> str:
    """Return a value as JSON writes it, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def announce(choice: str, reason: str) -> None:
    """Log an automatic choice with its reason, so that no default is silent; inside a `Tally` log it only once."""
    tally = _tally.get()
    if tally is None or tally.is_new(choice, reason):
        log.info("%s: %s", choice, reason)


class AnnounceOnce:
    """Announces automatic choices, each once for each reason, or once in all under the name ``once``."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, choice: str, reason: str, once: str | None = None) -> None:
        if (key := once or f"{choice}: {reason}") not in self._told:
            self._told.add(key)
            announce(choice, reason)


def announce_counts(choice: str, counts: tuple[int, ...], reason: str) -> None:
    """Announce ``choice`` with ``counts`` in place of its {}, unless the first is 0; a `Tally` sums counts first."""
    tally = _tally.get()
    if tally is not None:
        tally.add(choice, counts, reason)
    elif counts[0]:
        announce(choice.format(*counts), reason)


class Tally:
    """A context for work on rows chunk by chunk: it sums counts until `say`, and announces everything else once."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], tuple[int, ...]] = {}
        self._said: set[tuple[str, str]] = set()

    def __enter__(self) -> Tally:
        self._token: Token[Tally | None] = _tally.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _tally.reset(self._token)

    def is_new(self, choice: str, reason: str) -> bool:
        """Whether this is announced for the first time."""
        new = (choice, reason) not in self._said
        self._said.add((choice, reason))
        return new

    def add(self, choice: str, counts: tuple[int, ...], reason: str) -> None:
        """Add ``counts`` to the sums of ``choice``."""
        before = self._sums.get((choice, reason), (0,) * len(counts))
        self._sums[choice, reason] = tuple(a + b for a, b in zip(before, counts, strict=True))

    @property
    def counted(self) -> list[tuple[str, str]]:
        """The sums that are not 0: what was done, and why."""
        return [(choice.format(*counts), reason) for (choice, reason), counts in self._sums.items() if counts[0]]

    def say(self) -> None:
        """Announce the sums; call it outside of the context."""
        for (choice, reason), counts in self._sums.items():
            announce_counts(choice, counts, reason)


_tally: ContextVar[Tally | None] = ContextVar("tally", default=None)
