"""The list of all methods. It imports none of them, so that listing them and refusing a typo cost no time."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ._types import check_choice


@dataclass(frozen=True)
class Entry:
    """One method of the list.

    Attributes:
        name: what a user calls it.
        file: its file in ``methods/``, without ending.
        function: the builder in that file.
        paper: the paper that it comes from.
        learning_rate: a starting point for AdamW where it does not depend on the backbone's embeddings; None for
            methods whose parameters live in embedding space (see `softprompt.training.learning_rate_for`).
    """

    name: str
    file: str
    function: str
    paper: str
    learning_rate: float | None = None

    @cached_property
    def _definition(self) -> ast.FunctionDef:
        source = (Path(__file__).parent / "methods" / f"{self.file}.py").read_text(encoding="utf-8")
        return next(
            node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == self.function
        )

    @property
    def documentation(self) -> str:
        """The builder's docstring."""
        return ast.get_docstring(self._definition) or ""

    @property
    def summary(self) -> str:
        """The first line of the builder's docstring."""
        return self.documentation.splitlines()[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Names and defaults of the builder's own hyper-parameters."""
        given = self._definition.args
        return {
            argument.arg: ast.literal_eval(default)
            for argument, default in zip(given.args, given.defaults, strict=True)
        }


CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("prompt_tuning", "prompt_tuning", "prompt_tuning", "Lester et al. 2021, arXiv 2104.08691"),
        Entry("deep_prompts", "deep_prompts", "deep_prompts", "Liu et al. 2022, arXiv 2110.07602"),
        Entry("dept", "dept", "dept", "Shi and Lipani 2024, arXiv 2309.05173"),
        Entry("ept", "ept", "ept", "Lan et al. 2025, arXiv 2405.11464"),
        Entry("spt", "spt", "spt", "Zhu and Tan 2023, arXiv 2310.20127"),
        Entry("infoprompt", "infoprompt", "infoprompt", "Wu et al. 2023, arXiv 2306.04933"),
        Entry("tsloss", "tsloss", "tsloss", "Huang et al. 2026, arXiv 2602.16500"),
        Entry("ulpt", "ulpt", "ulpt", "Wu et al. 2026, arXiv 2502.04501"),
        Entry("contrast", "contrast", "contrast", "after Khosla et al. 2020, arXiv 2004.11362"),
        Entry("peft:prompt_tuning", "peft_baselines", "peft_prompt_tuning", "Lester et al. 2021, arXiv 2104.08691"),
        Entry("peft:p_tuning", "peft_baselines", "peft_p_tuning", "Liu et al. 2021, arXiv 2103.10385", 1e-3),
        Entry(
            "peft:prefix_tuning", "peft_baselines", "peft_prefix_tuning", "Li and Liang 2021, arXiv 2101.00190", 1e-2
        ),
        Entry("peft:lora", "peft_baselines", "peft_lora", "Hu et al. 2021, arXiv 2106.09685", 1e-3),
        Entry("peft:ia3", "peft_baselines", "peft_ia3", "Liu et al. 2022, arXiv 2205.05638", 3e-3),
    )
}


def find_entry(name: str) -> Entry:
    """Look a method up by name.

    Raises:
        SoftPromptError: no method has this name; the message suggests the nearest.
    """
    check_choice("method", name, CATALOG)
    return CATALOG[name]
