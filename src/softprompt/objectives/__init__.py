"""Floor 2: what is minimised beside the task's loss. Objectives read outputs and prompts, never a model."""

from .consistency import consistency as consistency
