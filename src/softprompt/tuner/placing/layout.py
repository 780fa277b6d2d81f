"""Where the prompt's positions stand among an input's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


def is_padded_in_front(mask: Tensor | None) -> bool:
    """Whether an input starts with padding. An exported graph has one layout, that of inputs without."""
    if mask is None or torch.compiler.is_exporting() or mask.shape[1] == 0:
        return False
    return not bool((mask[:, 0] != 0).all())


@dataclass(frozen=True)
class Layout:
    """Places P prompt positions in inputs of S tokens, and takes them out again.

    The prompt stands directly in front of an input's first real token, or of a later one, behind ``start`` of them. Without padding on the left that is index 0 and the
    layout is a plain concatenation. With it, inputs are rearranged, so that neither relative positions nor attention
    windows see padding between prompt and text:

    - causal stacks keep their padding in front, ``[pad pad | prompt | tokens]``: a KV cache grows at the end;
    - bidirectional stacks get it at the end, ``[prompt | tokens | pad pad]``: their positions count from index 0.

    ``behind`` puts the prompt of a bidirectional stack directly behind the last real token, ``[tokens | prompt | pad pad]``:
    the tokens keep the indices that they have without a prompt.

    Where inputs have prompts of their own, these are of different length and stand at the end of their P positions, the
    shorter ones behind ``filler``. It is masked, and stands where an input's padding stands: in front of a causal prompt, at the end of a
    bidirectional input.

    Attributes:
        first: [B, 1] or None; index of each input's first real token; None means no input has padding on the left.
        order: [B, P+S] or None; index into ``cat([prompt, input])`` of what stands at each position; None is the identity.
        back: [B, P+S] or None; the inverse permutation.
        behind: whether the tokens stand at the front; [B, 1] where inputs differ.
        filler: [B, P] or None; True at positions that hold no virtual token.
        start: [B, 1] or None; how many tokens, from the first real one on, stand in front of the prompt; None is 0.
    """

    prompt_length: int
    first: Int[Tensor, "batch 1"] | None = None
    order: Int[Tensor, "batch total"] | None = None
    back: Int[Tensor, "batch total"] | None = None
    behind: bool | Bool[Tensor, "batch 1"] = False
    filler: Bool[Tensor, "batch prompt"] | None = None
    start: Int[Tensor, "batch 1"] | None = None

    @classmethod
    def of(
        cls,
        prompt_length: int,
        mask: Tensor | None,
        causal: bool,
        behind: bool | Tensor = False,
        filler: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Layout:
        """Choose the layout for a 2-D attention mask [B, S] (None: no padding; ``behind``, ``filler`` and ``start`` need one)."""
        unpadded = not is_padded_in_front(mask)
        plain = behind is False and start is None and (filler is None or causal)
        if mask is None or (unpadded and plain):
            assert plain
            return cls(prompt_length, filler=filler)
        length = mask.shape[1]
        first = (mask != 0).int().argmax(1, keepdim=True)  # 0 for an input of padding only
        at = torch.arange(prompt_length + length, device=mask.device)
        ahead = torch.zeros_like(first) if start is None else start
        empty = 0 if filler is None else filler.sum(1, keepdim=True)
        own = prompt_length - empty
        if causal:
            begin = first + empty + ahead
            order = torch.where(at >= begin + own, at, at - first - ahead)
            order = torch.where(at < begin, at - empty + prompt_length, order)
            order = torch.where(at < first + empty, at - first, order)
            order = torch.where(at < first, at + prompt_length, order)
        else:
            if behind is not False:
                extent = length - (mask != 0).flip(1).int().argmax(1, keepdim=True) - first  # from first to last real
                ahead = torch.where(torch.as_tensor(behind, device=mask.device), extent, ahead)
            token = torch.where(at < ahead, at, at - own)
            order = prompt_length + (token + first) % max(length, 1)
            order = torch.where((at >= ahead) & (at < ahead + own), at - ahead + empty, order)
            order = torch.where(at >= length + own, at - length - own, order)
        return cls(prompt_length, None if unpadded else first, order, order.argsort(1), behind, filler, start)

    @property
    def empty(self) -> int | Tensor:
        """How many positions of each input's prompt are filler: 0, or [B, 1]."""
        return 0 if self.filler is None else self.filler.sum(1, keepdim=True)

    @property
    def padded_in_front(self) -> bool:
        """Whether an input of a causal stack starts behind padding or filler."""
        return self.first is not None or self.filler is not None

    def follows(self, tokens: int) -> Tensor:
        """Which of S tokens stand behind the prompt, [B, S]; where some stand in front of it."""
        assert self.start is not None
        begin = self.start if self.first is None else self.start + self.first
        return torch.arange(tokens, device=begin.device) >= begin

    def whole(self, mask: Tensor) -> Tensor:
        """The mask of tokens [B, S] with that of the prompt's positions."""
        own = mask.new_ones(1, self.prompt_length) if self.filler is None else (~self.filler).to(mask)
        return self.place(own, mask)

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

    def tokens_first(self, placed: Shaped[Tensor, "batch total *rest"]) -> Shaped[Tensor, "batch seq *rest"]:
        """A bidirectional input from its first real token on; the prompt that stands in front of it is cut off by index."""
        if self.start is not None:  # what is cut off stands inside the text
            real = (
                torch.zeros(placed.shape[0], 1, dtype=torch.long, device=placed.device)
                if self.first is None
                else self.first
            )
            tokens = self.remove(placed)
            return _take(tokens, (real + torch.arange(tokens.shape[1], device=placed.device)) % tokens.shape[1])
        if isinstance(self.behind, bool) and self.filler is None:
            return placed if self.behind else placed[:, self.prompt_length :]
        length = placed.shape[1] - self.prompt_length
        start = torch.where(torch.as_tensor(self.behind, device=placed.device), 0, self.prompt_length - self.empty)
        return _take(placed, (start + torch.arange(length, device=placed.device)).expand(len(placed), -1))

    def columns(self, mask: Tensor) -> Bool[Tensor, "batch total"]:
        """True at the prompt positions of inputs with this mask [B, S]."""
        return self.place(mask.new_ones(1, self.prompt_length), torch.zeros_like(mask)) != 0

    def _apart(self, placed: Tensor) -> Tensor:
        return placed if self.back is None else _take(placed, self.back)


def _take(inputs: Tensor, index: Tensor) -> Tensor:
    return inputs.gather(1, index.view(*index.shape, *[1] * (inputs.dim() - 2)).expand(*index.shape, *inputs.shape[2:]))
