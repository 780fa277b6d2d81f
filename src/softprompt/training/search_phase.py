"""The first phase of a run whose prompt has gates: search the layers, select, and leave the backbone as it was."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peft import get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import TrainerCallback, TrainingArguments

from .._files import write_json
from .._types import announce
from ..data import batches, collator
from ..models.classifier import PooledClassifier
from ..models.encoding import batch_kind
from ..models.probe import start_from_probe
from ..search import LayerSearch, SearchCallback, split_for_search
from ..tuner import SoftPromptConfig, is_first_process
from .checkpoints import CHECKPOINTS, newest_checkpoint
from .fit import Report, make_trainer
from .folder import read_json, writing
from .options import RunOptions
from .prepare import Prepared

FOLDER, SELECTION, GATES = "search", "selection.json", "gates.jsonl"


def search_layers(
    options: RunOptions,
    config: SoftPromptConfig,
    prepared: Prepared,
    arguments: TrainingArguments,
    callbacks: list[TrainerCallback],
    folder: Path,
    claim: Callable[[], None],
    report: Report | None = None,
) -> dict[str, Any]:
    """Search the layers of ``config`` on the training rows, or read what an earlier process found.

    Half of the rows train the weights and a head that starts from their probe alone, the other half the gates; the dev
    and test rows are not touched. Writes ``search/gates.jsonl`` (every step), ``search/checkpoints`` and, last,
    ``search/selection.json``, which is also what is returned.

    Raises:
        SoftPromptError: a budget beyond the layers, or too few rows.
    """
    place = folder / FOLDER
    if (place / SELECTION).is_file():
        found = read_json(place / SELECTION, "remove it, and --resume searches again")
        announce(f"layers={found['layers']}", f"{place / SELECTION} of an earlier process")
        return found
    started, rows = time.perf_counter(), prepared.encoded["train"]
    train_rows, gate_rows = split_for_search(rows, options.seed)
    kind = batch_kind(prepared.card, prepared.model)
    probe_head = copy.deepcopy(prepared.model.classifier.state_dict()) if prepared.probe else None
    if prepared.probe and isinstance(prepared.model, PooledClassifier):
        start_from_probe(prepared.model, {"train": train_rows}, prepared.tokenizer)
    model = get_peft_model(prepared.model, replace(config))
    search = LayerSearch(model)
    search.select(config.budget)  # a budget that cannot be met is refused now
    claim()
    callback = SearchCallback(search, gate_rows, collator(prepared.tokenizer, kind), place / GATES, options.seed)
    phase = replace(
        arguments,
        output_dir=str(place / CHECKPOINTS),
        run_name="search",
        eval_strategy="no",
        load_best_model_at_end=False,
        save_strategy="epoch",
        metric_for_best_model=None,
        num_train_epochs=options.search_epochs or arguments.num_train_epochs,
    )
    own = replace(options, early_stopping_patience=None, track="none", cache_below="none")
    trainer = make_trainer(own, prepared, model, phase, [*callbacks, callback], train_rows, report)
    checkpoints = place / CHECKPOINTS
    with writing(folder):
        trainer.train(resume_from_checkpoint=newest_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    scores = None
    if config.layer_score == "ablation":
        scores = search.ablation_scores(
            [
                {key: value.to(model.device) for key, value in batch.items()}
                for batch in batches(gate_rows, prepared.tokenizer, kind)
            ]
        )
    selection = search.select(config.budget, scores)
    # PEFT leaves the trained copies of heads in the model; what comes next starts from the originals
    heads = {
        n: copy.deepcopy(m.original_module)
        for n, m in prepared.model.named_modules()
        if isinstance(m, ModulesToSaveWrapper)
    }
    model.unload()
    for name, original in heads.items():
        prepared.model.get_submodule(name).load_state_dict(original.state_dict())
    if probe_head is not None:
        prepared.model.classifier.load_state_dict(probe_head)
    document = {
        **asdict(selection),
        "layer_score": config.layer_score,
        "task": prepared.task.name,
        "shots": options.shots,
        "seed": options.seed,
        "steps": trainer.state.global_step,
        "rows": {"weights": len(train_rows), "gates": len(gate_rows)},
        "seconds": time.perf_counter() - started,
    }
    if is_first_process():
        with writing(folder):
            write_json(place / SELECTION, document)
    announce(
        f"layers={selection.layers}", f"the {config.budget} best of {len(selection.candidates)} by {config.layer_score}"
    )
    return document
