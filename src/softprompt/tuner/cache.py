"""The cache of keys and values: how a model calls it in its arguments, and where it is in an output.

transformers 5.24 renamed the argument ``past_key_values`` of its models to ``cache``, and for a while takes both. Models from
elsewhere keep the old name, so a forward's own arguments decide, not the version.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from transformers import Cache

OLD_NAME = "past_key_values"
NAMES = (OLD_NAME, "cache")


def cache_name(arguments: Collection[str]) -> str | None:
    """Which of a forward's arguments takes a cache; None for none."""
    return next((name for name in NAMES if name in arguments), None)


def with_own_name(arguments: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """A call of a forward with these arguments, in which a cache under the old name has the forward's own one.

    Given under both, the one under the forward's own name stays, as transformers has it.
    """
    own, call = cache_name(arguments), dict(given)
    if own is not None and OLD_NAME in call:
        cache = call.pop(OLD_NAME)
        call.setdefault(own, cache)
    return call


def cache_of(output: Mapping[str, Any]) -> Any:
    """The cache in what a model puts out; None where there is none."""
    return next((value for value in output.values() if isinstance(value, Cache)), None)
