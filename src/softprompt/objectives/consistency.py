"""Agreement between a gated prompt and a sparse part of it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def consistency(full: Tensor, part: Tensor, where: Tensor | None = None) -> Tensor:
    """Compute the mean squared error between logits of the whole hyper-network and of a sub-network, ``mean (z_full - z_part)^2``.

    Args:
        full, part: logits [B, C] or [B, S, V]; gradients reach both.
        where: [B, S] or None; the positions that count, where there are logits for each position.

    Shapes: a scalar. It is 0 when the sub-network is the whole.

    Source: SPT (arXiv 2310.20127). Differs from the paper: it only names a consistency regularisation; the formula is chosen.
    """
    if where is None or full.dim() < 3:
        return F.mse_loss(full.float(), part.float())
    where = where.to(full.device) != 0
    return F.mse_loss(full[where].float(), part[where].float()) if bool(where.any()) else full.sum() * 0.0
