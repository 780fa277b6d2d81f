"""A classifier over frozen features: one pooling, one linear head, started from a linear probe."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .._types import SoftPromptError, announce, check_choice
from ..tuner import PAIRINGS, POOLINGS, compare_texts, find_backbone, pool
from .sentence_encoder import MODES, declared_pooling


class PooledClassifier(PreTrainedModel):
    """Classify a text by a linear head on pooled hidden states of a backbone.

    ``logits = W pool(h) + b`` with ``pool`` the mean over real tokens ("mean"), the first real token ("cls") or the last
    ("last"). An encoder-decoder contributes its encoder.

    A row of two texts is read as one ("joined"), or each text by itself ("apart"): the batch then holds 2B inputs, first and
    second text in turn, and ``logits = W [u - v, |u - v|] + b`` with u and v their pooled states, scaled to length sqrt(H).

    Args:
        backbone: a transformers model without head (`AutoModel`).
        label_names: names of the C classes.
        pooling: "mean", "cls" or "last".
        pairs: "joined" or "apart".

    Shapes: logits [B, C]; classifier.weight [C, H], or [C, 2H] for texts apart.

    Raises:
        SoftPromptError: an unknown pooling or pairing, fewer than two classes, or texts apart of which one has no partner.

    Source: |u - v| as a feature of two sentence embeddings is that of arXiv 1908.10084. Differs from the paper: u - v stands in
    place of u and v, and both are scaled (chosen).
    """

    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # its loss is a mean over the batch: a trainer that accumulates must divide
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, backbone: PreTrainedModel, label_names: Iterable[str], pooling: str, pairs: str = "joined"):
        names = list(label_names)
        check_choice("pooling", pooling, POOLINGS)
        check_choice("pairs", pairs, PAIRINGS)
        if len(names) < 2:
            raise SoftPromptError(f"expected at least two classes, got {names}.")
        if backbone.config.is_encoder_decoder:
            backbone = backbone.get_encoder()
        config = copy.deepcopy(backbone.config)
        config.is_encoder_decoder = False
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        super().__init__(config)
        self.backbone, self.pooling, self.pairs = backbone, pooling, pairs
        facts = find_backbone(self)
        self._no_split_modules = sorted({type(layer).__name__ for layer in facts.layers})  # FSDP shards each by itself
        width = facts.hidden_size * (2 if pairs == "apart" else 1)
        self.classifier = nn.Linear(width, len(names), dtype=torch.float32)
        self._accepted = frozenset(inspect.signature(backbone.forward).parameters)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        given = dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
        )
        call = {key: value for key, value in given.items() if value is not None and key in self._accepted}
        wanted = {key: kwargs[key] for key in ("output_hidden_states", "output_attentions") if key in kwargs}
        output = self.backbone(**call, **wanted)
        states = output.last_hidden_state.float()
        # PEFT's prefix tuning passes keys and values for positions that have mask columns but no states
        mask = None if attention_mask is None else attention_mask[:, -states.shape[1] :]
        pooled = pool(states, mask, self.pooling)
        if self.pairs == "apart":
            if len(pooled) % 2 or (labels is not None and len(pooled) != 2 * len(labels)):
                labelled = "" if labels is None else f" for {len(labels)} labels"
                raise SoftPromptError(
                    f"pairs='apart' reads first and second texts in turn: expected two rows per label, got {len(pooled)} rows{labelled}; encode with pairs='apart', use softprompt.data.collator, and remove_unused_columns=False in a stock Trainer."
                )
            pooled = compare_texts(pooled)
        logits = self.classifier(pooled)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.get("hidden_states"), attentions=output.get("attentions")
        )


def choose_pooling(name: str | Path, model: PreTrainedModel) -> tuple[str, str]:
    """Choose the pooling that suits a backbone; returns (pooling, reason).

    A sentence encoder says it (`declared_pooling`); a causal stack has read everything only at its last token; any other
    encoder is averaged, because its [CLS] state was trained for another task or not at all.

    Args:
        name: folder or hub name of the backbone, or "".
        model: the backbone.
    """
    declared = declared_pooling(name)
    if declared is not None and len(declared) == 1 and declared[0] in MODES:
        return MODES[declared[0]], f"this sentence encoder says {declared[0]!r}"
    if not model.config.is_encoder_decoder and find_backbone(model).causal:
        pooling, reason = "last", "in a causal stack only the last token has read the whole text"
    else:
        pooling = "mean"
        reason = "an encoder's [CLS] state was trained for another task, the mean over real tokens carries the text"
    if declared is not None:
        reason = f"this sentence encoder says {' and '.join(map(repr, declared))}, which is none of {', '.join(POOLINGS)}; {reason}"
    return pooling, reason


def choose_pairs(name: str | Path) -> tuple[str, str]:
    """Choose how a backbone reads rows of two texts; returns (pairs, reason).

    A sentence encoder was trained to tell the likeness of two texts from two states, never to read them in one row.

    Args:
        name: folder or hub name of the backbone.
    """
    if declared_pooling(name) is not None:
        return "apart", "this sentence encoder was trained to compare two states, not to read two texts in one row"
    return "joined", "one pass over both texts lets each read the other"


def classifier_for(
    backbone: PreTrainedModel,
    label_names: Iterable[str],
    pooling: str = "auto",
    pairs: str = "joined",
) -> PooledClassifier:
    """Put a `PooledClassifier` on ``backbone``; ``pooling="auto"`` chooses and announces why."""
    if pooling == "auto":
        pooling, reason = choose_pooling(backbone.name_or_path, backbone)
        announce(f"pooling={pooling}", reason)
    return PooledClassifier(backbone, label_names, pooling, pairs)
