"""Every method that a name can choose, in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from peft import PeftConfig

from .._types import SoftPromptError, did_you_mean
from ..tuner import SoftPromptConfig
from .contrast import contrast
from .deep_prompts import deep_prompts
from .dept import dept
from .ept import ept
from .infoprompt import infoprompt
from .peft_baselines import peft_ia3, peft_lora, peft_p_tuning, peft_prefix_tuning, peft_prompt_tuning
from .prompt_tuning import prompt_tuning
from .spt import spt
from .tsloss import tsloss

# Config fields that the builder, the backbone or the run fills in
_PEFTS = {"peft_type", "auto_mapping", "task_type", "inference_mode", "base_model_name_or_path"}
_OURS = _PEFTS | {"prompt", "placement", "initialized", "hidden_size", "num_layers", "backbone_type", "target_modules"}


@dataclass(frozen=True)
class Method:
    """A named builder.

    Attributes:
        build: hyper-parameters in, `PeftConfig` out.
        paper: where it comes from.
        learning_rate: a starting point for AdamW where it does not depend on the backbone's embeddings; None for
            methods whose parameters live in embedding space (see `softprompt.training.learning_rate_for`).
    """

    name: str
    build: Callable[..., PeftConfig]
    paper: str
    learning_rate: float | None = None

    @property
    def summary(self) -> str:
        return (self.build.__doc__ or "").strip().splitlines()[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Names and defaults of the builder's own hyper-parameters."""
        signature = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in signature if p.kind is not inspect.Parameter.VAR_KEYWORD}

    @property
    def objectives(self) -> list[str]:
        """Names of the objectives that the builder adds."""
        return [entry["name"] for entry in getattr(self.build(), "objectives", [])]

    @property
    def options(self) -> set[str]:
        """Every keyword that the builder takes: its own and the fields of its config, less those that a run decides."""
        config = inspect.signature(self.build, eval_str=True).return_annotation
        decided = _OURS if issubclass(config, SoftPromptConfig) else _PEFTS
        return set(self.parameters) | {f.name for f in fields(config)} - decided


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("prompt_tuning", prompt_tuning, "Lester et al. 2021, arXiv 2104.08691"),
        Method("deep_prompts", deep_prompts, "Liu et al. 2022, arXiv 2110.07602"),
        Method("dept", dept, "Shi and Lipani 2024, arXiv 2309.05173"),
        Method("ept", ept, "Lan et al. 2025, arXiv 2405.11464"),
        Method("spt", spt, "Zhu and Tan 2023, arXiv 2310.20127"),
        Method("infoprompt", infoprompt, "Wu et al. 2023, arXiv 2306.04933"),
        Method("tsloss", tsloss, "Huang et al. 2026, arXiv 2602.16500"),
        Method("contrast", contrast, "after Khosla et al. 2020, arXiv 2004.11362"),
        Method("peft:prompt_tuning", peft_prompt_tuning, "Lester et al. 2021, arXiv 2104.08691"),
        Method("peft:p_tuning", peft_p_tuning, "Liu et al. 2021, arXiv 2103.10385", learning_rate=1e-3),
        Method("peft:prefix_tuning", peft_prefix_tuning, "Li and Liang 2021, arXiv 2101.00190", learning_rate=1e-2),
        Method("peft:lora", peft_lora, "Hu et al. 2021, arXiv 2106.09685", learning_rate=1e-3),
        Method("peft:ia3", peft_ia3, "Liu et al. 2022, arXiv 2205.05638", learning_rate=3e-3),
    )
}


def find_method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        SoftPromptError: no such method; the message names the nearest.
    """
    if name not in METHODS:
        raise SoftPromptError(
            f"unknown method {name!r}: expected one of {', '.join(METHODS)}.{did_you_mean(name, METHODS)}"
        )
    return METHODS[name]
