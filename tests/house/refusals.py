"""What an error said, and contents that no reader takes."""

from __future__ import annotations


def said(error):
    return str(error.value)


BYTES = {
    "empty": (b"", "not valid JSON (Expecting value"),
    "list": (b"[1]", "expected a JSON object {...}, got [1]"),
    "null": (b"null", "expected a JSON object {...}, got null"),
    "bom": (b"\xef\xbb\xbf{}", "not valid JSON (Unexpected UTF-8 BOM"),
    "deep": (b"[" * 30_000, "its JSON is nested too deep"),
    "latin": (b'{"a": "\xff"}', "not UTF-8 text"),
    "cut": (b'{"peft_type": "SOFT', "not valid JSON (Unterminated string"),
}
