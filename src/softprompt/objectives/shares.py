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


def gradient_norms(losses: Mapping[str, Tensor], virtual: Sequence[Tensor]) -> dict[str, Tensor]:
    """Measure ``|d loss / d virtual|``, the Euclidean norm over all virtual tokens of the batch, for each loss by its name.

    The graph stays for the backward pass that comes. Of several processes each measures its own rows, and all get the root of
    the mean square.

    Args:
        losses: scalars.
        virtual: the virtual tokens [1 or B, P, H] of each layer, inside the graph of the losses.

    Raises:
        ReentrantError: the backbone's gradient checkpoints know only a whole backward pass (``use_reentrant=True``).
    """
    squares = []
    for loss in losses.values():
        parts = [part.detach().float().square().sum() for part in _gradient(loss, virtual) if part is not None]
        squares.append(torch.stack(parts).sum() if parts else virtual[0].new_zeros((), dtype=torch.float32))
    together = torch.stack(squares)
    if distributed.is_available() and distributed.is_initialized():
        together = reduce(together, "mean")
    return dict(zip(losses, together.sqrt(), strict=True))


def _gradient(loss: Tensor, virtual: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not loss.requires_grad:
        return ()
    try:
        return torch.autograd.grad(loss, list(virtual), retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "heckpoint" not in str(error):
            raise
        raise ReentrantError(
            "the share of a term in the gradient is measured by a backward pass to the virtual tokens alone, which reentrant gradient checkpoints cannot do; set gradient_checkpointing_kwargs={'use_reentrant': False}, or give weights in place of shares."
        ) from error
