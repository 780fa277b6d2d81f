"""The one config of the one PEFT type: how a prompt is made, where it enters, where it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from .._types import SoftPromptError, check_choice
from ..prompts import DecomposedPrompt, PlainPrompt, Prompt
from .register import SOFTPROMPT

PROMPTS = ("plain", "decomposed")
PLACEMENTS = ("input", "deep")
INITS = ("vocab", "normal", "text", "labels", "file", "adapter")


@dataclass
class SoftPromptConfig(PeftConfig):
    """Everything that describes a soft prompt; written whole to ``adapter_config.json``.

    Builders such as `softprompt.ept` fill it with a paper's hyper-parameters. The choices are independent.

    Args:
        num_virtual_tokens: P, length of the prompt (m for a decomposed one).
        prompt: how it is made, "plain" (free matrix) or "decomposed" (short prompt plus low-rank input delta).
        placement: where it enters, "input" or "deep" (replaces the prompt positions at the input of every layer).
        max_positions: S_max, input positions that get a delta; 0 for none (plain prompts only).
        rank, alpha: R and the numerator of the delta's scale alpha / sqrt(R).
        fusion_memory: "none", "product" or "factor"; what the short prompt attends to.
        num_spaces, space_bottleneck, space_activation, gate: K, b, phi of the projection, and its gate, "prompt" or "token".
        init: where training starts: "vocab" (random vocabulary rows), "normal" (their standard deviation), "text",
            "labels" (one row per class label), "file" (.npy, .safetensors) or "adapter" (another trained prompt).
        init_text: the text, or the list of labels.
        init_path: the file, or the adapter's folder.
        init_seed: seed of everything that is drawn; None draws from torch's global generator.
        tokenizer_name_or_path: for "text" and "labels"; None means the backbone's own.
        learning_rates: learning rate by parameter group ("prompt", "low_rank", "spaces"), read by `softprompt.parameter_groups`;
            a group without one takes the trainer's, the low-rank group a tenth of it.
        modules_to_save: modules trained and saved beside the prompt; PEFT adds the classifier for SEQ_CLS by itself.
        initialized: True in a saved config: the values are in the weights file, nothing is drawn.
        hidden_size, num_layers, backbone_type: H, L and ``model_type`` of the backbone, filled in when the prompt is attached.

    Raises:
        SoftPromptError: a value outside its choices, or values that contradict each other.
    """

    num_virtual_tokens: int = 20
    prompt: str = "plain"
    placement: str = "input"
    max_positions: int = 0
    rank: int = 0
    alpha: float = 8.0
    fusion_memory: str = "none"
    num_spaces: int = 0
    space_bottleneck: int = 16
    space_activation: str = "gelu"
    gate: str = "prompt"
    init: str = "vocab"
    init_text: str | list[str] | None = None
    init_path: str | None = None
    init_seed: int | None = None
    tokenizer_name_or_path: str | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)
    modules_to_save: list[str] | None = None
    initialized: bool = False
    hidden_size: int | None = None
    num_layers: int | None = None
    backbone_type: str | None = None
    target_modules: str = DUMMY_TARGET_MODULES  # PEFT's word for "no module is replaced"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SOFTPROMPT
        check_choice("prompt", self.prompt, PROMPTS)
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("init", self.init, INITS)
        if self.num_virtual_tokens < 1:
            raise SoftPromptError(f"num_virtual_tokens: expected at least 1, got {self.num_virtual_tokens}.")
        if self.prompt == "decomposed" and (self.rank < 1 or self.max_positions < 1):
            raise SoftPromptError(
                f"a decomposed prompt needs rank >= 1 and max_positions >= 1, got rank={self.rank}, max_positions={self.max_positions}."
            )
        needed = {"text": "init_text", "labels": "init_text", "file": "init_path", "adapter": "init_path"}.get(
            self.init
        )
        if needed and not self.initialized and not getattr(self, needed):
            raise SoftPromptError(f"init={self.init!r} needs the field {needed}.")
        if self.init == "text" and isinstance(self.init_text, list):
            raise SoftPromptError(
                "init='text' needs one string in init_text, got a list; init='labels' takes one string per class."
            )

    def to_dict(self) -> dict[str, Any]:
        # `initialized` belongs to the file, not to the live config: whoever loads the file finds the values beside it
        return {**super().to_dict(), "initialized": True}

    @property
    def depth(self) -> int:
        """D: 1 for a prompt that enters at the input, L for a deep one."""
        return 1 if self.placement == "input" else (self.num_layers or 0)

    def build(self) -> Prompt:
        """Make the prompt's module with its shapes, not yet started from anything. Needs hidden_size and num_layers."""
        if self.hidden_size is None or self.num_layers is None:
            raise SoftPromptError(
                "the config does not know its backbone yet (hidden_size, num_layers); attach it with get_peft_model."
            )
        if self.prompt == "plain":
            return PlainPrompt(self.depth, self.num_virtual_tokens, self.hidden_size, self.max_positions)
        return DecomposedPrompt(
            depth=self.depth,
            num_virtual_tokens=self.num_virtual_tokens,
            hidden_size=self.hidden_size,
            max_positions=self.max_positions,
            rank=self.rank,
            alpha=self.alpha,
            fusion_memory=self.fusion_memory,
            num_spaces=self.num_spaces,
            space_bottleneck=self.space_bottleneck,
            gate=self.gate,
            activation=self.space_activation,
        )
