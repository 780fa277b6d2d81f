"""The model card of a trained adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .._files import write_text
from ..models.task_card import TaskCard
from .options import RunOptions


def write_model_card(folder: Path, options: RunOptions, card: TaskCard, document: dict[str, Any]) -> None:
    """Write ``README.md``: what it is, the import it needs, how to use it, its numbers."""
    info = document["train_info"]
    pipeline, use = {
        "classification": ("text-classification", '{"text": "..."}'),
        "completion": ("text-generation", '{"prompt": "..."}'),
        "tokens": ("token-classification", '{"tokens": ["...", "..."]}'),
    }[card.kind]
    if card.pairs is not None:
        use = '{"text": "...", "text_pair": "..."}'
    head = {
        "library_name": "peft",
        "base_model": card.backbone,
        "tags": ["softprompt", options.method],
        "pipeline_tag": pipeline,
    }
    scores = "\n".join(f"| {key} | {value:.4f} |" for key, value in info.items() if key.startswith(("dev ", "test ")))
    labels = f"Classes: {', '.join(card.label_names)}.\n\n" if card.label_names else ""
    write_text(
        folder / "README.md",
        f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---
# {options.method} on {document["run_info"]["experiment_name"].split("/")[1]}

A soft prompt for the frozen backbone `{card.backbone}`, {info["num_trainable_params"]:,} trained parameters.

{labels}PEFT knows this adapter only after the import of softprompt:

```python
import softprompt

predictor = softprompt.Predictor("path/to/this/folder")
print(predictor.predict([{use}]))
```

| measure | value |
|---|---|
{scores}

Trained with `softprompt train`; every setting is in `run.json`, every number in `result.json`.
""",
    )
