"""Around a run: versions and hardware, and how much its libraries say."""

from __future__ import annotations

import logging
import os
import platform
import warnings
from importlib import metadata
from typing import Any


def quiet_libraries() -> None:
    """Show no progress bars, and only errors of the libraries below."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("bitsandbytes", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="(transformers|peft|torch|accelerate|datasets|bitsandbytes).*")


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
