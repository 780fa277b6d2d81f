"""A head over frozen features: one pooling, one linear layer, started from a linear probe."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .._types import SoftPromptError, announce, check_choice
from ..tuner import PAIRINGS, POOLINGS, compare_texts, find_backbone, pool, with_own_name
from .above import AboveBackbone
from .losses import PROBLEMS, label_loss
from .sentence_encoder import MODES, declared_pooling

VALUE = "value"  # what stands for a class where there is a number
OUTPUTS = ("output_hidden_states", "output_attentions")


class PooledClassifier(AboveBackbone):
    """Classify a text by a linear head on pooled hidden states of a backbone.

    ``logits = W pool(h) + b`` with ``pool`` the mean over real tokens ("mean"), the first real token ("cls") or the last
    ("last"). An encoder-decoder contributes its encoder.

    With ``features`` the head reads several layers: ``logits = W [pool(h_l1), ..., pool(h_lk)] + b``, where h_l is the hidden state
    that transformers numbers l: 0 is what enters the first layer, L what the last one leaves.

    A row of two texts is read as one ("joined"), or each text by itself ("apart"): the batch then holds 2B inputs, first and
    second text in turn, and ``logits = W [u - v, |u - v|] + b`` with u and v their pooled states, scaled to length sqrt(H), layer
    by layer.

    Args:
        backbone: a transformers model without head (`AutoModel`).
        label_names: names of the C classes.
        pooling: "mean", "cls" or "last".
        pairs: "joined" or "apart".
        features: the k layers that the head reads, of 0 to L; None for the last one.
        problem_type: what labels are, as transformers' configs say it: "single_label_classification", "multi_label_classification" (each
            class by itself) or "regression" (one number, C = 1, without names).

    Shapes: logits [B, C]; classifier.weight [C, k H], or [C, 2 k H] for texts apart; k = 1 without ``features``.

    Raises:
        SoftPromptError: an unknown pooling or pairing, fewer than two classes, layers that do not exist, or texts apart of which
            one has no partner.

    Source: |u - v| as a feature of two sentence embeddings is that of arXiv 1908.10084. Differs from the paper: u - v stands in
    place of u and v, and both are scaled (chosen).
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        label_names: Iterable[str],
        pooling: str,
        pairs: str = "joined",
        features: Sequence[int] | None = None,
        problem_type: str = PROBLEMS[0],
    ):
        names = list(label_names)
        check_choice("problem_type", problem_type, PROBLEMS)
        check_choice("pooling", pooling, POOLINGS)
        check_choice("pairs", pairs, PAIRINGS)
        if problem_type == "regression":
            names = names or [VALUE]
        elif len(names) < 2:
            raise SoftPromptError(f"expected at least two classes, got {names}.")
        if backbone.config.is_encoder_decoder:
            backbone = backbone.get_encoder()
        config = copy.deepcopy(backbone.config)
        config.is_encoder_decoder = False
        config.problem_type = problem_type
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        super().__init__(config)
        self.backbone, self.pooling, self.pairs = backbone, pooling, pairs
        self._name_blocks(find_backbone(self))
        self._accepted = frozenset(inspect.signature(backbone.forward).parameters)
        self.read_layers(features)

    def read_layers(self, features: Sequence[int] | None) -> None:
        """Put a new head on that reads these layers; see `PooledClassifier`."""
        facts = find_backbone(self)
        self.features = None if features is None else check_layers(features, facts.num_layers)
        if features is not None and facts.width != facts.hidden_size:
            raise SoftPromptError(
                f"features={list(features)}: expected states of one width, got {facts.hidden_size} and {facts.width} in {facts.model_type}; leave features out (features='last')."
            )
        width = facts.hidden_size * (2 if self.pairs == "apart" else 1) * len(self.features or (None,))
        self.classifier = nn.Linear(width, self.config.num_labels, dtype=torch.float32, device=self.device)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,  # PEFT gives a prefix by this name, whatever transformers' own models call it
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        given = with_own_name(
            self._accepted,
            dict(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                past_key_values=past_key_values,
            ),
        )
        wanted: dict[str, Any] = {name: kwargs[name] for name in OUTPUTS if name in kwargs}
        asked = wanted.get("output_hidden_states")
        asked = self.config.output_hidden_states if asked is None else asked
        if self.features is not None:
            wanted["output_hidden_states"] = True
        output = self.run({**given, **wanted})
        logits = self.read(self.layers_of(output), attention_mask, labels)
        loss = None
        if labels is not None:
            weights = self.class_weights if self.training else None
            loss = label_loss(logits, labels, self.config.problem_type, weights)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=output.get("hidden_states") if asked else None,
            attentions=output.get("attentions"),
        )

    def run(self, given: Mapping[str, Any]) -> Any:
        """What the backbone makes of those of the inputs that it takes."""
        kept = (key for key, value in given.items() if value is not None and (key in self._accepted or key in OUTPUTS))
        return self.backbone(**{key: given[key] for key in kept})

    def layers_of(self, output: Any) -> list[Tensor]:
        """The states [B, S, H] of the layers that the head reads."""
        return [output.last_hidden_state] if self.features is None else [output.hidden_states[i] for i in self.features]

    def read(self, states: Sequence[Tensor], attention_mask: Tensor | None, labels: Tensor | None = None) -> Tensor:
        """The logits that the head makes of the states of its layers."""
        logits = self.classifier(torch.cat([self._pooled(layer, attention_mask, labels) for layer in states], -1))
        assert isinstance(logits, Tensor)
        return logits

    def _pooled(self, states: Tensor, attention_mask: Tensor | None, labels: Tensor | None) -> Tensor:
        """What the head reads of one layer's states [B, S, H]: [B, H], or [B / 2, 2H] of texts apart."""
        # PEFT's prefix tuning passes keys and values for positions that have mask columns but no states
        mask = None if attention_mask is None else attention_mask[:, -states.shape[1] :]
        pooled = pool(states.float(), mask, self.pooling)
        if self.pairs == "joined":
            return pooled
        if len(pooled) % 2 or (labels is not None and len(pooled) != 2 * len(labels)):
            labelled = "" if labels is None else f" for {len(labels)} labels"
            raise SoftPromptError(
                f"pairs='apart' reads first and second texts in turn: expected two rows per label, got {len(pooled)} rows{labelled}; encode with pairs='apart', use softprompt.data.collator, and remove_unused_columns=False in a stock Trainer."
            )
        return compare_texts(pooled)


def check_layers(features: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return the layers that a head reads, in ascending order.

    Raises:
        SoftPromptError: no layer, one that is named twice, or one that is not of 0 to L.
    """
    layers = tuple(sorted(features))
    if not layers or len(set(layers)) < len(layers) or layers[0] < 0 or layers[-1] > num_layers:
        raise SoftPromptError(
            f"features={list(features)}: expected different layers of 0 (what enters the first one) to {num_layers} (what the last one leaves), such as features=[{num_layers - 1}, {num_layers}]; name layers that exist."
        )
    return layers


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
    features: Sequence[int] | None = None,
    problem_type: str = PROBLEMS[0],
) -> PooledClassifier:
    """Put a `PooledClassifier` on ``backbone``; ``pooling="auto"`` chooses and announces why."""
    if pooling == "auto":
        pooling, reason = choose_pooling(backbone.name_or_path, backbone)
        announce(f"pooling={pooling}", reason)
    return PooledClassifier(backbone, label_names, pooling, pairs, features, problem_type)
