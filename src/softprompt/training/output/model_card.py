"""The model card of a trained adapter, on this machine and on the hub."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..._files import write_text
from ...data.find import EMBEDDED_DATA
from ...models import EMBEDDED
from ...models.embedded import PACKAGES
from ...models.hub import CARD_FILE
from ...models.places import is_folder, is_path
from ..keys.options import RunOptions
from ..prepare import Prepared

SPLITS = {"dev": "validation", "test": "test"}  # ours, and the hub's
HERE = "path/to/this/folder"
HUB_NAMES = {EMBEDDED: "sentence-transformers/all-MiniLM-L6-v2"}  # embedded backbones that the hub has, too
WIDGET = [{"text": "A short text of your own.", "example_title": "A text"}]  # of nobody's data


def write_model_card(folder: Path, options: RunOptions, prepared: Prepared, document: dict[str, Any]) -> None:
    """Write ``README.md``: what it is, the import it needs, how to use it, its numbers.

    The numbers of ``document`` also stand in the card's head as a ``model-index``, which the hub reads. Of a backbone that is a
    folder the card says the folder's name alone.
    """
    info, card, kind = document["train_info"], prepared.card, prepared.kind
    title = f"{options.method} on {document['run_info']['experiment_name'].split('/')[1]}"
    measured = {key: value for key, value in info.items() if key.startswith(tuple(f"{name} " for name in SPLITS))}
    backbone = Path(card.backbone).name if is_local(card.backbone) else card.backbone
    origin = prepared.task.origin
    of_hub = origin["path"] is None and origin["source"] != EMBEDDED_DATA
    head = ModelCardData(
        base_model=None if is_local(card.backbone) else hub_name(card.backbone),
        datasets=[origin["source"]] if of_hub else None,
        library_name="peft",
        pipeline_tag=kind.pipeline,
        tags=["softprompt", options.method],
        widget=WIDGET,
        model_name=title,
        eval_results=_results(prepared, measured),
    )
    scores = "\n".join(f"| {key} | {value:.4f} |" for key, value in measured.items())
    labels = f"Classes: {', '.join(card.label_names)}.\n\n" if card.label_names else ""
    text = f"""# {title}

{_sentence(backbone)}, {info["num_trainable_params"]:,} trained parameters.

{labels}PEFT knows this adapter only after the import of softprompt:

```python
import softprompt

predictor = softprompt.Predictor("{HERE}")
print(predictor.predict([{kind.example(card)}]))
```

| measure | value |
|---|---|
{scores}

Trained with `softprompt train`; every setting and every number is in `result.json`.
"""
    write_text(folder / CARD_FILE, str(ModelCard(f"---\n{head.to_yaml()}\n---\n{text}")))


def readdressed(text: str, name: str, before: str, backbone: str) -> str:
    """A card as it reads on the hub: it is loaded by its ``name`` there, and its backbone is ``backbone``, no folder any more.

    Args:
        text: of the card.
        name: of the repository.
        before: the backbone as the run was given it.
        backbone: its name on the hub, or that of an embedded one.
    """
    text = text.replace(f'Predictor("{HERE}")', f'Predictor("{name}")')
    text = text.replace(_sentence(Path(before).name), _sentence(backbone))
    card = ModelCard(text)
    if base := hub_name(backbone):
        card.data["base_model"] = base
    else:
        card.data.pop("base_model", None)
    return str(card)


def hub_name(backbone: str) -> str | None:
    """The name of a backbone on the hub; None for an embedded one that the hub has not."""
    return HUB_NAMES.get(backbone) if backbone in PACKAGES else backbone


def is_local(backbone: str) -> bool:
    """Whether a backbone is a folder of this machine."""
    return backbone not in PACKAGES and (is_path(backbone) or is_folder(backbone))


def _sentence(backbone: str) -> str:
    return f"A soft prompt for the frozen backbone `{backbone}`"


def _results(prepared: Prepared, measured: dict[str, float]) -> list[EvalResult]:
    """The scores of a run in the hub's words; data that lie on a disk go by the name of their task."""
    origin, name = prepared.task.origin, prepared.task.name
    results = []
    for key, value in measured.items():
        split, _, metric = key.partition(" ")
        if not math.isfinite(value):  # the card of a run that scored no number says nothing of it
            continue
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
