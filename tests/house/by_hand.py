"""Arithmetic one number at a time."""

from __future__ import annotations

import math

import torch


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def mean_of(values):
    return sum(values) / len(values)


def nce(positive, candidates):
    return -math.log(math.exp(positive) / sum(math.exp(score) for score in [positive, *candidates]))


def softmax(scores):
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    return [w / sum(weights) for w in weights]


def states(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
