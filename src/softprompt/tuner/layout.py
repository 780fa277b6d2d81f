"""Where the prompt's positions stand among a row's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Places P prompt positions in rows of S tokens, and takes them out again.

    The prompt stands directly in front of a row's first real token. Without padding on the left that is index 0 and the
    layout is a plain concatenation. With it, rows are rearranged, so that neither relative positions nor attention
    windows see padding between prompt and text:

    - causal stacks keep their padding in front, ``[pad pad | prompt | tokens]``: a KV cache grows at the end;
    - bidirectional stacks get it at the end, ``[prompt | tokens | pad pad]``: their positions count from index 0.

    Attributes:
        first: [B, 1] or None; index of each row's first real token; None means no row has padding on the left.
        order: [B, P+S] or None; index into ``cat([prompt, row])`` of what stands at each position; None is the identity.
        back: [B, P+S] or None; the inverse permutation.
    """

    prompt_length: int
    first: Int[Tensor, "batch 1"] | None = None
    order: Int[Tensor, "batch total"] | None = None
    back: Int[Tensor, "batch total"] | None = None

    @classmethod
    def of(cls, prompt_length: int, mask: Tensor | None, causal: bool) -> Layout:
        """Choose the layout for a 2-D attention mask [B, S] (None: no padding)."""
        if mask is None or mask.shape[1] == 0 or bool((mask[:, 0] != 0).all()):
            return cls(prompt_length)
        length = mask.shape[1]
        first = (mask != 0).int().argmax(1, keepdim=True)  # 0 for a row of padding only
        at = torch.arange(prompt_length + length, device=mask.device)
        if causal:
            order = torch.where(at < first, at + prompt_length, torch.where(at < first + prompt_length, at - first, at))
        else:
            order = torch.where(at < prompt_length, at, prompt_length + (at - prompt_length + first) % length)
        return cls(prompt_length, first, order, order.argsort(1))

    def place(
        self, prompt: Shaped[Tensor, "b prompt *rest"], rows: Shaped[Tensor, "batch seq *rest"]
    ) -> Shaped[Tensor, "batch total *rest"]:
        """Put ``prompt`` [1 or B, P, ...] into ``rows`` [B, S, ...], in the dtype of the rows."""
        joined = torch.cat([prompt.to(rows).expand(len(rows), *prompt.shape[1:]), rows], 1)
        return joined if self.order is None else _take(joined, self.order)

    def remove(self, placed: Shaped[Tensor, "batch total *rest"]) -> Shaped[Tensor, "batch seq *rest"]:
        """Undo `place`: the rows as they came, without the prompt."""
        return (placed if self.back is None else _take(placed, self.back))[:, self.prompt_length :]


def _take(rows: Tensor, index: Tensor) -> Tensor:
    return rows.gather(1, index.view(*index.shape, *[1] * (rows.dim() - 2)).expand(*index.shape, *rows.shape[2:]))
