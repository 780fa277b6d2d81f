"""Classification by a masked language model: the label words compete at the mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ..data import Verbalizer
from ..tuner import find_backbone, projecting
from .losses import label_loss


class VerbalizedClassifier(PreTrainedModel):
    """``logits_c = mean_w z[mask, w]`` over the label words w of class c, z the masked language model's logits.

    ``class_weights`` [C], None at first, are those of `softprompt.models.losses.label_loss`; they act in training alone and are not saved.

    Shapes: input_ids [B, S] with one mask token per row; logits [B, C].

    Raises:
        SoftPromptError: a row has no mask token, or more than one.
    """

    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # its loss is a mean over the batch: a trainer that accumulates must divide
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, masked_lm: PreTrainedModel, verbalizer: Verbalizer):
        super().__init__(masked_lm.config)
        self.masked_lm, self.verbalizer = masked_lm, verbalizer
        self.class_weights: Tensor | None = None
        layers = find_backbone(self).layers
        self._no_split_modules = sorted({type(layer).__name__ for layer in layers})  # FSDP shards each by itself
        self.mask_token_id = verbalizer.tokenizer.mask_token_id

    @property
    def base_model(self) -> nn.Module:
        return self.masked_lm.base_model  # the stack that prompts enter

    def get_input_embeddings(self) -> nn.Module:
        return self.masked_lm.get_input_embeddings()

    def get_encoder(self) -> nn.Module:
        return self.masked_lm.get_encoder()

    def get_decoder(self) -> nn.Module:
        return self.masked_lm.get_decoder()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        call: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            call["token_type_ids"] = token_type_ids
        logits = self.verbalizer.class_logits(self.at_mask(call).float())
        weights = self.class_weights if self.training else None
        loss = None if labels is None else label_loss(logits, labels, None, weights)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def at_mask(self, call: dict[str, Any]) -> Tensor:
        """The vocabulary's logits [B, V] at the masks; where the model lets us, only these are made."""
        ids = call["input_ids"]
        places = torch.arange(len(ids), device=ids.device) * ids.shape[1] + self.verbalizer.mask_positions(ids)
        with projecting(self.masked_lm.get_output_embeddings(), places, (len(ids), ids.shape[1])) as seen:
            logits = self.masked_lm(**call).logits
        return logits[0] if seen else self.verbalizer.at_mask(logits, ids)
