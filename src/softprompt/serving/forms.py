"""A trained adapter's folder in another form: compiled, or as an adapter of PEFT's own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .._types import SoftPromptError, check_choice
from ..models import TASK_FILE, TaskCard, load
from ..tuner import SoftPromptConfig, active_prompt, compile, export_prefix_tuning, export_prompt_tuning

COMPILED = "compiled"
FORMATS = ("peft",)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Inside, a folder to write to, which becomes ``folder`` when all went well.

    Raises:
        SoftPromptError: there is something at ``folder`` already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SoftPromptError(f"--output {str(folder)!r}: expected a folder that is new or empty.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        yield Path(partial) / "made"
        (Path(partial) / "made").replace(folder)


def compile_adapter(adapter: str | Path, output: str | Path, backbone: str | None = None) -> SoftPromptConfig:
    """Write the adapter in ``adapter`` as keys and values into ``output``, with its head and its card; see `softprompt.compile`.

    Raises:
        SoftPromptError: no such adapter, or it has no compiled form.
    """
    adapter = Path(adapter)
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

    "peft": an input prompt of a language model as PROMPT_TUNING, any other that reads nothing as PREFIX_TUNING.

    Raises:
        SoftPromptError: an unknown format, no such adapter, or the format cannot hold it.
    """
    check_choice("format", to, FORMATS)
    adapter = Path(adapter)
    if (adapter / TASK_FILE).is_file() and (head := TaskCard.read(adapter).head) not in ("lm", "stock"):
        raise SoftPromptError(
            f"{adapter}: its head ({head}) is softprompt's own, which PEFT alone cannot load; expected an adapter that completes text (head=lm) or has a head of transformers (head=stock)."
        )
    with new_folder(Path(output)) as made:
        model = load(adapter, backbone)
        prompt, config = active_prompt(model)
        task = str(getattr(config.task_type, "value", config.task_type))
        delta = prompt.input_delta()
        as_rows = prompt.keys_and_values() is None and config.placement == "input" and delta is None
        if as_rows and not prompt.depends_on_input and task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
            export_prompt_tuning(model, made)
            return "PROMPT_TUNING"
        export_prefix_tuning(model, made)
        return "PREFIX_TUNING"
