"""The contenders by name: every method of the library, and four that are no adapters."""

from __future__ import annotations

from functools import partial

from ..._types import check_choice
from ...methods import METHODS, find_method
from ...training import RunOptions
from ._base import COMMON_KEYS, RUN_KEYS, Contender, check_probed_head
from .adapters import check_adapter, run_adapter
from .frozen import check_zero_shot, run_probe, run_zero_shot
from .full import check_full_finetuning, run_full_finetuning
from .setfit import DEFAULTS, check_setfit, require_setfit, run_setfit

_PROMPTS_ONLY = {"track", "search_epochs"}
_STEPS_ONLY = {"head_learning_rate", "early_stopping_patience", "backbone_dropout", "score_last"}
_PLAIN = RUN_KEYS - _PROMPTS_ONLY - _STEPS_ONLY
OTHERS = {
    contender.name: contender
    for contender in (
        Contender("zero_shot", _PLAIN, False, run_zero_shot, check_zero_shot),
        Contender("probe", _PLAIN, False, run_probe, partial(check_probed_head, "probe")),
        Contender("full_finetuning", COMMON_KEYS - _PROMPTS_ONLY, True, run_full_finetuning, check_full_finetuning),
        Contender(
            "setfit",
            _PLAIN - {"head", "head_init", "pooling"} | frozenset(DEFAULTS),
            True,
            run_setfit,
            check_setfit,
            require_setfit,
            None,
        ),
    )
}


def find_contender(name: str) -> Contender:
    """Look a contender up by name.

    Raises:
        SoftPromptError: there is no such contender; the message names the nearest.
    """
    if name in METHODS:
        keys = COMMON_KEYS.union(find_method(name).hints)
        return Contender(name, keys, True, run_adapter, check_adapter, gathered=RunOptions.from_flat)
    check_choice("method", name, (*METHODS, *OTHERS))
    return OTHERS[name]
