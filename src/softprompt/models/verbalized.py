"""Classification by a language model: the label words compete at one place of the text."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .._types import SoftPromptError
from ..data import Verbalizer
from ..tuner import find_backbone, places, projecting
from .above import AboveBackbone
from .losses import label_loss


def word_place(config: PretrainedConfig) -> str:
    """Where a language model of this config is asked for a word, one of `softprompt.data.PLACES`."""
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if config.is_encoder_decoder:
        return "mask" if masked else "first"
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return "next" if causal and (not masked or getattr(config, "is_decoder", False)) else "mask"


def _start_of_answer(model: PreTrainedModel) -> int:
    """The token from which a decoder begins, as `generate` chooses it."""
    of_decoder = getattr(model.get_decoder(), "config", None)
    asked = (
        (model.config, "decoder_start_token_id"),
        (model.generation_config, "decoder_start_token_id"),
        (model.generation_config, "bos_token_id"),
        (of_decoder, "bos_token_id"),
    )
    start = next((found for config, name in asked if isinstance(found := getattr(config, name, None), int)), None)
    if start is None:
        raise SoftPromptError(
            f"{type(model).__name__} does not say from which token its decoder begins: expected decoder_start_token_id in its config, got None; set it there."
        )
    return start


class VerbalizedClassifier(AboveBackbone):
    """``logits_c = mean_w z[w]`` over the label words w of class c, z the language model's logits of the word: at the mask, of the
    next token, or of the first one that its decoder says.

    Shapes: input_ids [B, S] as `Verbalizer.encode` makes them; logits [B, C].

    Raises:
        SoftPromptError: the verbalizer reads words where this language model has none; its decoder does not say how it begins; a
            row has no mask token, or more than one.
    """

    def __init__(self, language_model: PreTrainedModel, verbalizer: Verbalizer):
        super().__init__(language_model.config)
        if verbalizer.place != (place := word_place(language_model.config)):
            raise SoftPromptError(
                f"{type(language_model).__name__} is asked for words with place={place!r}, got a Verbalizer with place={verbalizer.place!r}."
            )
        # saved LoRA weights of masked models carry this name
        self._name = "masked_lm" if place == "mask" else "language_model"
        self.add_module(self._name, language_model)
        self._tells_positions = "position_ids" in inspect.signature(language_model.forward).parameters
        self.verbalizer = verbalizer
        backbone = find_backbone(self)
        self._name_blocks(backbone)
        self._first_position = backbone.first_position
        self._start = _start_of_answer(language_model) if place == "first" else None
        self.mask_token_id = verbalizer.tokenizer.mask_token_id if place == "mask" else None

    @property
    def below(self) -> PreTrainedModel:
        """The language model."""
        model = getattr(self, self._name)
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def base_model(self) -> nn.Module:
        return self.below.base_model  # the stack that prompts enter

    def get_input_embeddings(self) -> nn.Module:
        return self.below.get_input_embeddings()

    def get_encoder(self) -> nn.Module:
        return self.below.get_encoder()

    def get_decoder(self) -> nn.Module:
        return self.below.get_decoder()

    def class_rows(self) -> Tensor:
        """What stands for each class where states are compared with words [C, H]: embeddings of a masked model, else rows of the
        projection to the vocabulary."""
        words = self.get_input_embeddings() if self.verbalizer.place == "mask" else self.below.get_output_embeddings()
        assert isinstance(words.weight, Tensor)
        rows = self.verbalizer.class_embeddings(words.weight)
        assert isinstance(rows, Tensor)
        return rows

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
        logits = self.verbalizer.class_logits(self.word_logits(call).float())
        weights = self.class_weights if self.training else None
        loss = None if labels is None else label_loss(logits, labels, None, weights)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def word_logits(self, call: dict[str, Any]) -> Tensor:
        """The vocabulary's logits [B, V] of the word; where the model lets us, only these are made."""
        ids, model = call["input_ids"], self.below
        rows, length = ids.shape
        if self.verbalizer.place == "first":
            length = 1
            call = {**call, "decoder_input_ids": ids.new_full((rows, 1), self._start)}
        mask = call["attention_mask"]
        if self.verbalizer.place != "mask":
            call = {**call, "use_cache": False}
        if self.verbalizer.place == "next" and mask is not None and self._tells_positions and not mask[:, 0].all():
            call = {**call, "position_ids": places(mask) + self._first_position}  # padding in front counts as none
        at, row = self.verbalizer.word_positions(ids, mask), torch.arange(rows, device=ids.device)
        with projecting(model.get_output_embeddings(), row * length + at, (rows, length)) as seen:
            logits = model(**call).logits
        return logits[0] if seen else logits[row, at]
