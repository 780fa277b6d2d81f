"""Which trainable parameters get which learning rate."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

from peft.utils import ModulesToSaveWrapper
from torch import nn

from .._types import SoftPromptError, did_you_mean
from ..prompts import Prompt
from .state import PromptState

CRITIC_FACTOR = 0.1  # critics are networks: they learn at the pace of a generator


def check_rates(rates: Iterable[str], groups: Collection[str]) -> None:
    """Raise `SoftPromptError` where ``learning_rates`` names a group that a prompt with these groups does not have."""
    for unknown in sorted({*rates} - {*groups, "critics"}):
        raise SoftPromptError(
            f"learning_rates names the group {unknown!r}, but this prompt has {', '.join(groups)}.{did_you_mean(unknown, groups)}"
        )


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float = 0.0, head_learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups for a `torch.optim` optimizer.

    - Each prompt declares its own groups ("prompt", "low_rank", "spaces", "space_gate", "frame", "generator",
      "gates"). ``config.learning_rates``
      gives a group its rate; another group takes ``learning_rate`` times the factor that the prompt declares (1 for most).
    - "critics" are those of objectives, at a tenth of ``learning_rate``.
    - "head" is what PEFT trains beside an adapter (``modules_to_save``, the classifier).
    - "adapter" is every other trainable parameter (LoRA, PEFT's own prompts).

    Raises:
        SoftPromptError: ``config.learning_rates`` names a group that the prompt does not have.
    """
    groups: dict[str, dict[str, Any]] = {}
    ours: set[int] = set()
    for state in model.modules():
        if not isinstance(state, PromptState):
            continue
        for adapter, prompt in cast(Mapping[str, Prompt], state.softprompt_prompts).items():
            declared, rates = prompt.parameter_groups(), state.settings[adapter].learning_rates
            factors = {**prompt.rate_factors, "critics": CRITIC_FACTOR}
            if adapter in state.objectives:
                declared = {**declared, "critics": list(state.objectives[adapter].parameters())}
            check_rates(rates, declared)
            for name, parameters in declared.items():
                ours.update(map(id, parameters))
                if trained := [p for p in parameters if p.requires_grad]:
                    group = groups.setdefault(
                        name,
                        {
                            "name": name,
                            "params": [],
                            "lr": rates.get(name, learning_rate * factors.get(name, 1.0)),
                            "weight_decay": weight_decay,
                        },
                    )
                    group["params"] += trained
    saved = {id(p) for m in model.modules() if isinstance(m, ModulesToSaveWrapper) for p in m.parameters()}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ours]
    beside = {"adapter": ([p for p in rest if id(p) not in saved], learning_rate)}
    beside["head"] = (
        [p for p in rest if id(p) in saved],
        learning_rate if head_learning_rate is None else head_learning_rate,
    )
    for name, (parameters, rate) in beside.items():
        if parameters:
            groups[name] = {"name": name, "params": parameters, "lr": rate, "weight_decay": weight_decay}
    return list(groups.values())
