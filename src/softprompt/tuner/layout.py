"""Where the prompt's positions stand among an input's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Places P prompt positions in inputs of S tokens, and takes them out again.

    The prompt stands directly in front of an input's first real token. Without padding on the left that is index 0 and the
    layout is a plain concatenation. With it, inputs are rearranged, so that neither relative positions nor attention
    windows see padding between prompt and text:

    - causal stacks keep their padding in front, ``[pad pad | prompt | tokens]``: a KV cache grows at the end;
    - bidirectional stacks get it at the end, ``[prompt | tokens | pad pad]``: their positions count from index 0.

    ``behind`` puts the prompt of a bidirectional stack directly behind the last real token, ``[tokens | prompt | pad pad]``:
    the tokens keep the indices that they have without a prompt.

    Attributes:
        first: [B, 1] or None; index of each input's first real token; None means no input has padding on the left.
        order: [B, P+S] or None; index into ``cat([prompt, input])`` of what stands at each position; None is the identity.
        back: [B, P+S] or None; the inverse permutation.
        behind: whether the tokens stand at the front.
    """

    prompt_length: int
    first: Int[Tensor, "batch 1"] | None = None
    order: Int[Tensor, "batch total"] | None = None
    back: Int[Tensor, "batch total"] | None = None
    behind: bool = False

    @classmethod
    def of(cls, prompt_length: int, mask: Tensor | None, causal: bool, behind: bool = False) -> Layout:
        """Choose the layout for a 2-D attention mask [B, S] (None: no padding; ``behind`` needs one)."""
        unpadded = mask is None or mask.shape[1] == 0 or bool((mask[:, 0] != 0).all())
        if mask is None or (unpadded and not behind):
            assert not behind
            return cls(prompt_length)
        length = mask.shape[1]
        first = (mask != 0).int().argmax(1, keepdim=True)  # 0 for an input of padding only
        at = torch.arange(prompt_length + length, device=mask.device)
        if causal:
            order = torch.where(at < first, at + prompt_length, torch.where(at < first + prompt_length, at - first, at))
        else:
            start = torch.zeros_like(first)
            if behind:
                start = length - (mask != 0).flip(1).int().argmax(1, keepdim=True) - first  # from first to last real
            token = torch.where(at < start, at, at - prompt_length)
            order = prompt_length + (token + first) % max(length, 1)
            order = torch.where((at >= start) & (at < start + prompt_length), at - start, order)
        return cls(prompt_length, None if unpadded else first, order, order.argsort(1), behind)

    def place(
        self, prompt: Shaped[Tensor, "b prompt *rest"], inputs: Shaped[Tensor, "batch seq *rest"]
    ) -> Shaped[Tensor, "batch total *rest"]:
        """Put ``prompt`` [1 or B, P, ...] into ``inputs`` [B, S, ...], in the dtype of the inputs."""
        joined = torch.cat([prompt.to(inputs).expand(len(inputs), *prompt.shape[1:]), inputs], 1)
        return joined if self.order is None else _take(joined, self.order)

    def move(self, inputs: Shaped[Tensor, "batch seq *rest"]) -> Shaped[Tensor, "batch seq *rest"]:
        """The tokens in the order of a layout without a prompt."""
        return self.place(inputs[:, :0], inputs)

    def remove(self, placed: Shaped[Tensor, "batch total *rest"]) -> Shaped[Tensor, "batch seq *rest"]:
        """Undo `place`: the inputs as they came, without the prompt."""
        return self._apart(placed)[:, self.prompt_length :]

    def prompt(self, placed: Shaped[Tensor, "batch total *rest"]) -> Shaped[Tensor, "batch prompt *rest"]:
        """What stands at the prompt positions."""
        return self._apart(placed)[:, : self.prompt_length]

    def columns(self, mask: Tensor) -> Bool[Tensor, "batch total"]:
        """True at the prompt positions of inputs with this mask [B, S]."""
        return self.place(mask.new_ones(1, self.prompt_length), torch.zeros_like(mask)) != 0

    def _apart(self, placed: Tensor) -> Tensor:
        return placed if self.back is None else _take(placed, self.back)


def _take(inputs: Tensor, index: Tensor) -> Tensor:
    return inputs.gather(1, index.view(*index.shape, *[1] * (inputs.dim() - 2)).expand(*index.shape, *inputs.shape[2:]))
