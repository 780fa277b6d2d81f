"""What an operator decides, and which of the operator's folders may be served."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..engine.shelf import NAME
from .errors import UnknownFolderError


@dataclass
class Service:
    """What an operator decides.

    Attributes:
        token: that every client sends; None lets in whoever reaches the server.
        admin_token: that adds and removes prompts; None lets nobody.
        prompts_dir: the folder whose folders may be served.
        body_bytes: of one request.
        rows: of one request.
        drain_s: seconds for what is in flight when the server stops.
    """

    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    prompts_dir: Path | None = None
    body_bytes: int = 1 << 20
    rows: int = 128
    drain_s: float = 30.0


def adapters_in(root: Path) -> list[Path]:
    """The adapters' folders directly in a folder; no link leads out of it."""
    inside = (path for path in sorted(root.iterdir()) if (path / "adapter_config.json").is_file())
    return [path for path in inside if path.resolve().parent == root.resolve()]


def folder_called(service: Service, name: str) -> Path:
    """A folder of the operator's by its name: never a path."""
    root = service.prompts_dir
    assert root is not None
    known = [path.name for path in adapters_in(root) if NAME.fullmatch(path.name)]
    if name not in known:
        raise UnknownFolderError(
            f"folder {name!r:.80}: expected the name of an adapter's folder of the operator's: {', '.join(known) or 'there is none'}."
        )
    return root / name
