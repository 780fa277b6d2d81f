"""A thin layer on `transformers.Trainer`: one learning rate per group, and a stop before damage is done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from .._types import NonFiniteError
from ..tuner import parameter_groups


class PromptTrainer(Trainer):
    """`transformers.Trainer` for prompts: everything else about it (arguments, callbacks, resume, report_to) is stock.

    - The optimizer gets the groups that the prompt declares, each with its own learning rate
      (``config.learning_rates``), and the head with ``head_learning_rate``.
    - A loss that is not finite stops training with `NonFiniteError`; the model then holds the trainable values of the
      last step whose loss was finite.

    Args:
        head_learning_rate: learning rate of trainable parameters outside the prompts; None means ``args.learning_rate``.
        *args, **kwargs: as for `Trainer`.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, *args: Any, head_learning_rate: float | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.head_learning_rate = head_learning_rate
        self._good: list[Tensor] = []

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            chosen = model if model is not None else self.model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, chosen)
            groups = parameter_groups(chosen, self.args.learning_rate, self.args.weight_decay, self.head_learning_rate)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        trained = [p for p in model.parameters() if p.requires_grad]
        if not torch.isfinite(loss):
            with torch.no_grad():
                for parameter, value in zip(trained, self._good, strict=False):
                    parameter.copy_(value)
            raise NonFiniteError(
                f"expected a finite loss, got {loss.item()} at step {self.state.global_step + 1} (learning rate {self._get_learning_rate():.3g}); "
                "training stopped, and the model holds the values of the last finite step. "
                "Try a lower learning_rate (a tenth), max_grad_norm=1.0, more warm-up, or dtype=float32."
            )
        self._good = [p.detach().clone() for p in trained]  # prompts are small
        return loss
