"""The backbone's precision where the user names none: bfloat16 where the hardware is fast at it."""

from __future__ import annotations

import torch

AUTO = "auto"


def automatic_dtype(use_cpu: bool = False) -> tuple[str, str]:
    """The name of the dtype that suits this machine, with its reason.

    bfloat16 on a CUDA device that has it in hardware, and on a CPU with AMX-BF16 or AVX512-BF16; else float32.

    Args:
        use_cpu: whether training stays on the CPU although there is a GPU.
    """
    if torch.cuda.is_available() and not use_cpu:
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", f"{name} computes in it"
        return "float32", f"{name} has no bfloat16 of its own"
    features = [shown for shown, key in (("AMX-BF16", "amx_bf16"), ("AVX512-BF16", "avx512_bf16")) if _cpu_has(key)]
    if features:
        return "bfloat16", f"this CPU has {' and '.join(features)}"
    return "float32", "this CPU has neither AMX-BF16 nor AVX512-BF16"


def _cpu_has(feature: str) -> bool:
    """Newer releases of torch have one public probe for all features; older ones a private one for each."""
    if (capabilities := getattr(torch.cpu, "get_capabilities", None)) is not None:
        return bool(capabilities().get(feature))
    older = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    probe = getattr(torch.cpu, older[feature], None)
    return probe is not None and bool(probe())
