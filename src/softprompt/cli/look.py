"""``softprompt inspect`` and ``softprompt methods``: what there is to see."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from .._files import to_json
from .._types import SoftPromptError
from ..catalog import CATALOG
from .columns import Settings, Split, labelled_rows
from .predict import Adapter, Backbone
from .voice import err, quiet, table


def inspect(
    adapter: Adapter,
    backbone: Backbone = None,
    data: Annotated[
        str | None,
        typer.Option(help="File, folder or hub name with labelled rows, to measure each token's importance on."),
    ] = None,
    split: Split = None,
    other: Annotated[list[str] | None, typer.Option(help="Another adapter to compare with; may be repeated.")] = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Look into a trained prompt: nearest words, norms, topology, similarity to others, importance of its tokens, and whether
    the parts of its method act."""
    if data is None and (split or settings):
        raise SoftPromptError(
            "--split and --set are about the rows of --data: expected --data, too; or leave them out."
        )
    quiet()
    from ..models import adapter_folder
    from ..report import look

    rows = None if data is None else labelled_rows(adapter_folder(adapter), data, split, settings)[0]
    seen = look(adapter, backbone, other or [], rows)
    if as_json:
        print(to_json(seen))
        return
    console = Console()
    for warning in seen["warnings"]:
        err.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    tokens = []
    for token in seen["tokens"]:
        near = ", ".join(f"{n['token']} {n['cosine']:.2f}" for n in token.get("nearest", []))
        worth = f"{token['importance']:+.4f}" if "importance" in token else "-"
        tokens.append((str(token["index"]), f"{token['norm']:.3f}" if "norm" in token else "-", worth, near or "-"))
    if tokens:
        console.print(table("virtual tokens", ("token", "norm", "importance", "nearest words, cosine"), tokens))
    facts = [(f"norm: {key}", f"{value:.3f}") for key, value in (seen["norms"] or {}).items()]
    facts += [(f"random rows: {key} cosine", f"{value:.3f}") for key, value in (seen["null"] or {}).items()]
    for layer, values in seen["topology"].items():
        facts += [(f"layer {layer}: {key}", f"{value:.4g}") for key, value in values.items()]
    for near in seen["others"]:
        facts += [(f"{near['adapter']}: {key}", f"{near[key]:.4g}") for key in ("cosine", "wasserstein h0")]
    facts += [(name, value) for name, value in _flat(seen["mechanism"])]
    console.print(table("measures", ("measure", "value"), facts))


def _flat(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of the mechanism, a line each."""
    lines = []
    for name, value in found.items():
        said = name.replace("_", " ")
        if isinstance(value, dict):
            lines += [(f"{said}: {key}", f"{figure:.4g}") for key, figure in value.items()]
        elif isinstance(value, list):
            lines.append((said, ", ".join(f"{figure:.3f}" for figure in value)))
        else:
            lines.append((said, f"{value:.4g}"))
    return lines


def methods(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List every method with its hyper-parameters and paper."""
    if as_json:
        print(
            to_json(
                {
                    m.name: {"summary": m.summary, "paper": m.paper, "parameters": m.parameters}
                    for m in CATALOG.values()
                },
                indent=2,
            )
        )
        return
    lines = [
        (m.name, ", ".join(f"{k}={v}" for k, v in m.parameters.items()), m.paper, m.summary) for m in CATALOG.values()
    ]
    Console().print(table("methods", ("name", "hyper-parameters", "paper", "what it is"), lines))
