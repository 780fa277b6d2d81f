"""What a run of several tasks leaves beside their folders: one ``result.json`` and one ``README.md`` for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..keys.options import RunOptions
from .outcome import noted


def scores_of(document: Mapping[str, Any]) -> dict[str, float]:
    """The scores in a document of a run, by split and name."""
    return {key: value for key, value in document["train_info"].items() if key.startswith(("dev ", "test "))}


def _means(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean over the tasks of each score that all of them have."""
    return {key: sum(own[key] for own in found) / len(found) for key in found[0] if all(key in own for own in found)}


def sum_up(
    options: RunOptions,
    documents: Mapping[str, dict[str, Any]],
    history: Iterable[Mapping[str, Any]],
    total_time: float,
) -> dict[str, Any]:
    """The document of the whole run: means over the tasks, and the figures of each.

    Args:
        options: of the run.
        documents: of the tasks, by name.
        history: the trainer's log.
        total_time: seconds.
    """
    each = {name: document["train_info"] for name, document in documents.items()}
    first = next(iter(documents.values()))
    kept = {"best_checkpoint_step", "num_trainable_params", "file_size", "probe", "beats_probe"}
    return {
        "run_info": {
            **first["run_info"],
            "total_time": total_time,
            "experiment_name": f"{options.method}/{len(each)} tasks-{options.shots or 'all'}-{options.seed}",
            "train_config": options.to_flat(),
        },
        "train_info": {
            **_means([scores_of(document) for document in documents.values()]),
            **{key: first["train_info"][key] for key in ("train_time", "train_steps", "learning_rate", "status")},
            "num_trainable_params": sum(info["num_trainable_params"] for info in each.values()),
            "probe": _means([info["probe"] for info in each.values()]),
            "tasks": {
                name: {**scores_of(documents[name]), **{key: value for key, value in info.items() if key in kept}}
                for name, info in each.items()
            },
            "metrics": noted(history),
        },
        "meta_info": {
            **first["meta_info"],
            "dataset_info": {
                "source": options.data,
                "tasks": {name: document["meta_info"]["dataset_info"] for name, document in documents.items()},
            },
        },
    }


def overview(options: RunOptions, documents: Mapping[str, dict[str, Any]]) -> str:
    """``README.md`` of the whole run."""
    found = {name: scores_of(document) for name, document in documents.items()}
    keys = [key for key in next(iter(found.values())) if all(key in own for own in found.values())]
    lines = [f"| [{name}]({name}) | {' | '.join(f'{own[key]:.4f}' for key in keys)} |" for name, own in found.items()]
    table = "\n".join([f"| task | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|", *lines])
    return f"""# {options.method} on {len(found)} tasks

A soft prompt for each task, trained in one run over one frozen backbone. Each folder is an adapter by itself.

{table}
"""
