"""Classification by a masked language model: the label words compete at the mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .._types import SoftPromptError
from ..data import Verbalizer


class VerbalizedClassifier(PreTrainedModel):
    """``logits_c = mean_w z[mask, w]`` over the label words w of class c, z the masked language model's logits.

    Shapes: input_ids [B, S] with one mask token per row; logits [B, C].

    Raises:
        SoftPromptError: a row has no mask token, or more than one.
    """

    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, masked_lm: PreTrainedModel, verbalizer: Verbalizer):
        super().__init__(masked_lm.config)
        self.masked_lm, self.verbalizer = masked_lm, verbalizer
        self.mask_token_id = verbalizer.tokenizer.mask_token_id

    @property
    def base_model(self) -> nn.Module:
        return self.masked_lm.base_model  # the stack that prompts enter

    def get_input_embeddings(self) -> nn.Module:
        return self.masked_lm.get_input_embeddings()

    def get_encoder(self) -> nn.Module:
        return self.masked_lm.get_encoder()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, token_type_ids: Tensor | None = None, **kwargs: Any) -> SequenceClassifierOutput:
        at_mask = input_ids == self.mask_token_id
        if not bool((at_mask.sum(1) == 1).all()):
            raise SoftPromptError(f"expected one mask token in each row, got {at_mask.sum(1).tolist()}; encode rows with Verbalizer.encode.")
        call = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            call["token_type_ids"] = token_type_ids
        vocabulary = self.masked_lm(**call).logits[torch.arange(len(input_ids), device=input_ids.device), at_mask.int().argmax(1)]
        logits = self.verbalizer.class_logits(vocabulary.float())
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
