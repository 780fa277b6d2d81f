"""Read JSON documents that somebody may have damaged or edited; a fault is one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ._types import SoftPromptError, shown


def read_object(path: Path, what: str, advice: str = "") -> dict[str, Any]:
    """Read the JSON object that the file ``path`` holds.

    Args:
        path: the file.
        what: the file's content in words, such as "task card".
        advice: what to do when it is damaged; the message ends with it.

    Raises:
        SoftPromptError: the file is missing, is not UTF-8 text or not JSON, or its JSON is no object.
    """
    end = f"; {advice}." if advice else "."
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SoftPromptError(f"{path}: not a {what}: cannot be read ({error.strerror}){end}") from error
    except UnicodeDecodeError as error:
        raise SoftPromptError(f"{path}: not a {what}: not UTF-8 text ({error}){end}") from error
    except ValueError as error:  # also a number of more digits than Python reads
        raise SoftPromptError(f"{path}: not a {what}: not valid JSON ({error}){end}") from error
    except RecursionError as error:
        raise SoftPromptError(f"{path}: not a {what}: its JSON is nested too deep{end}") from error
    if not isinstance(document, dict):
        raise SoftPromptError(f"{path}: not a {what}: expected a JSON object {{...}}, got {shown(document)}{end}")
    return document
