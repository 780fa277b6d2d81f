"""The model card of a trained adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .._files import write_text
from .options import RunOptions
from .prepare import Prepared

SPLITS = {"dev": "validation", "test": "test"}  # ours, and the hub's


def write_model_card(folder: Path, options: RunOptions, prepared: Prepared, document: dict[str, Any]) -> None:
    """Write ``README.md``: what it is, the import it needs, how to use it, its numbers.

    The numbers of ``document`` also stand in the card's head as a ``model-index``, which the hub reads.
    """
    info, card, kind = document["train_info"], prepared.card, prepared.kind
    title = f"{options.method} on {document['run_info']['experiment_name'].split('/')[1]}"
    measured = {key: value for key, value in info.items() if key.startswith(tuple(f"{name} " for name in SPLITS))}
    head = ModelCardData(
        base_model=card.backbone,
        library_name="peft",
        pipeline_tag=kind.pipeline,
        tags=["softprompt", options.method],
        model_name=title,
        eval_results=_results(prepared, measured),
    )
    scores = "\n".join(f"| {key} | {value:.4f} |" for key, value in measured.items())
    labels = f"Classes: {', '.join(card.label_names)}.\n\n" if card.label_names else ""
    text = f"""# {title}

A soft prompt for the frozen backbone `{card.backbone}`, {info["num_trainable_params"]:,} trained parameters.

{labels}PEFT knows this adapter only after the import of softprompt:

```python
import softprompt

predictor = softprompt.Predictor("path/to/this/folder")
print(predictor.predict([{kind.example(card)}]))
```

| measure | value |
|---|---|
{scores}

Trained with `softprompt train`; every setting is in `run.json`, every number in `result.json`.
"""
    write_text(folder / "README.md", str(ModelCard(f"---\n{head.to_yaml()}\n---\n{text}")))


def _results(prepared: Prepared, measured: dict[str, float]) -> list[EvalResult]:
    """The scores of a run in the hub's words; data that lie on a disk go by the name of their task."""
    origin, name = prepared.task.origin, prepared.task.name
    results = []
    for key, value in measured.items():
        split, _, metric = key.partition(" ")
        results.append(
            EvalResult(
                task_type=prepared.kind.pipeline,
                dataset_type=name if origin["path"] else origin["source"],
                dataset_name=name,
                dataset_split=SPLITS[split],
                metric_type=metric,
                metric_value=value,
            )
        )
    return results
