"""The models that are trained, started from an embedded model or from nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from softprompt import SoftPromptError
from softprompt._types import IGNORED

LINEAR = 0.03  # GELU is nearly linear below it, and the norm behind it takes the scale out again


class MaskedModel(BertForMaskedLM):
    """`BertForMaskedLM` that computes logits where there is a label, and no others: 15 % of them.

    In training it returns the loss alone. What it saves is a `BertForMaskedLM`.
    """

    accepts_loss_kwargs = False  # a mean over the batch, which the trainer divides when it accumulates gradients

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **rest: Any) -> MaskedLMOutput:
        """Compute the mean loss over the positions with a label, in nats."""
        if labels is None:
            return super().forward(input_ids, **rest)
        states = self.bert(input_ids).last_hidden_state[labels != IGNORED]
        loss = nn.functional.cross_entropy(self.cls(states).float(), labels[labels != IGNORED])
        return MaskedLMOutput(loss=loss)


class CausalModel(BertLMHeadModel):
    """`BertLMHeadModel` that returns the loss alone where it is given labels; what it saves is a `BertLMHeadModel`."""

    accepts_loss_kwargs = False

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **rest: Any) -> Any:
        """Compute the mean loss of the next token, in nats."""
        if labels is None:
            return super().forward(input_ids, **rest)
        states = self.bert(input_ids, use_cache=False).last_hidden_state[:, :-1]
        logits = self.cls(states).float()
        return MaskedLMOutput(loss=nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()))


KINDS: dict[str, Any] = {"masked": MaskedModel, "causal": CausalModel}
STARTS = {"encoder": "minilm", "masked": "masked-lm", "nothing": "minilm"}  # the embedded backbone of each


def make_model(
    kind: str, start: PreTrainedModel, kept: list[int], positions: int, random: bool = False
) -> BertForMaskedLM:
    """A model of ``kind`` of the size of ``start`` with the pieces ``kept`` of its vocabulary, started from its weights or at ``random``.

    The output is tied to the embeddings in all cases. Where ``start`` is an encoder, its head starts as the identity up to a norm
    (dense = 0.03, where GELU is linear): the states of a sentence encoder lie near the embeddings that they came from, and a random
    layer would forget that. Where it is a masked language model, the head comes with it.
    """
    settings = start.config.to_dict() | {
        "vocab_size": len(kept),
        "max_position_embeddings": positions,
        "hidden_dropout_prob": 0.0,  # one pass over the corpus: no row is seen twice
        "attention_probs_dropout_prob": 0.0,
        "is_decoder": kind == "causal",
        "tie_word_embeddings": True,
        "architectures": [KINDS[kind].__mro__[1].__name__],
    }
    for name in ("dtype", "torch_dtype", "_name_or_path", "transformers_version"):
        settings.pop(name, None)
    model = KINDS[kind](BertConfig(**settings))
    if random:
        return model
    body = start.bert if isinstance(start, BertForMaskedLM) else start
    weights = body.state_dict()
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][kept]
    weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"][:positions]
    own = model.bert.state_dict()
    missing, _ = model.bert.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)
    left = [name for name in missing if "position_ids" not in name and "token_type_ids" not in name]
    if left:
        raise SoftPromptError(f"the model to start from lacks {left[0]}; expected the weights of a BertModel.")
    mine = model.cls.predictions
    with torch.no_grad():
        if isinstance(start, BertForMaskedLM):
            mine.transform.load_state_dict(start.cls.predictions.transform.state_dict())
            mine.bias.copy_(start.cls.predictions.bias[kept])
        else:
            mine.transform.dense.weight.copy_(LINEAR * torch.eye(len(mine.transform.dense.weight)))
            mine.transform.dense.bias.zero_()
            mine.bias.zero_()
    model.tie_weights()
    return model


def stock_model(model: BertForMaskedLM) -> PreTrainedModel:
    """The model as the class of transformers that it is a kind of, which keeps a cache when it writes."""
    made = type(model).__mro__[1](model.config)
    made.load_state_dict(model.state_dict())
    if made.config.is_decoder:
        made.generation_config, made.config.use_cache = model.generation_config, True
    made.tie_weights()
    return made
