"""An adapter of PEFT's own."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from ..._types import SoftPromptError
from ...models import TaskCard
from ...tuner import active_prompt, export_prefix_tuning, export_prompt_tuning


def export_peft(model: PeftModel, folder: Path, card: TaskCard | None) -> str:
    """Write the active prompt for PEFT: an input prompt of a language model as PROMPT_TUNING, any other that reads nothing as
    PREFIX_TUNING.

    Raises:
        SoftPromptError: its head is softprompt's own, or neither can hold it.
    """
    if card is not None and card.head not in ("lm", "stock"):
        raise SoftPromptError(
            f"its head ({card.head}) is softprompt's own, which PEFT alone cannot load; expected an adapter that completes text (head=lm) or has a head of transformers (head=stock)."
        )
    prompt, config = active_prompt(model)
    task = str(getattr(config.task_type, "value", config.task_type))
    as_rows = prompt.keys_and_values() is None and config.placement == "input" and prompt.input_delta() is None
    if as_rows and not prompt.depends_on_input and task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        export_prompt_tuning(model, folder)
        return "PROMPT_TUNING"
    export_prefix_tuning(model, folder)
    return "PREFIX_TUNING"
