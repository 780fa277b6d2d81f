"""From names to objects: tokenizer, backbone, head; and back again from a saved run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .._types import SoftPromptError
from ..tuner import check_folder, check_tensors, read_adapter_config, read_weights, saved_tensors
from .classifier import VALUE
from .heads import HEADS
from .hub import adapter_folder
from .kinds import KINDS
from .places import backbone_path, first_line, is_folder, load_tokenizer, read_config
from .task_card import TASK_FILE, TaskCard


def build_model(
    card: TaskCard,
    tokenizer: PreTrainedTokenizerBase,
    pooling: str = "auto",
    weights: bool = True,
    attention: str | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """Load the frozen backbone and put the card's head on it; without ``weights`` only its architecture, on no device.

    ``attention`` is transformers' ``attn_implementation``; None leaves it the choice.

    Returns:
        The model, and the names of modules of a stock head that the checkpoint did not hold: they are random, so they
        must be trained and saved with the adapter.

    Raises:
        SoftPromptError: the backbone's weights cannot be read, or its architecture has no such head, or label words are to be read off a
            head that the checkpoint does not hold.
    """
    path, config = backbone_path(card.backbone), read_config(card.backbone)
    if not card.backbone_dropout:
        _switch_dropout_off(config.get_text_config())
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
    chosen = {} if attention is None else {"attn_implementation": attention}
    options: dict[str, Any] = {"dtype": getattr(torch, card.dtype), "config": config, **chosen}
    head, loader = HEADS[card.head], KINDS[card.kind].loader(card, bool(config.is_encoder_decoder))
    if head.names_classes:
        names = card.label_names or [VALUE]
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        if (problem := KINDS[card.kind].problem_type) is not None:
            config.problem_type = problem
    try:
        if weights:
            model, report = loader.from_pretrained(path, **options, output_loading_info=True)
        else:
            report = {"missing_keys": []}
            if card.verbalizer is not None and is_folder(path):  # a file says what it holds without its being read
                _, report = loader.from_pretrained(path, **options, device_map="meta", output_loading_info=True)
            with torch.device("meta"):
                model = loader.from_config(config, **chosen)
    except (ImportError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise SoftPromptError(
            f"backbone {card.backbone!r} cannot be loaded as {loader.__name__}: {first_line(error)}"
        ) from error
    if card.verbalizer is not None and report["missing_keys"]:
        raise SoftPromptError(
            f"backbone {card.backbone!r} holds no weights of a language model's head ({sorted(report['missing_keys'])[0]} is missing), so its words would be drawn by chance: expected a language model; use one, or head=pooled."
        )
    whole = head.put(model, card, tokenizer, pooling)
    random = {key.rpartition(".")[0] for key in report["missing_keys"]} if whole is model else set()
    return whole, sorted(random)


def _switch_dropout_off(config: Any) -> None:
    """Families call it hidden_dropout_prob, attention_dropout, resid_pdrop, dropout_rate...; all are probabilities."""
    for name, value in list(vars(config).items()):
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(config, name, 0.0)


def load(
    folder: str | Path, backbone: str | None = None, is_trainable: bool = False, adapter_name: str = "default"
) -> PeftModel:
    """Load a trained adapter on its backbone, with the head it was trained with.

    Args:
        folder: an adapter's folder, from ``softprompt train`` (with ``task.json``) or from ``save_pretrained``; or its name on
            the hub, "owner/name" or "owner/name@revision".
        backbone: another place where the same backbone lies.
        is_trainable: continue training.
        adapter_name: what the model calls it.

    Raises:
        SoftPromptError: no adapter in the folder, or it does not fit the backbone.
    """
    folder = adapter_folder(folder)
    check_folder(folder)
    config = read_adapter_config(folder)
    if not (folder / TASK_FILE).is_file():
        return _attach(_bare_model(folder, config, backbone), folder, config, is_trainable, adapter_name)
    card = TaskCard.read(folder)
    card = replace(card, backbone=backbone or card.place(folder))
    base, _ = build_model(card, load_tokenizer(card.backbone))
    model = _attach(base, folder, config, is_trainable, adapter_name)
    card.check_seal(folder)  # last: what is wrong with a file says more than that it changed
    return model


def load_beside(model: PeftModel, folder: str | Path, adapter_name: str) -> None:
    """Load a further adapter on the backbone of ``model``, for use; the one that is active stays so.

    Raises:
        SoftPromptError: no adapter in the folder, or it does not fit the backbone; the model is as it was.
    """
    folder, active = adapter_folder(folder), model.active_adapter
    check_folder(folder)
    config = read_adapter_config(folder)
    config.inference_mode = True
    weights = read_weights(folder)
    try:
        with _attaching(folder, config):
            model.add_adapter(adapter_name, config)
            check_tensors(folder / SAFETENSORS_WEIGHTS_NAME, config, weights, *saved_tensors(model, adapter_name))
            model.load_adapter(str(folder), adapter_name, is_trainable=False)
        if (folder / TASK_FILE).is_file():
            TaskCard.read(folder).check_seal(folder)
    except BaseException:
        if adapter_name in model.peft_config:
            model.delete_adapter(adapter_name)
        raise
    finally:
        model.set_adapter(active)
    model.eval()


def _attach(base: nn.Module, folder: Path, config: PeftConfig, is_trainable: bool, adapter_name: str) -> PeftModel:
    """As `PeftModel.from_pretrained`, but the weights are checked before they are loaded: PEFT only warns of missing ones."""
    if config.is_prompt_learning and is_trainable:
        raise SoftPromptError(f"{folder}: PEFT cannot continue training of a {config.peft_type.value} adapter.")
    weights = read_weights(folder)
    config.inference_mode = not is_trainable
    with _attaching(folder, config):
        model = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)(base, config, adapter_name)
        check_tensors(folder / SAFETENSORS_WEIGHTS_NAME, config, weights, *saved_tensors(model, model.active_adapter))
        model.load_adapter(str(folder), model.active_adapter, is_trainable=is_trainable)
    return model if is_trainable else model.eval()


@contextmanager
def _attaching(folder: Path, config: PeftConfig) -> Iterator[None]:
    """Turn what PEFT raises for an adapter that does not fit, which is of many types, into one message."""
    try:
        yield
    except SoftPromptError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise SoftPromptError(
            f"{folder}: PEFT cannot attach this {config.peft_type.value} adapter to the backbone ({first_line(error)}); copy or train it again."
        ) from error


def _bare_model(folder: Path, config: PeftConfig, backbone: str | None) -> nn.Module:
    name = backbone or config.base_model_name_or_path
    if not name:
        raise SoftPromptError(f"{folder}: the adapter does not say which backbone it was trained on; pass backbone=...")
    if backbone is None and not is_folder(name) and is_folder(folder / name):
        name = str(folder / name)
    loaders = {task: loader for kind in KINDS.values() for task, loader in kind.loaders.items()}
    read_config(name)
    loader = loaders.get(config.task_type, AutoModel)
    try:
        return loader.from_pretrained(backbone_path(name))
    except (ImportError, OSError, ValueError) as error:
        raise SoftPromptError(
            f"backbone {name!r} cannot be loaded as {loader.__name__}: {first_line(error)}"
        ) from error
