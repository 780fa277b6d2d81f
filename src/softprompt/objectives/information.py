"""Tell prompt, head and representation apart from candidates: the mutual-information losses of InfoPrompt (Wu et al., NeurIPS
2023, arXiv 2306.04933), whose candidates make them bounds of divergences (see `softprompt.objectives.info_nce`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .._types import check_choice
from ._base import Objective, PromptedOutput, info_nce

NEGATIVES = ("own_tokens", "gaussian", "batch")
LATENT = 32
CANCELLED = 1e-5  # a mean of rows below this share of the largest is rounding


@dataclass(frozen=True, kw_only=True)
class HeadInformation(Objective):
    """Fit the prompt to the task head: its mean virtual token must fit the head better than the candidates do.

    ::

        v = mean_c head_c,  m = mean_j P_j
        L = -log softmax(<m, v> / sqrt(H)) among itself and <n, v> / sqrt(H) over the candidates n

    The candidates n are the real tokens of the same input ("own_tokens"), ``samples`` draws around the detached m with the
    spread of its coordinates ("gaussian"), or the mean token of every row of the batch ("batch").

    Shapes: P [B, P, H], head [C, H], a scalar in nats.

    The class vectors of a softmax regression sum to 0, so v is 0 on a head that starts from a probe, and the term says
    nothing. What rounding leaves of such a sum counts as 0.

    Source: InfoPrompt's official code for "own_tokens" (exact). Differs from the paper: the other candidates are chosen, and
    so is it that a rest of rounding counts as 0.
    """

    name = "head_information"
    needs = frozenset({"head_rows"})

    weight: float = 0.1
    negatives: str = "own_tokens"
    samples: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("negatives", self.negatives, NEGATIVES)

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        return info_nce(*self.scores(seen)).mean()

    def scores(self, seen: PromptedOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores of the positive [B] and of the candidates [B, K], and which candidates count [B, K]."""
        assert seen.head_rows is not None
        head = _mean_row(seen.head_rows.float()) / math.sqrt(seen.head_rows.shape[-1])
        mean = seen.first_virtual.mean(1)
        tokens, real = seen.tokens.float(), seen.real
        if self.negatives == "own_tokens":
            return mean @ head, tokens @ head, real
        if self.negatives == "gaussian":
            fixed = mean.detach().unsqueeze(1)
            noise = torch.randn(len(mean), self.samples, mean.shape[-1], device=mean.device)
            candidates = fixed + noise * fixed.std(-1, keepdim=True)
            return mean @ head, candidates @ head, real.new_ones(len(mean), self.samples)
        share = real.unsqueeze(-1).to(tokens)
        others = (tokens * share).sum(1) / share.sum(1).clamp(min=1)
        return mean @ head, (others @ head).expand(len(mean), -1), real.any(1).expand(len(mean), -1)


def _mean_row(rows: Tensor) -> Tensor:
    """Return the mean [H] of ``rows`` [C, H]; where they cancel up to rounding it is 0, with the same gradient.

    A probe's weight on a feature with a scale of 1e-33, which all-MiniLM-L6-v2 has, is 1e30. What rounding leaves of such a
    sum would be larger than everything else, and its gradient would leave nothing of the others'.
    """
    mean = rows.mean(0)
    rounding = mean.detach().abs() <= CANCELLED * rows.detach().abs().amax(0)
    return mean - torch.where(rounding, mean, 0.0).detach()


class Latent(nn.Module):
    """A variational head: ``z = mu + sigma eps``, where mu and log sigma (clamped to [-2, 10]) are linear in a state h [B, H]."""

    def __init__(self, hidden_size: int, size: int):
        super().__init__()
        self.mu, self.log_sigma = nn.Linear(hidden_size, size), nn.Linear(hidden_size, size)
        self.out = nn.Linear(size, hidden_size, bias=False)
        self.context = nn.Linear(hidden_size, hidden_size)

    def moments(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and log sigma, [B, latent] each."""
        state = state.float()
        return self.mu(state), self.log_sigma(state).clamp(-2, 10)

    def sample(self, state: Tensor, count: int) -> Tensor:
        """Draw ``count`` times per row, [B, count, latent]."""
        mu, log_sigma = self.moments(state)
        noise = torch.randn(len(mu), count, mu.shape[-1], device=mu.device)
        return mu.unsqueeze(1) + log_sigma.exp().unsqueeze(1) * noise


@dataclass(frozen=True, kw_only=True)
class LatentObjective(Objective):
    """An objective that compares prompted with unprompted states through a critic `Latent`; there is one for each size.

    Args:
        latent: number of coordinates of z.
        weight, decay, every: as for `Objective`.
    """

    needs = frozenset({"unprompted"})
    latent: int = LATENT

    @property
    def critic_name(self) -> str:
        return f"latent{self.latent}"

    def critics(self, hidden_size: int) -> dict[str, Callable[[], nn.Module]]:
        return {self.critic_name: lambda: Latent(hidden_size, self.latent)}

    def critic(self, critics: nn.ModuleDict) -> Latent:
        """Return the critic that it reads."""
        return cast(Latent, critics[self.critic_name])


@dataclass(frozen=True, kw_only=True)
class RepresentationInformation(LatentObjective):
    """Fit the prompted representation to the prompt: the prompt must tell what it changed in the state.

    ::

        c = W_p mean_j sg(P_j) + b
        L = -log softmax(<W_o z1, c> / sqrt(H)) among itself and <W_o z0^(k), c> / sqrt(H), k = 1..4B

    z1 is drawn from a variational head on the state of the prompted pass, and z0^(k) from the same head on the state of the
    **unprompted** pass of the same input. Gradients reach the prompt through z1 only.

    Shapes: states [B, H], a scalar in nats.

    Source: InfoPrompt's official code (exact).
    """

    name = "representation_information"
    weight: float = 0.2

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        return info_nce(*self.scores(seen, critics)).mean()

    def scores(self, seen: PromptedOutput, critics: nn.ModuleDict) -> tuple[Tensor, Tensor]:
        """Return the scores of the positive [B] and of the candidates [B, 4B]."""
        assert seen.unprompted is not None
        critic, mean = self.critic(critics), seen.first_virtual.detach().mean(1)
        context = critic.context(mean) * (1 / math.sqrt(mean.shape[-1]))
        drawn = critic.out(critic.sample(seen.representation, 1))
        bare = critic.out(critic.sample(seen.unprompted, 4 * len(context)))
        return torch.einsum("bkh,bh->bk", drawn, context)[:, 0], torch.einsum("bkh,bh->bk", bare, context)


@dataclass(frozen=True, kw_only=True)
class LatentDivergence(LatentObjective):
    """Keep the variational head near a standard normal: ``KL(q(z | h1) || N(0, I)) + KL(q(z | h0) || N(0, I))``.

    h1 and h0 are the states of the prompted and the unprompted pass.

    Shapes: a scalar in nats, the sum over the latent coordinates and the mean over rows.

    Source: InfoPrompt's official code (exact).
    """

    name = "latent_divergence"
    weight: float = 0.1

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        assert seen.unprompted is not None
        critic = self.critic(critics)
        return sum(
            (0.5 * (mu.square() + (2 * log_sigma).exp() - 1) - log_sigma).sum(-1).mean()
            for mu, log_sigma in (critic.moments(seen.representation), critic.moments(seen.unprompted))
        )  # type: ignore[return-value]
