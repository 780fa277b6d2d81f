"""One run = one JSON document, written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def write_json(path: str | Path, document: dict[str, Any]) -> None:
    """Write ``document`` so that a reader, or a kill, never sees half of it."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` atomically: into a neighbour file first, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def environment() -> dict[str, Any]:
    """Versions and hardware, in the layout of PEFT's method comparison (``meta_info``)."""
    import torch

    packages = ("softprompt", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")
    versions: dict[str, str | None] = {}
    for name in packages:
        try:
            versions[f"{name}-version"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[f"{name}-version"] = None
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "N/A"
    return {
        "package_info": versions,
        "system_info": {
            "system": platform.system(),
            "machine": platform.machine(),
            "processor": platform.processor(),
            "python": platform.python_version(),
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": accelerator,
        },
    }
