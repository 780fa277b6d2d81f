"""Classifiers above a loaded model: what that model was loaded with is not questioned."""

from __future__ import annotations

import pytest
import torch

from house.families import FAMILIES, backbone, close
from softprompt import PooledClassifier


@pytest.mark.parametrize("family", ["gpt-oss", "gemma4"])
def test_a_backbone_of_experts_takes_a_head(family):
    stack = backbone(FAMILIES[family], "base")
    ids = torch.tensor([[7, 8, 9]])
    states = stack(ids).last_hidden_state
    head = PooledClassifier(stack, ["a", "b"], "last")
    close(head(ids).logits, head.classifier(states[:, -1].float()), 1e-5)
