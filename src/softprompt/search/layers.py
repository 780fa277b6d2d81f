"""Search the layers of a gated prompt: bi-level, of first order, with a separate optimizer for the gates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import reduce
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .._files import append_bytes, to_json, write_text
from .._types import NonFiniteError, SoftPromptError
from ..data import Collate, single_labels, stratified
from ..tuner import active_prompt, evaluating, prompts_of
from .steps import STATE, gate_optimizer


@dataclass(frozen=True)
class Selection:
    """The layers that a search keeps, the scores that chose them, and what else it knows of the candidates.

    Attributes:
        layers: the K kept layers, ascending.
        gates: a_i of every candidate layer.
        scores: the scores that rank the candidates: ablation scores, gates, or summed gradients.
        candidates: the candidate layers, in the order of gates, scores and gradients.
        gradients: sum of -dL_val/dalpha_i over the steps of the search; None where a log does not hold it.
    """

    layers: list[int]
    gates: list[float]
    scores: list[float]
    candidates: list[int]
    gradients: list[float] | None = None


class LayerSearch:
    """Learn the gates of a gated prompt on rows that its weights are not trained on (SPT, arXiv 2310.20127).

    The search solves ``min_alpha L_val(w*(alpha), alpha)`` with ``w* = argmin_w L_train(w, alpha)`` to first order. Two
    steps alternate: one step of your loop for w (generators and head), one `search_step` for alpha. Make the search
    before your optimizer: it leaves the gates without gradient outside `search_step`, so that your optimizer does not
    take them.

    Three scores rank layers afterwards: `ablation_scores` evaluates what each layer does to the validation loss,
    `gates` are where alpha ended, and `gradients` sums -dL_val/dalpha over the steps.

    Args:
        model: a PEFT model with a gated prompt (`softprompt.spt` without layers). Its config's ``gate_optimizer`` says how
            the gates step: "shared" (`softprompt.search.SharedScale`) or "adam" (AdamW without decay).
        learning_rate: rate of the gates; None takes the config's ``learning_rates["gates"]``, or 0.1 for "shared" and
            0.01 for "adam".

    Raises:
        SoftPromptError: the prompt has no gates.

    With several processes each takes its own batch, and all take the same step, on the mean gradient.

    Differs from the paper: the optimizer and its rate are chosen (the paper's group uses 1e-6 beside 1e-4).
    """

    def __init__(self, model: PeftModel, learning_rate: float | None = None):
        self.model = model
        self.prompt, config = active_prompt(model)
        if self.prompt.gate_logits is None:
            raise SoftPromptError(
                f"a search of layers needs a prompt with gates: expected placement='gated', got {config.placement!r}; softprompt.spt() without layers has them."
            )
        rate = config.learning_rates.get("gates") if learning_rate is None else learning_rate
        self.logits = self.prompt.gate_logits.requires_grad_(False)
        self.optimizer = gate_optimizer(config.gate_optimizer, self.logits, rate)
        self.gradient_sum: Tensor | None = torch.zeros_like(self.logits)  # of -dL/dalpha

    @property
    def gates(self) -> list[float]:
        """a_i of every candidate layer."""
        return torch.sigmoid(self.logits.detach().double()).tolist()  # open gates differ in digits that float32 has not

    @property
    def gradients(self) -> list[float] | None:
        """Sum of -dL_val/dalpha_i over the steps; high where opening the gate lowers the loss."""
        return None if self.gradient_sum is None else self.gradient_sum.tolist()

    def search_step(self, batch: Mapping[str, Tensor]) -> float:
        """Take one step of the gates on a validation batch and return its loss.

        Raises:
            NonFiniteError: the loss is not finite; the gates stay as they were.
        """
        # everything else is frozen meanwhile, instead of asking autograd for one gradient: reentrant checkpoints know only backward
        weights = [p for p in self.model.parameters() if p.requires_grad]
        try:
            for parameter in weights:
                parameter.requires_grad_(False)
            self.logits.requires_grad_(True)
            state = prompts_of(self.model)
            with state.plainly(), state.loss_only():  # the loss of the task alone
                loss = self.model(**batch).loss
            loss.backward()
            gradient = torch.zeros_like(self.logits) if self.logits.grad is None else self.logits.grad
        finally:
            self.logits.requires_grad_(False)
            self.logits.grad = None
            for parameter in weights:
                parameter.requires_grad_(True)
        value, gradient = reduce(loss.detach().float().reshape(1), "mean"), reduce(gradient, "mean")
        if not torch.isfinite(value).all() or not torch.isfinite(gradient).all():
            raise NonFiniteError(
                f"expected a finite validation loss in the search of layers, got {value.item()}; lower the learning_rate."
            )
        self.logits.grad = gradient
        self.optimizer.step()
        self.logits.grad = None
        if self.gradient_sum is not None:
            self.gradient_sum -= gradient
        return value.item()

    @torch.no_grad()
    def ablation_scores(self, batches: Sequence[Mapping[str, Tensor]]) -> list[float]:
        """Score each site i: ``S(all) - S(all without i) + S(only i)``, S = -loss, hard gates; higher is better.

        It costs 2 D + 1 evaluations of the batches.

        Raises:
            SoftPromptError: there are no batches, or they have no labels.
        """
        if not batches or any(batch.get("labels") is None for batch in batches):
            raise SoftPromptError(
                f"ablation: expected batches with labels, got {len(batches)} batches; it compares losses."
            )
        everything = range(len(self.prompt.layers))

        def score(sites: Sequence[int]) -> float:
            with self.prompt.subnetwork(sites), prompts_of(self.model).loss_only():
                losses = [self.model(**batch).loss * len(next(iter(batch.values()))) for batch in batches]
            return -float(sum(losses)) / sum(len(next(iter(batch.values()))) for batch in batches)

        with evaluating(self.model):
            whole = score(everything)
            return [whole - score([j for j in everything if j != i]) + score([i]) for i in everything]

    def select(self, budget: int, scores: Sequence[float] | None = None) -> Selection:
        """Keep the ``budget`` layers with the highest ``scores``; None ranks them by their gates.

        `ablation_scores` measure what a layer does, gates follow gradients only: pass them where there are rows.

        Raises:
            SoftPromptError: the budget is not between 1 and the number of candidates, or there is no finite score for each of them.
        """
        candidates = list(self.prompt.layers)
        check_budget(budget, len(candidates))
        ranked = self.gates if scores is None else list(scores)
        if len(ranked) != len(candidates) or not all(map(math.isfinite, ranked)):
            raise SoftPromptError(
                f"scores: expected {len(candidates)} finite numbers, one for each layer, got {ranked}."
            )
        best = sorted(range(len(candidates)), key=lambda i: (-ranked[i], i))[:budget]
        return Selection(sorted(candidates[i] for i in best), self.gates, ranked, candidates, self.gradients)


def check_budget(budget: int, candidates: int) -> None:
    """Raise `SoftPromptError` unless a search can keep ``budget`` of so many layers."""
    if not 1 <= budget <= candidates:
        raise SoftPromptError(
            f"budget: expected 1 to {candidates} layers (the candidates of this backbone), got {budget}."
        )


def split_for_search(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Halve encoded training rows into D_train and D_val, by class and seed.

    Raises:
        SoftPromptError: fewer than two rows, or no class with two.
    """
    if len(rows) < 2:
        raise SoftPromptError(f"a search of layers halves the training rows: expected at least 2, got {len(rows)}.")
    labels = single_labels(list(rows["labels"]))
    held = stratified(labels, len(rows) // 2, seed)
    if not held:
        raise SoftPromptError(
            f"a search of layers halves the training rows by class: expected at least two rows of some class, got {len(rows)} rows of {len(set(labels))} classes."
        )
    rest = sorted(set(range(len(rows))) - set(held))
    return rows.select(rest), rows.select(held)


class SearchCallback(TrainerCallback):
    """Alternate with any `transformers.Trainer`: after each of its steps for w, one step for the gates.

    Every step writes a line of ``log`` (step, validation loss, gates, summed gradients, and the optimizer's moments),
    from which a resumed trainer goes on.

    Args:
        search: the search, made on the trainer's model before the trainer.
        rows: D_val, encoded.
        collate: makes a batch of rows, as the trainer's data_collator does.
        log: a ``.jsonl`` file.
        seed: seed of the order of rows.

    Raises:
        SoftPromptError: when training begins, where the log is that of another ``gate_optimizer``.
    """

    def __init__(
        self,
        search: LayerSearch,
        rows: Dataset,
        collate: Collate,
        log: str | Path,
        seed: int = 0,
    ):
        self.search, self.rows, self.collate, self.log, self.seed = search, rows, collate, Path(log), seed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        entries = [entry for entry in read_gates(self.log) if entry["step"] <= state.global_step]
        if entries:
            self._go_on_from(entries[-1])
        PartialState().wait_for_everyone()  # all have read the log
        if state.is_world_process_zero:
            write_text(self.log, "".join(to_json(entry) + "\n" for entry in entries))

    def _go_on_from(self, entry: Mapping[str, Any]) -> None:
        """Take up the search as a line of the log left it; alpha itself stands in the trainer's checkpoint."""
        search, moments = self.search, dict(zip(STATE, entry["moments"], strict=True))
        wrote = (
            "adam" if isinstance(moments["exp_avg_sq"], list) else "shared"
        )  # one mean square per gate, or one for all
        if (wrote == "adam") != isinstance(search.optimizer, torch.optim.AdamW):
            raise SoftPromptError(
                f"{self.log} was written by a search with gate_optimizer={wrote!r}: give the prompt's config the same, or start the search anew with another log."
            )
        held = {name: search.logits.new_tensor(values) for name, values in moments.items()}
        search.optimizer.state[search.logits] = {"step": torch.tensor(float(entry["step"])), **held}
        summed = entry.get("gradients")  # lines of before it was kept have none
        search.gradient_sum = None if summed is None else search.logits.new_tensor(summed)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        batch = self.batch(state.global_step - 1, args.per_device_train_batch_size)
        half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        with nullcontext() if half is None else torch.autocast(args.device.type, half):
            loss = self.search.search_step({key: value.to(args.device) for key, value in batch.items()})
        if state.is_world_process_zero:
            moments = self.search.optimizer.state[self.search.logits]
            entry = {
                "step": state.global_step,
                "loss": loss,
                "gates": self.search.gates,
                "gradients": self.search.gradients,
                "moments": [moments[name].tolist() for name in STATE],
            }
            append_bytes(self.log, f"{to_json(entry)}\n".encode())

    def batch(self, step: int, size: int) -> Mapping[str, Tensor]:
        """Return this process's batch of a step; the processes take turns in shuffled passes over the rows."""
        world = PartialState()
        size = min(size, -(-len(self.rows) // world.num_processes))
        steps = max(1, len(self.rows) // (size * world.num_processes))  # of one pass
        generator = torch.Generator().manual_seed(self.seed + step // steps)
        order = torch.randperm(len(self.rows), generator=generator).tolist()
        start = (step % steps * world.num_processes + world.process_index) * size
        picked = [order[i % len(order)] for i in range(start, start + size)]
        return self.collate([self.rows[i] for i in picked])


def read_gates(path: str | Path) -> list[dict[str, Any]]:
    """Read the lines that a `SearchCallback` wrote; a line that a kill cut short is left out."""
    entries = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
