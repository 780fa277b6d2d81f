"""How much of the gradient on the prompt a term has, beside the task's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate.utils import reduce
from torch import Tensor, distributed, nn

from .._types import SoftPromptError

FADED = 0.01  # of its second largest gradient: a term below it is at its minimum, where all that is left is noise


class Balance(nn.Module):
    """The weight that gives a term its share: ``|g_task| / max(|g_term|, 0.01 second largest |g_term|)``, as it was measured last.

    GradNorm (arXiv 1711.02257) balances gradients by a loss of its own; here the ratio of their norms is the weight (chosen).
    Checkpoints hold both figures, so a run that is resumed goes on with the same weight.

    The second largest, because one outlier must not switch a term off: a term that divides by distances has a huge gradient where
    virtual tokens start as equals.

    Attributes:
        ratio: the weight; 0 before the first measurement.
        largest: [2], the two largest gradients of the term so far, the larger one first.
    """

    ratio: Tensor
    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ratio", torch.zeros(()))
        self.register_buffer("largest", torch.zeros(2))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Go back to before the first measurement."""
        self.ratio.zero_()
        self.largest.zero_()

    @property
    def measured(self) -> bool:
        """Whether there is a weight."""
        return bool(self.ratio > 0)

    @torch.no_grad()
    def measure(self, task: Tensor, term: Tensor) -> None:
        """Set the weight from the norms of two gradients; where one of them is none or not finite it stays as it was."""
        if not bool(torch.isfinite(task) & torch.isfinite(term) & (task > 0) & (term > 0)):
            return
        self.largest.copy_(torch.cat([self.largest, term.reshape(1)]).topk(2).values)
        self.ratio.copy_(task / torch.maximum(term, FADED * self.largest[1]))


class ReentrantError(SoftPromptError):
    """Checkpoints that know only a whole backward pass."""


class StepGradients:
    """``d loss / d virtual`` of one step, for each loss by its name: the mean over the calls whose gradients are accumulated, and
    over processes. A term pulls the same way in each of them and the task's loss does not, so shares of single calls say too
    little of it.

    Args:
        step: the number of the step.
    """

    def __init__(self, step: int) -> None:
        self.step, self._calls = step, 0
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, Tensor], virtual: Sequence[Tensor]) -> dict[str, Tensor]:
        """Add a call, and return the Euclidean norm of each gradient up to here, over all virtual tokens.

        The graph stays for the backward pass that comes. Virtual tokens that each row has for itself are other ones in each call
        and process: of their gradients the squares are added up.

        Args:
            losses: scalars.
            virtual: the virtual tokens [1 or B, P, H] of each layer, inside the graph of the losses.

        Raises:
            ReentrantError: the backbone's gradient checkpoints know only a whole backward pass (``use_reentrant=True``).
        """
        self._calls += 1
        own = any(len(part) > 1 for part in virtual)
        for name, loss in losses.items():
            gradient = _gradient(loss, virtual)
            gradient = gradient.square().sum() if own else gradient
            self._sums[name] = self._sums.get(name, torch.zeros_like(gradient)) + gradient
        together = torch.stack([self._sums[name] for name in losses])
        if distributed.is_available() and distributed.is_initialized():
            together = reduce(together, "mean")
        norms = together.sqrt() if own else together.norm(dim=-1)
        return dict(zip(losses, norms / self._calls, strict=True))


def _gradient(loss: Tensor, virtual: Sequence[Tensor]) -> Tensor:
    """All parts of the gradient in one row; 0 where the loss does not depend on them."""
    if not loss.requires_grad:
        return torch.cat([torch.zeros_like(part, dtype=torch.float32).flatten() for part in virtual])
    try:
        parts = torch.autograd.grad(loss, list(virtual), retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([part.detach().float().flatten() for part in parts])
    except RuntimeError as error:
        if "heckpoint" not in str(error):
            raise
        raise ReentrantError(
            "the share of a term in the gradient is measured by a backward pass to the virtual tokens alone, which reentrant gradient checkpoints cannot do; set gradient_checkpointing_kwargs={'use_reentrant': False}, or give weights in place of shares."
        ) from error
