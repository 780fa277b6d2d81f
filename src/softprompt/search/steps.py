"""How the gates of a search step: all on one scale and in competition, or each on a scale of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

GATE_RATES = {"shared": 0.1, "adam": 0.01}
STATE = ("exp_avg", "exp_avg_sq")  # what both optimizers keep beside the step


class SharedScale(Optimizer):
    """Steps of gates alpha [D] on one scale for all, in which the gates compete::

        c_i = g_i - mean_j g_j                           competition: the sum of alpha stays
        m_i = beta1 m_i + (1 - beta1) c_i                exp_avg [D]
        v   = beta2 v + (1 - beta2) mean_j c_j^2         exp_avg_sq, one number
        alpha_i -= rate (m_i / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Between two gates the step differs in proportion to their gradients, so gates are ranked by the size of what they do to
    the loss while they are near the middle, and a step has a root mean square of about ``rate``. A long search drives decoupled gates to 0 and 1:
    they run open whatever their value, so their gradient fades only where they are open. AdamW divides each gate's gradient by its own
    size instead: every gate whose gradient keeps its sign moves by ``rate`` a step, however small that gradient is.

    Args:
        params: the one tensor of gates.
        lr: rate; each step may be given another.
        betas: beta1 and beta2; beta2 remembers the whole of a short search.
        eps: keeps gates in place that have equal gradients, as a single gate always has.

    Differs from the paper: all of it is chosen; the paper (arXiv 2310.20127) does not state how gates step.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step on the gradients that stand at the gates."""
        assert closure is None
        for group in self.param_groups:
            (first_beta, second_beta), rate = group["betas"], group["lr"]
            for logits in group["params"]:
                if logits.grad is None:
                    continue
                state = self.state[logits]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(logits), logits.new_zeros(())
                competing = logits.grad - logits.grad.mean()
                state["step"] += 1
                taken = state["step"].item()
                state["exp_avg"].lerp_(competing, 1 - first_beta)
                state["exp_avg_sq"].lerp_(competing.square().mean(), 1 - second_beta)
                scale = (state["exp_avg_sq"] / (1 - second_beta**taken)).sqrt() + group["eps"]
                logits.sub_(rate / (1 - first_beta**taken) * state["exp_avg"] / scale)


def gate_optimizer(name: str, logits: Tensor, rate: float | None) -> Optimizer:
    """Make the optimizer that a config calls ``name``; None takes its own rate."""
    rate = GATE_RATES[name] if rate is None else rate
    return AdamW([logits], lr=rate, weight_decay=0.0) if name == "adam" else SharedScale([logits], lr=rate)
