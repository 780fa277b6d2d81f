"""PEFT's own methods, unchanged, under the names ``peft:...``: the baselines of every comparison."""

from __future__ import annotations

from typing import Any

from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig


def peft_prompt_tuning(
    num_virtual_tokens: int = 20, prompt_tuning_init: str = "SAMPLE_VOCAB", **options: Any
) -> PromptTuningConfig:
    """PEFT's prompt tuning; it starts from the vocabulary as ours does (PEFT's own default, RANDOM, trains worse)."""
    return PromptTuningConfig(num_virtual_tokens=num_virtual_tokens, prompt_tuning_init=prompt_tuning_init, **options)


def peft_p_tuning(num_virtual_tokens: int = 20, **options: Any) -> PromptEncoderConfig:
    """PEFT's p-tuning: virtual tokens that a small network makes from free embeddings."""
    return PromptEncoderConfig(num_virtual_tokens=num_virtual_tokens, **options)


def peft_prefix_tuning(num_virtual_tokens: int = 20, **options: Any) -> PrefixTuningConfig:
    """PEFT's prefix tuning: free keys and values at every layer."""
    return PrefixTuningConfig(num_virtual_tokens=num_virtual_tokens, **options)


def peft_lora(r: int = 8, lora_alpha: int = 16, **options: Any) -> LoraConfig:
    """PEFT's LoRA on the modules that PEFT chooses for the family."""
    return LoraConfig(r=r, lora_alpha=lora_alpha, **options)


def peft_ia3(**options: Any) -> IA3Config:
    """PEFT's IA3: vectors that scale keys, values and the feed-forward activations."""
    return IA3Config(**options)
