"""The prompt of a saved adapter, without its backbone."""

from __future__ import annotations

from pathlib import Path

from peft.utils import CONFIG_NAME as CONFIG
from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS

from ..._types import SoftPromptError
from ...prompts import Prompt
from ..config import SoftPromptConfig
from ..register import NAME
from .strict import PROMPTS, check_folder, check_tensors, read_adapter_config, read_weights


def read_prompt(folder: str | Path) -> Prompt:
    """Read the prompt of a saved adapter without its backbone.

    Raises:
        SoftPromptError: the folder holds no soft prompt, or its weights do not fit its config.
    """
    folder = Path(folder)
    check_folder(folder)
    config = read_adapter_config(folder)
    if not isinstance(config, SoftPromptConfig):
        raise SoftPromptError(f"{folder}: expected a {NAME.upper()} adapter, got {config.peft_type.value}.")
    prompt = _build(folder, config)
    tensors = {key.partition(PROMPTS)[2]: value for key, value in read_weights(folder).items() if PROMPTS in key}
    check_tensors(folder / WEIGHTS, config, tensors, prompt.state_dict())
    prompt.load_state_dict(tensors)
    return prompt.eval()


def _build(folder: Path, config: SoftPromptConfig) -> Prompt:
    try:
        return config.build()
    except SoftPromptError as error:
        raise SoftPromptError(f"{folder / CONFIG} does not describe a prompt: {error}") from error
