"""Label-only logits: where only the loss is wanted, the vocabulary is projected at the positions that carry a label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..._types import IGNORED, AnnounceOnce

WHAT = "label_only_logits"


def scored_positions(labels: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """The positions whose logits the loss reads, as indices [N] of the flattened [B S], and their labels [1, N].

    With ``shifted``, position t predicts the label of t + 1, as in causal language models. Their loss shifts labels by
    itself, so there is one position more, and its logits stand last, where nothing is predicted. None labelled: N = 0.
    """
    if not shifted:
        index = (labels != IGNORED).flatten().nonzero().flatten()
        return index, labels.flatten()[index].unsqueeze(0)
    marked = labels != IGNORED
    marked[:, :1] = False  # nothing predicts the first token
    targets = marked.flatten().nonzero().flatten()
    if not len(targets):
        return targets, labels.new_empty(1, 0)
    chosen = labels.flatten()[targets]
    return torch.cat([targets - 1, targets[:1]]), torch.cat([chosen.new_full((1,), IGNORED), chosen]).unsqueeze(0)


@contextmanager
def projecting(projection: nn.Module | None, index: Tensor, shape: tuple[int, int]) -> Iterator[list[int]]:
    """Inside, ``projection`` sees of hidden states [B, S, H] of this ``shape`` only [1, N, H], those at ``index`` [N].

    Inputs of another shape pass as they are. Without a projection nothing happens. The list that it yields gets an entry each
    time the projection sees few positions.
    """
    seen: list[int] = []
    if projection is None:
        yield seen
        return
    handle = projection.register_forward_pre_hook(lambda module, args: _pick(args, index, shape, seen))
    try:
        yield seen
    finally:
        handle.remove()


def _pick(args: tuple, index: Tensor, shape: tuple[int, int], seen: list[int]) -> tuple | None:
    if not args or not isinstance(args[0], Tensor) or args[0].dim() != 3 or args[0].shape[:2] != shape:
        return None
    seen.append(len(index))
    return (args[0].flatten(0, 1).index_select(0, index.to(args[0].device)).unsqueeze(0), *args[1:])


class LabelledPass:
    """One forward pass of a model whose loss alone is wanted.

    The model gets a copy of the labels. At the moment when its output embedding is called, the hidden states shrink from
    [B, S, H] to [1, N, H] and the copy from [B, S] to [1, N], so the model's own loss function makes the same sum and
    mean. What read the labels before that moment (a decoder's inputs are labels moved by one) has seen them whole, and in
    a model that makes its logits elsewhere nothing has changed.

    Args:
        labels: [B, S], as the caller gave them.
        shifted: whether position t predicts the label of t + 1.
        projection: the module that makes vocabulary logits.
    """

    def __init__(self, labels: Tensor, shifted: bool, projection: nn.Module):
        self.labels, self.given = labels.clone(), labels
        self.index, self.targets = scored_positions(labels, shifted)
        self._seen: list[int] = []
        # without a label the loss is what the model makes of none, at all positions
        self._handle = projection.register_forward_pre_hook(self._shrink) if len(self.index) else None

    def _shrink(self, projection: nn.Module, args: tuple) -> tuple | None:
        picked = _pick(args, self.index, (self.given.shape[0], self.given.shape[1]), self._seen)
        if picked is not None:
            self.labels.resize_(self.targets.shape).copy_(self.targets)
        return picked

    def into(self, names: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The call with the copy in place of the labels that it has, by name or by position."""
        if "labels" in kwargs:
            kwargs["labels"] = self.labels
            return args, kwargs
        place = names.index("labels")
        return (*args[:place], self.labels, *args[place + 1 :]), kwargs

    @property
    def share(self) -> float:
        return len(self.index) / max(self.given.numel(), 1)

    @property
    def took_effect(self) -> bool:
        """Whether the projection saw few positions; without a label there was nothing to see."""
        return bool(self._seen) or not len(self.index)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def without_logits(self, output: Any) -> Any:
        """The output without ``logits``: those of some positions, in a shape that nobody expects, are no logits."""
        if not self.took_effect or not isinstance(output, ModelOutput) or "logits" not in output:
            return output
        return type(output)(**{key: value for key, value in output.items() if key != "logits"})

    def report(self, tell: AnnounceOnce) -> None:
        """Announce once what the pass did."""
        if not self.took_effect:
            tell(f"{WHAT} off", "the model's output embedding is not called on the states of all positions")
        elif len(self.index):
            count, total = len(self.index), self.given.numel()
            tell(
                f"{WHAT} on",
                f"the vocabulary is projected where the loss reads it, {count} of {total} positions ({self.share:.0%}) in the first batch; "
                f"{WHAT}=False in the config turns it off",
                once=WHAT,
            )


def labelled_pass(
    model: nn.Module, named: Mapping[str, Any], reads: str | None, shifted: bool, tell: AnnounceOnce
) -> LabelledPass | None:
    """The pass, when the labels of a call are of tokens, [B, S], and nothing stands against it; else None.

    Args:
        model: the whole model.
        named: arguments of its call.
        reads: who needs all logits of this call, or None.
        shifted: whether position t predicts the label of t + 1.
        tell: announces why all logits are made.
    """
    labels = named.get("labels")
    if torch.compiler.is_compiling() or not isinstance(labels, Tensor):
        return None
    if labels.dim() != 2 or labels.is_floating_point():
        return None  # labels of whole texts
    projection = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    reason = reads or _against(model, projection, named)
    if reason is not None or projection is None:
        tell(f"{WHAT} off", f"{reason}, so logits are made at all positions")
        return None
    return LabelledPass(labels, shifted, projection)


def _against(model: nn.Module, projection: nn.Module | None, call: Mapping[str, Any]) -> str | None:
    """Why the mechanism would not be exact, or of no use, for this model and call."""
    name, config = type(model).__name__, getattr(model, "config", None)
    if projection is None or config is None:
        return f"{name} has no output embeddings"
    if getattr(model, "_loss_function", None) is not None:
        return f"{name} was given a loss function of its own, which may read positions"
    if not _stock_loss(model):
        return f"{name} defines a loss function of its own, which may read positions"
    asked = call.get("return_dict")  # None, as PEFT passes it, leaves the choice to the config
    if (getattr(config, "return_dict", True) if asked is None else asked) is False:
        return "return_dict=False asks for a tuple with logits in it"
    if call.get("shift_labels") is not None:
        return "shift_labels were given beside labels"
    if not config.is_encoder_decoder and config.get_text_config() is not config:
        return f"{name} reads more than text, and its loss may read the attention mask"
    return None


def _stock_loss(model: nn.Module) -> bool:
    """Whether the loss is transformers' own, which reads nothing of a position but its logits and label."""
    return getattr(type(model), "loss_function", None) is PreTrainedModel.loss_function
