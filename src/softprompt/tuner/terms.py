"""What objectives read of a pass (the prompt, the state that the head reads, the head), and their terms on its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .._types import IGNORED, SoftPromptError
from ..objectives import OF_ONE_INPUT, PromptedOutput, consistency
from .adapter import Adapter
from .backbone import Backbone
from .bare import represent
from .calls.record import Record
from .pooling import compare_texts
from .processes import is_sharded
from .register import NAME


@dataclass(frozen=True)
class View:
    """A recorded call of a model; `show` gathers from it what objectives read.

    Attributes:
        record: what the hooks saw.
        named: arguments of the model's call, by name.
        output: what it returned.
        unprompted: the unprompted states [B, H], if they are known.
        adapter: the active one.
        bare: makes the unprompted states of the stack's inputs, where they are not known.
    """

    model: nn.Module
    backbone: Backbone
    record: Record
    named: dict[str, Any]
    output: Any
    unprompted: Tensor | None
    adapter: Adapter
    mask_token_id: int | None
    bare: Callable[[dict[str, Any], Tensor], Tensor]

    @property
    def labels(self) -> Tensor | None:
        return self.named.get("labels")


def show(view: View, needs: frozenset[str]) -> PromptedOutput:
    """Gather what objectives with these ``needs`` read."""
    record, model, unprompted, how = view.record, view.model, view.unprompted, view.adapter.settings.representation
    if record.hidden is None or record.tokens is None or record.real is None:
        raise SoftPromptError("objectives need a prompt that enters; this one has no layers.")
    ids, real, apart = record.call.get("input_ids"), record.real, getattr(model, "pairs", None) == "apart"

    def read(states: Tensor) -> Tensor:
        pooled = represent(states, ids, real, how, view.mask_token_id)
        return compare_texts(pooled) if apart else pooled

    if apart and (single := sorted(needs & OF_ONE_INPUT)):
        raise SoftPromptError(
            f"objectives read {', '.join(single)}, states of one text, but this classifier compares two (pairs='apart'); use pairs='joined'."
        )
    layers, states = getattr(model, "features", None) if "head_states" in needs else None, record.states or ()
    if unprompted is None and "unprompted" in needs:
        unprompted = view.bare(record.call, record.real)
    return PromptedOutput(
        virtual=record.entered,
        tokens=record.tokens,
        real=record.real,
        representation=read(record.hidden),
        unprompted=None if unprompted is None else unprompted.float(),
        head_rows=head_rows(view) if "head_rows" in needs else None,
        logits=view.output.get("logits"),
        labels=view.labels,
        head_states=tuple(read(states[layer]) for layer in layers or ()),
    )


def add_terms(view: View, before: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The output with the consistency of a gated prompt and the adapter's objectives added to its loss, and the terms.

    Each term stands unweighted and detached in ``output.objectives``. With ``num_items_in_batch``, as Trainer passes it to
    accumulate gradients, terms count by the batch's share of all labels.

    Args:
        view: of a training call. The caller keeps terms off the calls inside.
        before: the terms of the last call, which stand where this one has no loss to add to.
    """
    output, adapter = view.output, view.adapter
    if not isinstance(output, ModelOutput) or output.get("loss") is None:
        return output, before
    added, terms, share = output.loss.new_zeros(()), {}, _share(view)
    task_factor = 1.0
    if adapter.consistency:
        term = _consistency(view)
        added, terms = added + adapter.consistency * term, {"consistency": term.detach()}
    if adapter.objectives is not None:
        task = output.loss / share if share else output.loss  # a mean over this batch, as the terms are
        measured = not is_sharded(view.model)  # FSDP2 does not survive a second backward pass over its layers
        weighted, values = adapter.objectives(show(view, adapter.objectives.needs), task if measured else None)
        added, terms, task_factor = added + weighted, terms | values, adapter.objectives.task_factor
    if not terms and task_factor == 1.0:
        return output, terms
    output = _output_with_terms(type(output))(**output, objectives=dict(terms))  # type: ignore[arg-type]
    output["loss"] = task_factor * output.loss + share * added
    return output, terms


def _consistency(view: View) -> Tensor:
    """The consistency of a gated prompt with a random sub-network of it, by the logits of both."""
    logits, prompt = view.output.get("logits"), view.adapter.prompt
    if logits is None:
        raise SoftPromptError(
            f"the search of layers compares logits (consistency={view.adapter.consistency:g}), but this forward returns {type(view.output).__name__} without logits; "
            "set consistency=0 in the config, or name the layers (layers=[...]), which needs no search."
        )
    bare = {} if view.unprompted is None else {"unprompted": view.unprompted}
    with prompt.subnetwork(prompt.draw_subnetwork()):
        part = view.model(**view.named, **bare)
    return consistency(logits, part.logits, _counted(view, logits))


@cache
def _output_with_terms(kind: type[ModelOutput]) -> type[ModelOutput]:
    """The class of an output with one field more: DDP takes outputs apart and makes them again by their fields."""
    return make_dataclass(
        f"{kind.__name__}WithObjectives", [("objectives", dict[str, Tensor] | None, field(default=None))], bases=(kind,)
    )


def _is_active(name: str, adapter: str) -> bool:
    """Whether a module is in use: not the original that PEFT keeps of a trained head, nor another adapter's copy."""
    parts = name.split(".")
    if "original_module" in parts:
        return False
    return "modules_to_save" not in parts[:-1] or parts[parts.index("modules_to_save") + 1] == adapter


def _counted(view: View, logits: Tensor) -> Tensor | None:
    """The positions whose logits count, [B, S]; None for logits of whole texts."""
    labels, where = view.labels, view.named.get("attention_mask")
    if labels is not None and labels.dim() >= 2:
        where = labels != IGNORED
        if view.backbone.generates:
            where = F.pad(where[:, 1:], (0, 1))  # position t predicts the label of t + 1
    return where if where is not None and where.shape == logits.shape[:-1] else None


def _share(view: View) -> Any:
    """The share of this batch in the labels of all batches that are accumulated; 1 when the trainer averages by itself."""
    labels, items = view.labels, view.named.get("num_items_in_batch")
    if items is None or labels is None:
        return 1.0
    predicted = labels[:, 1:] if view.backbone.generates else labels  # nothing predicts the first token
    return (predicted != IGNORED).sum() / items


def head_rows(view: View) -> Tensor:
    """What the head compares states with, [C, H].

    A classifier by label words says itself what stands for its classes; in a language model these are the output rows of the
    batch's label tokens, else the weight of the layer that makes class logits.

    Raises:
        SoftPromptError: no such layer is found.
    """
    model, backbone, labels = view.model, view.backbone, view.labels
    if (of_classes := getattr(model, "class_rows", None)) is not None:
        rows = of_classes()
        assert isinstance(rows, Tensor)
        return rows
    if labels is not None and (labels.dim() != 2 or labels.is_floating_point()):
        labels = None  # they are of whole texts
    if labels is not None and isinstance(model, PreTrainedModel):
        head = model.get_output_embeddings()
        if head is not None and bool((labels != IGNORED).any()):
            return head.weight[labels[labels != IGNORED].unique()]
    inside = {*backbone.stack.modules(), *getattr(model, NAME).modules()}
    inside |= set(backbone.decoder.modules()) if backbone.decoder is not None else set()
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    heads = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in inside and _is_active(name, view.adapter.name)
        if module.out_features == classes and module.in_features == backbone.hidden_size
    ]
    if not heads:
        raise SoftPromptError(
            f"head_information compares the prompt with the head's rows: expected a linear layer from {backbone.hidden_size} to {classes} classes in {type(model).__name__}, found none."
        )
    return heads[-1]
