"""What classifiers above a loaded model have in common."""

from __future__ import annotations

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..tuner import Backbone


class AboveBackbone(PreTrainedModel):
    """A classifier above a model that transformers loaded.

    Which attention and which experts it runs with was decided when that model was loaded, so whatever is asked here is granted.

    Attributes:
        class_weights: [C], None at first, are those of `softprompt.models.losses.label_loss`; they act in training alone and are not saved.
    """

    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # its loss is a mean over the batch: a trainer that accumulates must divide
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.class_weights: Tensor | None = None

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for experts in the source of the class, which has none

    def _name_blocks(self, backbone: Backbone) -> None:
        """Tell FSDP to shard each layer by itself."""
        self._no_split_modules = sorted({type(layer).__name__ for layer in backbone.layers})
