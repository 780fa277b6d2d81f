"""YAML as people type it: 1e-3 is a number, no, yes, on and off are words, and a key stands once."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..._types import SoftPromptError

_DROPPED = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}


class _Twice(Exception):
    """A key stands twice in a mapping, of which PyYAML would take the last in silence."""


class _Loader(yaml.SafeLoader):
    """Booleans and numbers by YAML 1.2; PyYAML reads 1.1, in which no is False, 1e-3 a word and 2026-01-02 a date."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # before << puts other mappings' keys in
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                first = lines[name]
                where = f"twice in line {line}" if first == line else f"in line {first} and again in line {line}"
                raise _Twice(f"the key {key.value!r} stands {where}")
            lines[name] = line
        return node

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.Inf|\.INF|\.nan|\.NaN|\.NAN)$"),
    list("-+0123456789."),
)


def from_yaml(text: str, where: str) -> Any:
    """The value that ``text`` stands for.

    Raises:
        SoftPromptError: it is not YAML, or a key stands twice in a mapping; the message begins with ``where``.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except _Twice as error:
        raise SoftPromptError(f"{where} ambiguous: {error}; keep one of them.") from error
    except (yaml.YAMLError, RecursionError, ValueError, AttributeError) as error:  # a tag that does not fit its text
        reason = " ".join(str(error).split())
        raise SoftPromptError(
            f"{where} not valid YAML ({reason}). A value that holds braces, colons or quotes goes into quotes: \"template='{{text}} It was {{mask}}.'\"."
        ) from error
