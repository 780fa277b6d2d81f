"""``softprompt``: train, eval, predict, push, compile, export, serve, inspect, report, methods, options, bench, compare, demo."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .._types import SoftPromptError
from .._version import __version__
from .bench import bench, compare
from .demo import demo
from .forms import compile_, export
from .look import inspect, methods
from .options import options
from .predict import evaluate, predict
from .push import push
from .report import report
from .serve import serve
from .train import train
from .voice import err, is_first

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Soft prompt tuning: steer a frozen language model with a few learned vectors.",
)
for command in (train, predict, push, export, serve, inspect, report, methods, options, bench, compare, demo):
    app.command()(command)
app.command("eval")(evaluate)
app.command("compile")(compile_)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


def run() -> None:
    """Run the command line; a user's error is one message and exit code 2."""
    try:
        app()
    except (SoftPromptError, OSError) as error:  # an OSError names the file and the fault
        which = "error" if is_first() else f"process {os.environ['RANK']}: error"
        err.print(f"{which}: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
