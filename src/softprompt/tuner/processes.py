"""Several processes: who writes, and parameters of which each process holds a part (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor, distributed, nn

from .register import NAME


def is_first_process() -> bool:
    """Whether this process writes files: the first of all, or the only one."""
    return not _are_several() or distributed.get_rank() == 0


@contextmanager
def first_of_machine() -> Iterator[None]:
    """Inside, the first process of each machine goes before the others of its machine."""
    if not _are_several():
        yield
        return
    with PartialState().local_main_process_first():
        yield


def is_sharded(*modules: nn.Module) -> bool:
    """Whether FSDP2 gathers and frees the parameters of one of the modules, or of a part of it, by themselves."""
    if not _are_several():
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(part, FSDPModule) for module in modules for part in module.modules())


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, whole; every process must call it with the same names."""
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in tensors.items()}


@torch.no_grad()
def distribute_into(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a module of which each process may hold a part; every process must call it."""
    held = module.state_dict()
    if not any(hasattr(value, "full_tensor") for value in held.values()):
        module.load_state_dict(dict(values))
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    for name, value in held.items():
        whole = values[name].to(value)
        value.copy_(
            distribute_tensor(whole, value.device_mesh, value.placements) if isinstance(value, DTensor) else whole
        )


def whole_adapter(model: PeftModel) -> dict[str, Tensor] | None:
    """What ``save_pretrained`` needs as ``state_dict`` where each process holds a part of every parameter; else None.

    The adapter's parameters are gathered, the frozen backbone's are left out. Every process must call it.
    """
    tensors = model.state_dict()
    if not any(hasattr(value, "full_tensor") for value in tensors.values()):
        return None
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return gathered(
        {
            name: value
            for name, value in tensors.items()
            if name in trained or f".{NAME}_prompts." in name or not hasattr(value, "full_tensor")
        }
    )


def save_adapter(model: PeftModel, folder: str | Path) -> None:
    """Write the adapter as ``model.save_pretrained`` does, from any number of processes: all must call it, the first writes."""
    model.save_pretrained(str(folder), is_main_process=is_first_process(), state_dict=whole_adapter(model))


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
