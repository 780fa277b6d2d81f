"""Point clouds, and what an objective sees of them."""

import math
from functools import partial

import torch

from softprompt.objectives import PromptedOutput


def made(kind, **fields):
    """The term of an objective, which has no critics."""
    return partial(kind(**fields), critics=torch.nn.ModuleDict())


def seen(*clouds):
    """What a pass shows of a prompt with one cloud per layer, each [P, H] or [B, P, H]."""
    rows = {i: cloud if cloud.dim() == 3 else cloud[None] for i, cloud in enumerate(clouds)}
    tokens = torch.zeros(2, 3, clouds[0].shape[-1])
    return PromptedOutput(rows, tokens, torch.ones(2, 3, dtype=torch.bool), tokens[:, 0])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def broken(*rows, value=math.nan, count=20):
    points = draw(count, 3)
    points[list(rows), 1] = value
    return points
