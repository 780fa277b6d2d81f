"""Where the jobs of a command run: the options that `softprompt bench` and a search share."""

from __future__ import annotations

from typing import Annotated

import typer

PANEL = "Where cells and trials run"


def _option(text: str, least: int | None = None) -> typer.models.OptionInfo:
    return typer.Option(help=text, min=least, rich_help_panel=PANEL)


ExecutorName = Annotated[str, _option("auto (by --workers), in-process, pool or ray.")]
Workers = Annotated[int, _option("Cells or trials at a time, each in a process of its own.", 1)]
Address = Annotated[str | None, _option("Ray cluster; RAY_ADDRESS or a local one without it.")]
Cpus = Annotated[float, _option("CPUs that a cell or trial reserves (ray).", 0)]
Gpus = Annotated[float, _option("GPUs that a cell or trial reserves (ray).", 0)]
Retries = Annotated[int, _option("Tries again for a cell or trial whose machine was lost (ray).", 0)]
