"""A trained adapter's folder in another form: compiled, or in a format of other software."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from peft import PeftModel

from .._types import SoftPromptError, check_choice
from ..models import TASK_FILE, TaskCard, adapter_folder, load
from ..tuner import SoftPromptConfig, active_prompt, compile
from .outside import export_gguf, export_onnx, export_peft, export_vllm

COMPILED = "compiled"
FORMATS: dict[str, Callable[[PeftModel, Path, TaskCard | None], str]] = {
    "peft": export_peft,
    "vllm": export_vllm,
    "onnx": export_onnx,
    "gguf": export_gguf,
}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Inside, a folder to write to, which becomes ``folder`` when all went well.

    Raises:
        SoftPromptError: there is something at ``folder`` already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SoftPromptError(f"--output {str(folder)!r}: expected a folder that is new or empty.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SoftPromptError(
            f"--output {str(folder)!r}: expected a folder in which it can be made ({error})."
        ) from error
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        yield Path(partial) / "made"
        (Path(partial) / "made").replace(folder)


def compile_adapter(adapter: str | Path, output: str | Path, backbone: str | None = None) -> SoftPromptConfig:
    """Write the adapter in ``adapter`` as keys and values into ``output``, with its head and its card; see `softprompt.compile`.

    Raises:
        SoftPromptError: no such adapter, or it has no compiled form.
    """
    adapter = adapter_folder(adapter)
    with new_folder(Path(output)) as made:
        model = load(adapter, backbone)
        config = active_prompt(compile(model, COMPILED))[1]
        model.save_pretrained(str(made.parent), selected_adapters=[COMPILED])
        (made.parent / COMPILED).replace(made)
        if (adapter / TASK_FILE).is_file():
            TaskCard.read(adapter).write(made)
    return config


def export_adapter(adapter: str | Path, output: str | Path, to: str, backbone: str | None = None) -> str:
    """Write the adapter in ``adapter`` in the format ``to`` into ``output``; returns what it is there.

    "peft": an adapter of PEFT's own; "vllm": rows of embeddings and a script that builds requests; "onnx": a classifier as one graph;
    "gguf": rows of embeddings and a script for llama.cpp.

    Raises:
        SoftPromptError: an unknown format, no such adapter, or the format cannot hold it.
    """
    check_choice("format", to, tuple(FORMATS))
    adapter = adapter_folder(adapter)
    card = TaskCard.read(adapter) if (adapter / TASK_FILE).is_file() else None
    if card is not None:
        card = replace(card, backbone=backbone or card.place(adapter))
    with new_folder(Path(output)) as made:
        return FORMATS[to](load(adapter, backbone), made, card)
