"""Words shared by every floor: the user's error, near-miss suggestions, and the voice of automatic choices."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable

log = logging.getLogger("softprompt")
IGNORED = -100  # the label that losses of transformers leave out


class SoftPromptError(ValueError):
    """A mistake that the user can mend. The message says what was expected, what came, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class NonFiniteError(SoftPromptError):
    """The loss or a prompt stopped being a finite number."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of ``valid``, or an empty string when nothing is near."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_choice(what: str, value: object, valid: Iterable[object]) -> None:
    """Raise `SoftPromptError` unless ``value`` is one of ``valid``, naming the nearest valid one."""
    options = list(valid)
    if value not in options:
        names = [str(option) for option in options]
        raise SoftPromptError(
            f"unknown {what} {value!r}: expected one of {', '.join(names)}.{did_you_mean(str(value), names)}"
        )


def announce(choice: str, reason: str) -> None:
    """Log an automatic choice together with its reason, so that no default is silent."""
    log.info("%s: %s", choice, reason)
