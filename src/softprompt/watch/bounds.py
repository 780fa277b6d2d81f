"""How far a prompt stands from text, and prompted states from unprompted ones: bounds in nats, watched over training."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from .._types import SoftPromptError
from ..data import Collate, limited
from ..objectives import HeadInformation, ObjectiveSet, PromptedOutput, RepresentationInformation, info_nce
from ..tuner import SoftPromptModel, evaluating, prompts_of
from ._base import Watched, Watcher

ROWS, STEPS, RATE = 128, 100, 1e-2


def information(model: PeftModel, fit: Dataset, held: Dataset, collate: Collate, seed: int = 0) -> dict[str, float]:
    """Estimate lower bounds of two divergences of the active prompt, in nats.

    ::

        KL(positive || candidates) >= log(1 + K) - E[-log softmax of the positive among K candidates]

    "head" is the divergence of the prompt from the row's own tokens, as the head's weights tell them apart: the scores
    of `HeadInformation`, the soft maximum over virtual tokens, with nothing to fit. "representation" is the divergence of prompted from unprompted states: a
    fresh critic of `RepresentationInformation` is fitted on ``fit`` and read on ``held``. With some virtual tokens it is near its ceiling before
    any training (log of all candidates), and then tells no two prompts apart. Neither the model nor the random state changes.

    The first is about one prompt, a point, whose divergence from tokens has no bound: the figure says how well this head tells
    them apart, up to log(1 + K). Its candidates are the tokens of one text, which are no independent draws.

    Neither is mutual information, though the paper calls its losses so: a prompt that is the same for all rows tells nothing
    about a row, and its information is 0 whatever the two figures say. A bound of information needs candidates that are draws
    of the same variable: prompts of other rows (where the prompt is made from the input), or of other runs.

    Args:
        model: a PEFT model with a soft prompt.
        fit, held: encoded rows; the first 128 of each are used.
        collate: makes a batch of rows.
        seed: of critic and noise.

    Returns:
        ``information head``, at most log(1 + tokens of a row), and ``information representation``, at most log(1 + 4 B).

    Raises:
        SoftPromptError: the model has no soft prompt.

    Source: the bound of van den Oord et al. 2018 (arXiv 1807.03748), whose candidates here come from another distribution.
    """
    check_prompted(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with evaluating(model):
            fitted, read = (_observe(model, rows, collate) for rows in (fit, held))
        return {"information head": _head(read), "information representation": _representation(fitted, read)}


def check_prompted(model: nn.Module) -> None:
    """Raise `SoftPromptError` unless the model has a soft prompt to observe."""
    if not isinstance(model, PeftModel) or not isinstance(model.base_model, SoftPromptModel):
        raise without_prompt()


def without_prompt() -> SoftPromptError:
    """The error where there is no soft prompt to observe."""
    return SoftPromptError(
        "track reads the prompt of a softprompt method: expected a PEFT model with a soft prompt, got none."
    )


def _observe(model: PeftModel, rows: Dataset, collate: Collate) -> list[PromptedOutput]:
    columns = [name for name in rows.column_names if name != "unprompted"]
    picked = limited(rows.select_columns(columns), ROWS).to_list()  # dev rows are sorted by length
    state, needs, seen = prompts_of(model), frozenset({"unprompted", "head_rows"}), []
    with torch.no_grad():
        for start in range(0, len(picked), 32):
            batch = {key: value.to(model.device) for key, value in collate(picked[start : start + 32]).items()}
            seen.append(state.observe(model.get_base_model(), needs, **batch))
    return seen


def _head(read: list[PromptedOutput]) -> float:
    objective = HeadInformation()
    bounds = []
    for seen in read:
        positive, negative, valid = objective.compared(seen)
        bounds.append((1 + valid.sum(1)).log() - info_nce(positive, negative, valid))
    return torch.cat(bounds).mean().item()


def _representation(fitted: list[PromptedOutput], read: list[PromptedOutput]) -> float:
    hidden, objective = fitted[0].representation, RepresentationInformation()
    critics = ObjectiveSet([objective], hidden.shape[-1]).critics.to(hidden.device)
    optimizer = torch.optim.Adam(critics.parameters(), RATE)
    with torch.enable_grad():
        for step in range(STEPS):
            optimizer.zero_grad()
            objective(fitted[step % len(fitted)], critics).backward()
            optimizer.step()
    with torch.no_grad():
        bounds = []
        for seen in read:
            positive, negative = objective.compared(seen, critics)
            bounds.append(torch.log(torch.tensor(1.0 + negative.shape[1])) - info_nce(positive, negative).cpu())
    return torch.cat(bounds).mean().item()


class InformationCallback(Watcher):
    """After each evaluation, note `information` in the trainer's log history.

    Args:
        fit, held: encoded rows; the critic is fitted on training rows, the figure is read on dev rows.
        collate: makes a batch of rows.
    """

    def __init__(self, fit: Dataset, held: Dataset, collate: Collate):
        self.fit, self.held, self.collate = fit, held, collate

    @classmethod
    def made_for(cls, run: Watched) -> InformationCallback:
        return cls(run.rows, run.dev, run.collate)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        bounds = information(kwargs["model"], self.fit, self.held, self.collate)
        state.log_history.append({**bounds, "step": state.global_step})
