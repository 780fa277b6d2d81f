"""The demo: the main job on what ships with the package: embedded encoder, embedded messages, one table."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..methods import equal_budget
from ..results import environment, write_json
from ..training import RunOptions, train

EPOCHS, LENGTH, CUT = 3, 10, 64
M, R = equal_budget(LENGTH, hidden_size=384, max_positions=CUT)
ARMS: dict[str, dict[str, Any]] = {
    "PEFT prompt tuning, stock head": {"method": "peft:prompt_tuning", "head": "stock", "num_virtual_tokens": LENGTH},
    "PEFT prompt tuning, our head": {"method": "peft:prompt_tuning", "num_virtual_tokens": LENGTH},
    "softprompt prompt tuning": {"method": "prompt_tuning", "num_virtual_tokens": LENGTH},
    "softprompt EPT": {
        "method": "ept",
        "num_virtual_tokens": M,
        "rank": R,
        "max_positions": CUT,
        "space_bottleneck": 4,
    },
}


def run_demo(output: Path, labels: list[str], seed: int, console: Console) -> dict[str, Any]:
    """Run every arm for every label set; prints the table and writes ``demo.json`` into ``output``.

    The folder is the demo's own: runs of an earlier demo in it are replaced.
    """
    rows: list[dict[str, Any]] = []
    for label in labels:
        for name, arm in ARMS.items():
            folder = output / label / "".join(c if c.isalnum() else "-" for c in name)
            if (folder / "run.json").is_file() or (folder / "checkpoints").is_dir():
                shutil.rmtree(folder)
            options = RunOptions.from_flat(
                {
                    "data": "messages",
                    "label_column": label,
                    "seed": seed,
                    "output_dir": str(folder),
                    "num_train_epochs": EPOCHS,
                    "max_length": CUT,
                    "train_sampling_strategy": "group_by_length",
                    **arm,
                }
            )
            started = time.perf_counter()
            with console.status(f"{label}: {name}"):
                info = train(options, progress=False).document["train_info"]
            if info["probe"] and not any(row["label"] == label and row["arm"] == "linear probe" for row in rows):
                rows.append(
                    {
                        "label": label,
                        "arm": "linear probe",
                        "accuracy": info["probe"]["test"],
                        "parameters": None,
                        "seconds": None,
                    }
                )
            rows.append(
                {
                    "label": label,
                    "arm": name,
                    "accuracy": info["test accuracy"],
                    "parameters": info["num_trainable_params"],
                    "seconds": time.perf_counter() - started,
                }
            )
    order = {label: i for i, label in enumerate(labels)}
    rows.sort(key=lambda row: (order[row["label"]], row["arm"] != "linear probe"))
    document = {"rows": rows, "seed": seed, "epochs": EPOCHS, "environment": environment()}
    write_json(output / "demo.json", document)
    console.print(_table(rows))
    return document


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="test accuracy on the embedded messages, frozen all-MiniLM-L6-v2", title_justify="left")
    for column, side in (
        ("label", "left"),
        ("arm", "left"),
        ("accuracy", "right"),
        ("trained parameters", "right"),
        ("seconds", "right"),
    ):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(
            row["label"],
            row["arm"],
            f"{row['accuracy']:.3f}",
            "-" if row["parameters"] is None else f"{row['parameters']:,}",
            "-" if row["seconds"] is None else f"{row['seconds']:.0f}",
        )
    return table
