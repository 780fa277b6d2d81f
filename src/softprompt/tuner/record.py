"""Show one pass to objectives (the prompt, the state that the head reads, the head) and add their terms to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .._types import IGNORED, SoftPromptError
from ..objectives import OF_ONE_INPUT, PromptedOutput, consistency
from .backbone import Backbone, frozen
from .layout import Layout
from .pooling import compare_texts, pool
from .request import places

if TYPE_CHECKING:
    from .state import PromptState, Record


def choose_representation(asked: str, task_type: str | None, model: nn.Module, backbone: Backbone) -> str:
    """The state of an input that its head reads.

    Raises:
        SoftPromptError: "mask" on a model that does not say which token its mask is.
    """
    has_mask = getattr(model, "mask_token_id", None) is not None
    if asked == "mask" and not has_mask:
        raise SoftPromptError(
            f"representation='mask' needs a model that knows its mask token (softprompt.VerbalizedClassifier), got {type(model).__name__}."
        )
    if asked != "auto":
        return asked
    if has_mask:
        return "mask"
    if getattr(model, "pooling", None):
        return str(model.pooling)
    if backbone.causal:
        return "last"
    return "cls" if task_type == "SEQ_CLS" and backbone.decoder is None else "mean"


def represent(hidden: Tensor, ids: Tensor | None, real: Tensor, how: str, mask_token_id: int | None) -> Tensor:
    """Pool hidden states [B, S, H] of the tokens ``real`` [B, S] to [B, H], in float32."""
    if how == "mask":
        if ids is None:
            raise SoftPromptError("representation='mask' finds the mask by its id: expected input_ids, got embeddings.")
        assert mask_token_id is not None  # choose_representation saw to it
        return pool(hidden.float(), torch.eq(ids, mask_token_id), "cls")
    return pool(hidden.float(), real, how) * real.any(1, keepdim=True)  # 0 for a row without a token


def run_bare(state: PromptState, call: Mapping[str, Any], layer: int | None = None) -> Tensor:
    """The states [B, S, H] of the bare backbone's tokens on the stack's inputs ``call``, dropout-free and without gradient:
    those that enter ``layer``, above which nothing runs, or the last ones.

    Rows with padding on the left are arranged as they are for a prompt, so that no position counts their padding.
    """
    backbone, mask = state.backbone, call.get("attention_mask")
    names = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids")
    given = {n: call[n] for n in names if call.get(n) is not None and n in backbone.argument_names}
    layout = Layout.of(0, mask, backbone.causal)
    if layout.first is not None and mask is not None:
        if not backbone.causal:
            given = {
                n: layout.place(value[:, :0], value.expand(len(mask), *value.shape[1:])) for n, value in given.items()
            }
        elif "position_ids" in backbone.argument_names and "position_ids" not in given:
            given["position_ids"] = places(mask) + backbone.first_position
    with state.silenced(), frozen(backbone):
        if layer is None:
            hidden = backbone.stack(**given).last_hidden_state.detach()
        else:
            hidden = _entering(backbone, layer, given)
    return hidden if backbone.causal else layout.remove(hidden)


class _Reached(Exception):
    """Ends a pass at the layer whose input is wanted."""


def _entering(backbone: Backbone, layer: int, call: dict[str, Any]) -> Tensor:
    found: list[Tensor] = []

    def stop(module: nn.Module, args: tuple) -> None:
        found.append(args[0].detach())
        raise _Reached

    hook = backbone.layers[layer].register_forward_pre_hook(stop)
    try:
        backbone.stack(**call)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]


def unprompted(state: PromptState, call: dict[str, Any], real: Tensor, how: str) -> Tensor:
    """The state [B, H] of the bare backbone on the stack's inputs ``call``, see `run_bare`."""
    return represent(run_bare(state, call), call.get("input_ids"), real, how, state.mask_token_id)


def show(
    state: PromptState,
    record: Record,
    model: nn.Module,
    output: Any,
    labels: Tensor | None,
    bare: Tensor | None,
    needs: frozenset[str],
) -> PromptedOutput:
    """Gather what objectives with these ``needs`` read of a recorded pass; ``bare`` is the unprompted state, if known."""
    if record.hidden is None or record.tokens is None or record.real is None:
        raise SoftPromptError("objectives need a prompt that enters; this one has no layers.")
    how, ids = state.settings[state.active_adapters[0]].representation, record.call.get("input_ids")
    state_of = represent(record.hidden, ids, record.real, how, state.mask_token_id)
    if getattr(model, "pairs", None) == "apart":
        if single := sorted(needs & OF_ONE_INPUT):
            raise SoftPromptError(
                f"objectives read {', '.join(single)}, states of one text, but this classifier compares two (pairs='apart'); use pairs='joined'."
            )
        state_of = compare_texts(state_of)
    if bare is None and "unprompted" in needs:
        bare = state.bare(record.call, record.real)
    return PromptedOutput(
        rows=record.rows,
        tokens=record.tokens,
        real=record.real,
        representation=state_of,
        unprompted=None if bare is None else bare.float(),
        head_rows=head_rows(model, state, labels) if "head_rows" in needs else None,
        logits=output.get("logits"),
        labels=labels,
    )


def add_terms(
    state: PromptState, record: Record, model: nn.Module, call: dict[str, Any], output: Any, bare: Tensor | None
) -> Any:
    """Add the consistency of a gated prompt and the adapter's objectives to ``output.loss``.

    Each term stands unweighted in ``output.objectives``. With ``num_items_in_batch``, as Trainer passes it to accumulate
    gradients, terms count by the batch's share of all labels.
    """
    prompt, objectives = state.active_prompt(), state.active_objectives()
    if prompt is None or not isinstance(output, ModelOutput) or output.get("loss") is None:
        return output
    labels, total = call.get("labels"), output.loss.new_zeros(())
    state.terms = {}
    weight = state.settings[state.active_adapters[0]].consistency if prompt.gate_logits is not None else 0.0
    if weight:
        if output.get("logits") is None:
            raise SoftPromptError(
                f"the search of layers compares logits (consistency={weight:g}), but this forward returns {type(output).__name__} without logits; "
                "set consistency=0 in the config, or name the layers (layers=[...]), which needs no search."
            )
        with prompt.subnetwork(prompt.draw_subnetwork()):
            part = model(**call, **({} if bare is None else {"unprompted": bare}))
        where = _where(output.logits, labels, call.get("attention_mask"), state.backbone.generates)
        term = consistency(output.logits, part.logits, where)
        total, state.terms["consistency"] = total + weight * term, term.detach()
    if objectives is not None:
        added, found = objectives(show(state, record, model, output, labels, bare, objectives.needs))
        total, state.terms = total + added, state.terms | found
    if state.terms:
        output = _output_with_terms(type(output))(**output, objectives=dict(state.terms))  # type: ignore[arg-type]
        share = _share(labels, call.get("num_items_in_batch"), state.backbone.generates)
        output["loss"] = output.loss + share * total
    return output


@cache
def _output_with_terms(kind: type[ModelOutput]) -> type[ModelOutput]:
    """The class of an output with one field more: DDP takes outputs apart and makes them again by their fields."""
    return make_dataclass(
        f"{kind.__name__}WithObjectives", [("objectives", dict[str, Tensor] | None, field(default=None))], bases=(kind,)
    )


def _is_active(name: str, adapters: list[str]) -> bool:
    """Whether a module is in use: not the original that PEFT keeps of a trained head, nor another adapter's copy."""
    parts = name.split(".")
    if "original_module" in parts:
        return False
    return "modules_to_save" not in parts[:-1] or parts[parts.index("modules_to_save") + 1] in adapters


def _where(logits: Tensor, labels: Tensor | None, mask: Tensor | None, generates: bool) -> Tensor | None:
    """The positions whose logits count, [B, S]; None for logits of whole rows."""
    where = mask if labels is None or labels.dim() < 2 else labels != IGNORED
    if where is not None and labels is not None and generates:
        where = F.pad(where[:, 1:], (0, 1))  # position t predicts the label of t + 1
    return where if where is not None and where.shape == logits.shape[:-1] else None


def _share(labels: Tensor | None, items: Any, generates: bool) -> Any:
    """The share of this batch in the labels of all batches that are accumulated; 1 when the trainer averages by itself."""
    if items is None or labels is None:
        return 1.0
    counted = labels[:, 1:] if generates else labels  # nothing predicts the first token
    return (counted != IGNORED).sum() / items


def head_rows(model: nn.Module, state: PromptState, labels: Tensor | None) -> Tensor:
    """[C, H]: embeddings of the label words, the output rows of the batch's label tokens (language models), or the weight
    of the layer that makes class logits.

    Raises:
        SoftPromptError: no such layer is found.
    """
    verbalizer, backbone = getattr(model, "verbalizer", None), state.backbone
    if verbalizer is not None:
        weight = backbone.embed.weight
        return torch.stack([weight[torch.tensor(ids, device=weight.device)].mean(0) for ids in verbalizer.token_ids])
    if labels is not None and labels.dim() == 2 and isinstance(model, PreTrainedModel):
        head = model.get_output_embeddings()
        if head is not None and bool((labels != IGNORED).any()):
            return head.weight[labels[labels != IGNORED].unique()]
    inside = {*backbone.stack.modules(), *state.modules()}
    inside |= set(backbone.decoder.modules()) if backbone.decoder is not None else set()
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    found = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in inside and _is_active(name, state.active_adapters)
        if module.out_features == classes and module.in_features == backbone.hidden_size
    ]
    if not found:
        raise SoftPromptError(
            f"head_information compares the prompt with the head's rows: expected a linear layer from {backbone.hidden_size} to {classes} classes in {type(model).__name__}, found none."
        )
    return found[-1]
