"""Tell prompt, head and representation apart from candidates: the mutual-information losses of InfoPrompt (Wu et al., NeurIPS
2023, arXiv 2306.04933), whose candidates make them bounds of divergences (see `softprompt.objectives.info_nce`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._types import SoftPromptError, check_choice
from ._base import Objective, PromptedOutput, info_nce

NEGATIVES = ("own_tokens", "gaussian", "batch")
SCORES, ROWS = ("cosine", "dot"), ("classes", "mean")
TEMPERATURE = 0.1
LATENT = 32
CANCELLED = 1e-5  # a mean of rows below this share of the largest is rounding


@dataclass(frozen=True, kw_only=True)
class HeadInformation(Objective):
    """Fit the prompt to the task head: for each row, a virtual token must speak for its class better than its own text does.

    ::

        v_i = sg(head_(y_i) - mean_(c != y_i) head_c)                          the direction of the row's class
        f(x, v) = <x, v> / (|x| |v| T),  F_i = log mean_j exp f(P_j, v_i)      scores="cosine", rows="classes"
        L = mean_i -log softmax(F_i) among itself and f(n, v_i) over the candidates n

    The soft maximum over j lets different virtual tokens speak for different classes: the mean token of a prompt that all rows
    share would be drawn to all classes alike, that is nowhere. The head is what the prompt is fitted to, so the term leaves it
    alone (sg: without its gradient). Where a row has any number of classes, or a number y_i, v is the direction in which its label
    wants the logits to move: ``v_i = sg(mean_c (2 y_ic - 1) head_c)``, and ``v_i = sg(sign(y_i - mean_j y_j) head)`` over the batch.
    Without a label per row (language models, tagged words) v is the mean of the head's rows.

    The paper's own form is ``scores="dot", rows="mean"``: f(x, v) = <x, v> / sqrt(H), v = mean_c head_c, F = f(mean_j P_j, v).
    The class vectors of a softmax regression sum to 0, so there v is 0 on a head that starts from a probe, and the term says
    nothing. What rounding leaves of such a sum counts as 0.

    The candidates n are the real tokens of the same input ("own_tokens"), ``samples`` draws around the detached mean virtual
    token with the spread of its coordinates ("gaussian"), or the mean token of every row of the batch ("batch").

    Args:
        negatives: "own_tokens", "gaussian" or "batch".
        samples: of "gaussian".
        scores: "cosine" or "dot".
        temperature: T.
        rows: "classes" or "mean".
        weight, share, decay, every: as for `Objective`.

    Shapes: P [B, P, H], head [C, H], a scalar in nats.

    Source: InfoPrompt's official code for "own_tokens", "dot" and "mean" (exact). Differs from the paper: cosines, class
    directions (those of flags and numbers, too) and the soft maximum are chosen, as are the other candidates, and that a rest of rounding counts as 0.
    """

    name = "head_information"
    needs = frozenset({"head_rows"})

    weight: float = 0.1
    negatives: str = "own_tokens"
    samples: int = 32
    scores: str = "cosine"
    temperature: float = TEMPERATURE
    rows: str = "classes"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("negatives", self.negatives, NEGATIVES)
        check_choice("rows", self.rows, ROWS)
        check_choice("scores", self.scores, SCORES)

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        return info_nce(*self.compared(seen)).mean()

    def compared(self, seen: PromptedOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores of the positive [B] and of the candidates [B, K], and which candidates count [B, K]."""
        prompt, tokens, real = seen.first_virtual, seen.tokens.float(), seen.real
        directions = self._directions(seen)
        mean, unit = prompt.mean(1, keepdim=True), self.scores == "cosine"
        positive = score(prompt if unit else mean, directions, self.scores, self.temperature)
        positive = positive.logsumexp(1) - math.log(positive.shape[1])
        if self.negatives == "own_tokens":
            candidates = tokens
        elif self.negatives == "gaussian":
            fixed = mean.detach()
            noise = torch.randn(len(mean), self.samples, mean.shape[-1], device=mean.device)
            candidates, real = fixed + noise * fixed.std(-1, keepdim=True), real.new_ones(len(mean), self.samples)
        else:
            counted = real.unsqueeze(-1).to(tokens)
            others = (tokens * counted).sum(1) / counted.sum(1).clamp(min=1)
            candidates, real = others.expand(len(mean), *others.shape), real.any(1).expand(len(mean), -1)
        return positive, score(candidates, directions, self.scores, self.temperature), real

    def _directions(self, seen: PromptedOutput) -> Tensor:
        """Return what each row's prompt is compared with, [B, H]."""
        assert seen.head_rows is not None
        rows, labels = seen.head_rows.float(), seen.labels
        if self.rows == "mean":
            return _mean_row(rows).expand(len(seen.tokens), -1)
        rows = rows.detach()
        if labels is not None and labels.is_floating_point():
            if labels.dim() == 2:
                return (2 * labels - 1).to(rows) @ rows / len(rows)
            return (labels - labels.mean()).sign().to(rows).unsqueeze(1) * rows
        if labels is None or labels.dim() != 1 or len(rows) < 2:
            return _mean_row(rows).expand(len(seen.tokens), -1)
        # head_y - mean of the others = (C head_y - sum) / (C - 1)
        return (len(rows) * rows[labels] - rows.sum(0)) / (len(rows) - 1)


def score(vectors: Tensor, directions: Tensor, how: str, temperature: float) -> Tensor:
    """Score vectors [B, K, H] by one direction per row [B, H]: the cosine over T, or ``<x, v> / sqrt(H)``; returns [B, K]."""
    if how == "cosine":
        vectors, directions = _unit(vectors), _unit(directions)
    return torch.einsum("bkh,bh->bk", vectors, directions) / (
        temperature if how == "cosine" else math.sqrt(vectors.shape[-1])
    )


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1; one of length 0 stays so, without the gradient of 1e12 that `F.normalize` gives it."""
    return F.normalize(vectors, dim=-1) * (vectors != 0).any(-1, keepdim=True)


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
        L = -log softmax(f(W_o z1, c)) among itself and f(W_o z0^(k), c), k = 1..4B

    z1 is drawn from a variational head on the state of the prompted pass, and z0^(k) from the same head on the state of the
    **unprompted** pass of the same input. Gradients reach the prompt through z1 only. f is the cosine over T ("cosine") or
    the product over sqrt(H) ("dot").

    Args:
        scores: "cosine" or "dot".
        temperature: T.
        latent, weight, share, decay, every: as for `LatentObjective`.

    Shapes: states [B, H], a scalar in nats.

    Source: InfoPrompt's official code with "dot" (exact). Differs from the paper: cosines are chosen, which do not depend on the
    size of states and prompts.
    """

    name = "representation_information"
    weight: float = 0.2
    scores: str = "cosine"
    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("scores", self.scores, SCORES)

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        return info_nce(*self.compared(seen, critics)).mean()

    def compared(self, seen: PromptedOutput, critics: nn.ModuleDict) -> tuple[Tensor, Tensor]:
        """Return the scores of the positive [B] and of the candidates [B, 4B]."""
        assert seen.unprompted is not None
        critic, mean = self.critic(critics), seen.first_virtual.detach().mean(1)
        context = critic.context(mean)
        drawn = critic.out(critic.sample(seen.representation, 1))
        bare = critic.out(critic.sample(seen.unprompted, 4 * len(context)))
        both = (score(states, context, self.scores, self.temperature) for states in (drawn, bare))
        positive, negative = both
        return positive[:, 0], negative


@dataclass(frozen=True, kw_only=True)
class LatentDivergence(LatentObjective):
    """Keep the variational head near a standard normal: ``KL(q(z | h1) || N(0, I)) + KL(q(z | h0) || N(0, I))``.

    h1 and h0 are the states of the prompted and the unprompted pass.

    Args:
        through_state: let the gradient through h1 into the prompt. It then acts on the prompt more than the information
            terms do, and against the task: the head is new, so the term is a random square penalty on the state.
        latent, weight, share, decay, every: as for `LatentObjective`.

    Shapes: a scalar in nats, the sum over the latent coordinates and the mean over rows.

    Source: InfoPrompt's official code with ``through_state=True`` (exact). Differs from the paper: by default the gradient ends
    at the states (chosen), so the term regularises the head alone.
    """

    name = "latent_divergence"
    weight: float = 0.1
    through_state: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share is not None and not self.through_state:
            raise SoftPromptError(
                "objective 'latent_divergence': share: the term has no gradient on the prompt; expected a weight, or through_state=True."
            )

    def __call__(self, seen: PromptedOutput, critics: nn.ModuleDict) -> Tensor:
        assert seen.unprompted is not None
        critic, prompted = self.critic(critics), seen.representation
        prompted = prompted if self.through_state else prompted.detach()
        return sum(
            (0.5 * (mu.square() + (2 * log_sigma).exp() - 1) - log_sigma).sum(-1).mean()
            for mu, log_sigma in (critic.moments(prompted), critic.moments(seen.unprompted))
        )  # type: ignore[return-value]
