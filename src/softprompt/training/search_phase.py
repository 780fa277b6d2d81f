"""The first phase of a run whose prompt has gates: search the layers on a copy of the model, and select."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import get_peft_model
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from .._documents import read_object
from .._files import write_json
from .._types import announce
from ..data import batches
from ..models.classifier import PooledClassifier
from ..models.hub import GATES_FILE, SELECTION_FILE
from ..models.probe import start_from_probe
from ..search import LayerSearch, SearchCallback, split_for_search
from ..tuner import SoftPromptConfig, is_first_process
from .check import Plan
from .fit import Report, make_trainer
from .loop.trainer import PromptTrainer
from .output.checkpoints import CHECKPOINTS
from .output.folder import SEARCH, writing


class LayerPhase:
    """Search the layers of a plan's prompt on its training rows, or read what an earlier process selected.

    Half of the rows train the weights and a head that starts from their probe alone, the other half the gates; the dev
    and test rows are not touched. Writes ``search/gates.jsonl`` (every step), ``search/checkpoints`` and, last,
    ``search/selection.json``. The plan's own model stays as it is.

    Args:
        plan: of a run that searches.
        callbacks: further ones of the trainer.
        folder: of the run; it is not written to before `run`.
        report: told (what, done, in all) while states are computed.
    """

    def __init__(self, plan: Plan, callbacks: list[TrainerCallback], folder: Path, report: Report | None = None):
        assert isinstance(plan.config, SoftPromptConfig)
        self.plan, self.folder, self.place = plan, folder, folder / SEARCH
        self.config = plan.config
        self._began = time.perf_counter()
        self._made: tuple[PromptTrainer, LayerSearch] | None = None
        if not (self.folder / SELECTION_FILE).is_file():
            self._made = self._make(callbacks, report)

    def run(self) -> dict[str, Any]:
        """Train, and return what stands in ``search/selection.json``; what the search held is let go."""
        if self._made is None:
            selected = read_object(
                self.folder / SELECTION_FILE, "outcome of a search", "remove it, and --resume searches again"
            )
            announce(f"layers={selected['layers']}", f"{self.folder / SELECTION_FILE} of an earlier process")
            return selected
        (trainer, search), self._made = self._made, None
        with writing(self.folder):
            trainer.train(resume_from_checkpoint=self.plan.search_checkpoint)
        plan, config = self.plan, self.config
        train_rows, gate_rows = split_for_search(plan.prepared.encoded["train"], plan.options.seed)
        selection = search.select(config.budget, self._scores(search, gate_rows))
        document = {
            **asdict(selection),
            "layer_score": config.layer_score,
            "gate_optimizer": config.gate_optimizer,
            "task": plan.prepared.task.name,
            "shots": plan.options.shots,
            "seed": plan.options.seed,
            "steps": trainer.state.global_step,
            "rows": {"weights": len(train_rows), "gates": len(gate_rows)},
            "seconds": time.perf_counter() - self._began,
        }
        if is_first_process():
            with writing(self.folder):
                write_json(self.folder / SELECTION_FILE, document)
        announce(
            f"layers={selection.layers}",
            f"the {config.budget} best of {len(selection.candidates)} by {config.layer_score}",
        )
        return document

    def _scores(self, search: LayerSearch, gate_rows: Dataset) -> list[float]:
        """What ranks the layers, by the config's layer_score."""
        if self.config.layer_score == "gates":
            return search.gates
        if self.config.layer_score == "gradient":
            assert search.gradients is not None  # a log of before they were kept is that of another layer_score
            return search.gradients
        prepared, device = self.plan.prepared, search.model.device
        held = batches(gate_rows, prepared.tokenizer, prepared.kind.name)
        return search.ablation_scores([{key: value.to(device) for key, value in batch.items()} for batch in held])

    def _make(self, callbacks: list[TrainerCallback], report: Report | None) -> tuple[PromptTrainer, LayerSearch]:
        plan, prepared, options = self.plan, self.plan.prepared, self.plan.options
        train_rows, gate_rows = split_for_search(prepared.encoded["train"], options.seed)
        base = _on_the_same_weights(prepared.model)
        if prepared.probe and isinstance(base, PooledClassifier):
            start_from_probe(base, {"train": train_rows}, prepared.tokenizer, prepared.kind)
        model = get_peft_model(base, replace(self.config))
        search = LayerSearch(model)
        collate = prepared.kind.collator(prepared.tokenizer)
        alternate = SearchCallback(search, gate_rows, collate, self.folder / GATES_FILE, options.seed)
        arguments = replace(
            plan.arguments,
            output_dir=str(self.place / CHECKPOINTS),
            run_name="search",
            eval_strategy="no",
            load_best_model_at_end=False,
            save_strategy="epoch",
            metric_for_best_model=None,
            num_train_epochs=options.search_epochs or plan.arguments.num_train_epochs,
        )
        own = replace(options, early_stopping_patience=None, track="none", cache_below="none", score_last=False)
        trainer = make_trainer(
            own, prepared, model, arguments, [*callbacks, alternate], plan.fits_head, train_rows, report
        )
        return trainer, search


def _on_the_same_weights(model: PreTrainedModel) -> nn.Module:
    """A model of its own modules on the same tensors, but for a pooled head: a probe writes into that."""
    own = {id(p) for p in model.classifier.parameters()} if isinstance(model, PooledClassifier) else set()
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in own}
    return copy.deepcopy(model, shared)
