"""From names to objects: tokenizer, backbone, head; and back again from a saved run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .._types import SoftPromptError
from ..data import Verbalizer
from ..results import write_json
from .classifier import classifier_for
from .embedded import EMBEDDED, embedded_backbone
from .verbalized import VerbalizedClassifier

TASK_FILE = "task.json"


@dataclass(frozen=True)
class TaskCard:
    """What an adapter needs, beside its weights, to be used on text again; ``task.json`` in its folder.

    Attributes:
        kind: "classification", "completion" or "tokens".
        backbone: name or folder of the backbone.
        head: "pooled", "stock", "verbalizer" or "lm".
        pooling: of a pooled head.
        pairs: how a pooled head sees rows of two texts, "joined" or "apart"; None for rows of one.
        label_names: classes by index.
        max_length: tokens per row.
        dtype: of the backbone.
        verbalizer: template and label words.
        columns: names of the text columns in the training data.
        backbone_dropout: whether the backbone's dropout was on in training.
    """

    kind: str
    backbone: str
    head: str
    label_names: list[str]
    max_length: int
    dtype: str = "float32"
    pooling: str | None = None
    pairs: str | None = None
    verbalizer: dict[str, Any] | None = None
    columns: dict[str, str] | None = None
    backbone_dropout: bool = False

    def write(self, folder: str | Path) -> None:
        write_json(Path(folder) / TASK_FILE, asdict(self))

    @classmethod
    def read(cls, folder: str | Path) -> TaskCard:
        """Raises `SoftPromptError` when the folder has no readable ``task.json``."""
        path = Path(folder) / TASK_FILE
        if not path.is_file():
            raise SoftPromptError(
                f"{folder}: expected a folder written by softprompt train, but it has no {TASK_FILE}."
            )
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise SoftPromptError(f"{path}: not a task card ({error}).") from error

    @property
    def task_type(self) -> str | None:
        """PEFT's word for the task; None for masked language models, which PEFT has no word for."""
        if self.kind == "classification":
            return None if self.head == "verbalizer" else "SEQ_CLS"
        if self.kind == "tokens":
            return "TOKEN_CLS"
        return "SEQ_2_SEQ_LM" if read_config(self.backbone).is_encoder_decoder else "CAUSAL_LM"


def backbone_path(name: str) -> str:
    """The folder or hub name behind ``name``; "minilm" is the embedded encoder."""
    return str(embedded_backbone()) if name == EMBEDDED else name


def read_config(name: str) -> Any:
    """The backbone's config.

    Raises:
        SoftPromptError: there is no such folder and the hub does not have it or cannot be reached.
    """
    path = backbone_path(name)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SoftPromptError(
            f"backbone {name!r}: expected '{EMBEDDED}', a folder with config.json, or a hub name that can be reached; got: {reason}"
        ) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer, with a padding token.

    Raises:
        SoftPromptError: the folder has none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(name))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SoftPromptError(
            f"backbone {name!r} has no tokenizer that can be read ({str(error).splitlines()[0]})."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_model(
    card: TaskCard, tokenizer: PreTrainedTokenizerBase, pooling: str = "auto"
) -> tuple[PreTrainedModel, list[str]]:
    """Load the frozen backbone and put the card's head on it.

    Returns:
        The model, and the names of modules of a stock head that the checkpoint did not hold: they are random, so they
        must be trained and saved with the adapter.

    Raises:
        SoftPromptError: the backbone's weights cannot be read, or its architecture has no such head.
    """
    path, config = backbone_path(card.backbone), read_config(card.backbone)
    if not card.backbone_dropout:
        _switch_dropout_off(config.get_text_config())
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
    options: dict[str, Any] = {"dtype": getattr(torch, card.dtype), "config": config}
    loader: Any
    if card.head == "pooled":
        loader = AutoModel
    elif card.head == "verbalizer":
        loader = AutoModelForMaskedLM
    elif card.head == "stock":
        loader = AutoModelForTokenClassification if card.kind == "tokens" else AutoModelForSequenceClassification
        config.id2label = dict(enumerate(card.label_names))
        config.label2id = {name: i for i, name in enumerate(card.label_names)}
    else:
        loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        model, report = loader.from_pretrained(path, **options, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise SoftPromptError(
            f"backbone {card.backbone!r} cannot be loaded as {loader.__name__}: {str(error).strip().splitlines()[0]}"
        ) from error
    if card.head == "pooled":
        return classifier_for(model, card.label_names, card.pooling or pooling, card.pairs or "joined"), []
    if card.head == "verbalizer":
        return VerbalizedClassifier(model, Verbalizer.from_dict(tokenizer, card.verbalizer or {})), []
    if card.head == "stock":
        model.accepts_loss_kwargs = False  # its loss is a mean over the batch: a trainer that accumulates must divide
    return model, sorted({key.rpartition(".")[0] for key in report["missing_keys"]})


def _switch_dropout_off(config: Any) -> None:
    """Families call it hidden_dropout_prob, attention_dropout, resid_pdrop, dropout_rate...; all are probabilities."""
    for name, value in list(vars(config).items()):
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(config, name, 0.0)


def load(folder: str | Path, backbone: str | None = None, is_trainable: bool = False) -> PeftModel:
    """Load a trained adapter on its backbone, with the head it was trained with.

    Args:
        folder: an adapter's folder, from ``softprompt train`` (with ``task.json``) or from ``save_pretrained``.
        backbone: another place where the same backbone lies.
        is_trainable: continue training.

    Raises:
        SoftPromptError: no adapter in the folder, or it does not fit the backbone.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise SoftPromptError(f"{folder}: expected an adapter's folder with {name}; there is no such file.")
    if (folder / TASK_FILE).is_file():
        card = TaskCard.read(folder)
        card = card if backbone is None else replace(card, backbone=backbone)
        base, _ = build_model(card, load_tokenizer(card.backbone))
    else:
        base = _bare_model(folder, backbone)
    return _attach(base, folder, is_trainable)


def _attach(base: nn.Module, folder: Path, is_trainable: bool) -> PeftModel:
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable)
    except SafetensorError as error:
        raise SoftPromptError(
            f"{folder / SAFETENSORS_WEIGHTS_NAME}: cannot be read ({error}); copy or save the adapter again."
        ) from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        detail = " ".join(str(error).split())
        raise SoftPromptError(f"{folder}: the adapter does not fit this backbone and head ({detail}).") from error
    for name, value in load_file(folder / SAFETENSORS_WEIGHTS_NAME).items():
        if not torch.isfinite(value).all():
            raise SoftPromptError(
                f"{folder}: {name} holds values that are not finite; take an earlier checkpoint, or train with a lower learning_rate."
            )
    return model if is_trainable else model.eval()


def _bare_model(folder: Path, backbone: str | None) -> nn.Module:
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise SoftPromptError(f"{folder / CONFIG_NAME}: not a PEFT config that can be read ({error}).") from error
    name = backbone or config.base_model_name_or_path
    if not name:
        raise SoftPromptError(f"{folder}: the adapter does not say which backbone it was trained on; pass backbone=...")
    loaders: dict[str, Any] = {
        "SEQ_CLS": AutoModelForSequenceClassification,
        "TOKEN_CLS": AutoModelForTokenClassification,
        "CAUSAL_LM": AutoModelForCausalLM,
        "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    }
    read_config(name)
    return loaders.get(config.task_type, AutoModel).from_pretrained(backbone_path(name))
