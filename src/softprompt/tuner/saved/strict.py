"""What an adapter's folder must hold: a config that says what it is, and every tensor of that adapter, nothing else."""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..._documents import read_object
from ..._types import SoftPromptError, check_choice, shown
from ...typed import check_fields
from ..config import SoftPromptConfig
from ..register import NAME

PREFIX = "base_model.model."  # of saved names; a model without PEFT's wrapper has its names without
PROMPTS = f"{NAME}.{NAME}_prompts."  # what a prompt's own names follow
SHOWN = 4  # names in a message


def missing_file(folder: Path) -> str | None:
    """The file for want of which a folder is none of an adapter."""
    return next((name for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME) if not (folder / name).is_file()), None)


def check_folder(folder: Path) -> None:
    """Raise `SoftPromptError` unless a folder is that of an adapter; the message names those one folder below."""
    if name := missing_file(folder):
        below = [str(one.parent) for one in folder.glob(f"*/{CONFIG_NAME}")]
        instead = f" Adapters lie in {_names(below)}; name one of them." if below else ""
        raise SoftPromptError(f"{folder}: expected an adapter's folder with {name}; there is no such file.{instead}")


def read_adapter_config(folder: str | Path) -> PeftConfig:
    """Read an adapter's config, of any PEFT method.

    Raises:
        SoftPromptError: ``adapter_config.json`` is missing or damaged, or a field holds what it cannot hold.
    """
    path = Path(folder) / CONFIG_NAME
    document = read_object(path, "PEFT config")
    if "peft_type" not in document:
        raise SoftPromptError(f"{path}: peft_type: expected the name of a PEFT method, got no such field.")
    methods = [kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
    if not isinstance(document["peft_type"], str):
        raise SoftPromptError(
            f"{path}: peft_type: expected the name of a PEFT method, got {shown(document['peft_type'])}."
        )
    check_choice(f"peft_type in {path}", document["peft_type"], methods)
    kind = next(cls for name, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name.value == document["peft_type"])
    hints = typing.get_type_hints(kind)
    if kind is not SoftPromptConfig:  # PEFT says int where it takes any number
        hints = {name: float if hint is int else hint for name, hint in hints.items()}
        hints |= {
            f.name: hints[f.name] | None for f in dataclasses.fields(kind) if f.default is None and f.name in hints
        }
    check_fields(path, document, hints)
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise SoftPromptError(f"{path}: not a PEFT config: {error}") from error


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter; raises `SoftPromptError` for a file that is missing or no safetensors file."""
    path = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise SoftPromptError(f"{path}: cannot be read ({error}); copy or save the adapter again.") from error


def describe(config: PeftConfig) -> str:
    """The kind of adapter in words."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if isinstance(config, SoftPromptConfig):
        return f"{kind} adapter (prompt={config.prompt!r}, placement={config.placement!r})"
    return f"{kind} adapter"


def check_tensors(
    where: str | Path,
    config: PeftConfig,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    optional: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Check that an adapter's tensors are those that its config asks for, and finite.

    Args:
        where: the file, or the adapter, in the message.
        config: of the adapter.
        tensors: those that came.
        expected: tensors of the right names, shapes and kinds; their values are not read.
        optional: tensors that may come, too.

    Raises:
        SoftPromptError: tensors are missing, unexpected, of another shape, not of floating point, or not finite in float32.
    """
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys() - optional.keys()
    if missing or unexpected:
        raise _other(where, config, missing, unexpected)
    end = f"expected those of a {describe(config)}; copy or train it again."
    for name, wanted in {**optional, **expected}.items():
        if (value := tensors.get(name)) is None:
            continue
        if value.shape != wanted.shape:
            raise SoftPromptError(
                f"{where}: {name}: the adapter does not fit this config, backbone and head: expected shape {list(wanted.shape)}, got {list(value.shape)}; {end}"
            )
        if value.is_floating_point() != wanted.is_floating_point():
            raise SoftPromptError(f"{where}: {name}: expected a tensor of {wanted.dtype}, got {value.dtype}; {end}")
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise SoftPromptError(
                f"{where}: {name} holds values that are not finite; take an earlier checkpoint, or train with a lower learning_rate."
            )


def saved_tensors(model: nn.Module, adapter_name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors that PEFT saves for an adapter of ``model``, by saved name; and embeddings, which it may save, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a model has no embeddings to save
        needed, most = (
            get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=embeddings)
            for embeddings in (False, True)
        )
    return needed, {key: value for key, value in most.items() if key not in needed}


def check_file(config: SoftPromptConfig, model: nn.Module, prompt: nn.Module) -> None:
    """Check the weights file beside a config before its adapter is attached: PEFT takes the config back where this fails, and
    leaves an adapter without values where `check_loading` does.

    Args:
        config: one that `SoftPromptConfig.from_pretrained` has read from a folder; others have no file.
        model: the backbone and head that it goes on.
        prompt: the prompt that will get its values.

    Raises:
        SoftPromptError: the file cannot be read, or as `check_tensors` for the prompt and the heads. The shapes of heads are left
            to PEFT.
    """
    if config.folder is None or not config.initialized or not (config.folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        return
    path = config.folder / SAFETENSORS_WEIGHTS_NAME
    named = _bare(read_weights(config.folder))
    heads = {
        f"{place}.{name}": value
        for place, module in model.named_modules(remove_duplicate=False)  # PEFT saves a tied module under each name
        if any(place.endswith(head) for head in config.modules_to_save or [])
        for name, value in getattr(module, "original_module", module).state_dict().items()
    }
    expected = {f"{PROMPTS}{key}": value for key, value in prompt.state_dict().items()} | _of_any_shape(heads, named)
    came = {key: value for key, value in named.items() if key in heads or key.startswith(PROMPTS)}
    check_tensors(path, config, came, expected)


def check_loading(model: nn.Module, config: PeftConfig, adapter_name: str, tensors: Mapping[str, Tensor]) -> None:
    """Check what PEFT is about to load as adapter ``adapter_name``; heads are under the names that they have in the model.

    Raises:
        SoftPromptError: as `check_tensors`. The shapes of heads are left to PEFT, which has an option for them; see
            `whole_or_nothing`.
    """
    expected, optional = saved_tensors(model, adapter_name)
    heads = {
        f"{place}.{inside}": f"{place}.{saved}"
        for place, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        for saved, inside in module.adapter_state_dict_load_map(adapter_name).items()
    }
    named = {heads.get(key, key): value for key, value in tensors.items()}
    shaped = _of_any_shape({key: expected[key] for key in heads.values() if key in expected}, named)
    check_tensors(f"adapter {adapter_name!r}", config, _bare(named), _bare(expected | shaped), _bare(optional))


def whole_or_nothing(prompts: nn.Module, tensors: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Keep the prompt of an adapter as it is where its head did not fit: PEFT loads what fits before it raises, and the adapter
    would answer with a head that no file has brought. A prompt without values refuses its first pass."""
    if rest[-1]:  # errors of the parts before this one, which is the last of a model
        tensors.update(prompts.state_dict(prefix=prefix))


def _of_any_shape(expected: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.new_empty(saved[name].shape, device="meta") if name in saved else value
        for name, value in expected.items()
    }


def _bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(PREFIX): value for key, value in tensors.items()}


def _other(
    where: str | Path, config: PeftConfig, missing: Collection[str], unexpected: Collection[str]
) -> SoftPromptError:
    return SoftPromptError(
        f"{where}: missing tensors: {_names(missing)}, unexpected tensors: {_names(unexpected)}; expected those of a {describe(config)}; copy or train it again."
    )


def _names(keys: Collection[str]) -> str:
    names = sorted(keys)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more
