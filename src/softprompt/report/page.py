"""One self-contained page about some runs: tables, figures that can be saved, and the structural evolution under a slider."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from .._files import to_json
from .contents import GROUPS, facts_shown, figures_between, figures_of, groups, slug
from .evolution import SHORTEST
from .figures import Figure, colours
from .runs import Run


def page(runs: Sequence[Run]) -> str:
    """The page about ``runs`` as HTML."""
    kinds = colours([run.name for run in runs])
    title = "Runs" if len(runs) > 1 else f"Run {runs[0].name}"
    links = "".join(f'<a href="#run-{i}">{escape(run.name)}</a>' for i, run in enumerate(runs))
    parts = [
        f"<header><h1>{escape(title)}</h1>",
        f'<nav aria-label="runs"><a href="#overview">overview</a>{links}</nav></header><main>',
        '<section id="overview"><h2>Overview</h2>',
        _facts(runs, kinds),
        _groups(runs),
        figure_grid(figures_between(runs, kinds)),
        "</section>",
        *(_run(i, run, kinds) for i, run in enumerate(runs)),
        '</main><footer><p class="quiet">Written by softprompt. This page loads nothing from anywhere.</p></footer>',
    ]
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page: ``parts`` of HTML with the style and the script that figures need; it loads nothing."""
    style, script = (files(__package__).joinpath("assets", f"page.{end}").read_text("utf-8") for end in ("css", "js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body>\n'
        + "\n".join(parts)
        + f"\n<script>\n{script}</script>\n</body></html>\n"
    )


def _run(place: int, run: Run, kinds: dict[str, str]) -> str:
    parts = [f'<section id="run-{place}"><h2><span class="swatch {kinds[run.name]}"></span>{escape(run.name)}</h2>']
    if run.missing:
        parts.append('<ul class="missing">' + "".join(f"<li>{escape(line)}</li>" for line in run.missing) + "</ul>")
    for warning in (run.seen or {}).get("warnings", []):
        parts.append(f'<p class="missing">{escape(warning)}</p>')
    parts.append(figure_grid(figures_of(run)))
    if run.records:
        parts.append(_evolution(run))
    if run.seen and run.seen["tokens"]:
        parts.append(_tokens(run.seen))
    return "\n".join([*parts, "</section>"])


def _facts(runs: Sequence[Run], kinds: dict[str, str]) -> str:
    shown = facts_shown(runs)
    head = "".join(f'<th scope="col">{name}</th>' for name in shown.values())
    lines = []
    for i, run in enumerate(runs):
        cells = "".join(_cell(run.facts.get(key)) for key in shown)
        lines.append(
            f'<tr><th scope="row"><span class="swatch {kinds[run.name]}"></span><a href="#run-{i}">{escape(run.name)}</a></th>{cells}</tr>'
        )
    return f'<div class="scroll" tabindex="0" role="region" aria-label="runs"><table><thead><tr><th scope="col">run</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _groups(runs: Sequence[Run]) -> str:
    """Mean, spread and interval of methods that ran with several seeds."""
    lines = groups(runs)
    if not lines:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in GROUPS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<h3>Over seeds</h3><div class="scroll" tabindex="0" role="region" aria-label="over seeds"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div><p class="note">Bootstrap over seeds; of few seeds it is too short.</p>'


def _cell(value: Any) -> str:
    if value is None:
        return "<td>-</td>"
    if isinstance(value, float):
        return f'<td class="number">{value:.3g}</td>' if value >= 1 else f'<td class="number">{value:.3f}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"


def _evolution(run: Run) -> str:
    data = dict(run.evolution)
    if accuracy := run.curves.get("eval_accuracy"):
        data["accuracy"] = accuracy
    last = len(data["steps"]) - 1
    layers = "".join(f'<option value="{escape(layer)}">{escape(layer)}</option>' for layer in data["layers"])
    thinned = "" if data["every"] == 1 else f" Every {data['every']}th of {len(data['all_steps'])} records is drawn."
    tokens = run.records[-1]["prompt"].shape[1]
    pairs, most = tokens * (tokens - 1) // 2, SHORTEST * tokens
    capped = f", of the {most} shortest of {pairs}" if pairs > most else ""
    figures = "".join(
        f'<figure data-part="{name}" data-name="{name}"><figcaption>{caption}</figcaption><svg viewBox="0 0 640 420" role="img"></svg>{_save()}</figure>'
        for name, caption in (
            ("map", "Virtual tokens"),
            ("barcode", "Barcode"),
            ("diagram", "Persistence diagram"),
            ("measures", "Measures over training"),
        )
    )
    return (
        f'<div class="evolution"><h3>Structural evolution</h3><p class="note">The map shows two principal components of all drawn steps together; lengths of edges and bars are those in all dimensions. Dark edges are the minimum spanning tree, light ones the pairs that are at most as far apart as the chosen length{capped}. One bar of H0, which never ends, is left out.{thinned}</p>'
        f'<div class="controls"><button type="button" data-part="play">Play</button><label>Step <input type="range" data-part="step" min="0" max="{last}" value="{last}"></label><output data-part="said"></output>'
        f'<label>Length <input type="range" data-part="scale" min="0" max="100" value="50"></label><output data-part="length"></output><label>Layer <select data-part="layer">{layers}</select></label></div>'
        f'<div class="figures">{figures}</div>{_json(data)}</div>'
    )


def _tokens(seen: dict[str, Any]) -> str:
    worth = any("importance" in token for token in seen["tokens"])
    lines = []
    for token in seen["tokens"]:
        near = ", ".join(f"{n['token']} {n['cosine']:.2f}" for n in token.get("nearest", [])) or "-"
        importance = f'<td class="number">{token["importance"]:+.4f}</td>' if worth else ""
        norm = f"{token['norm']:.3f}" if "norm" in token else "-"
        lines.append(
            f'<tr><td class="number">{token["index"]}</td><td class="number">{norm}</td>{importance}<td>{escape(near)}</td></tr>'
        )
    null = seen.get("null") or {}
    beside = (
        f" Random vectors with the vocabulary's mean and spread have a cosine of {null['mean']:.2f} to their nearest token in the mean, and of {null['largest']:.2f} at most."
        if {"mean", "largest"} <= null.keys()
        else ""
    )
    norms = seen.get("norms") or {}
    sizes = "; ".join(f"{name} {value:.3f}" for name, value in norms.items())
    return (
        f'<h3>What the virtual tokens are near to</h3><p class="note">Nearest tokens explain little of what a prompt does (arXiv 2604.02608).{beside}{" Norms: " + escape(sizes) + "." if sizes else ""}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="virtual tokens"><table><thead><tr><th scope="col" class="number">token</th><th scope="col" class="number">norm</th>{"<th scope=col class=number>worth: loss without it minus with it, nats</th>" if worth else ""}<th scope="col">nearest tokens, cosine</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def figure_grid(figures: Sequence[Figure]) -> str:
    """Figures side by side, each with its note, its numbers, and what saves them."""
    shown = "".join(
        f'<figure data-name="{escape(slug(figure.title))}"><figcaption>{escape(figure.title)}</figcaption>{figure.svg}<p class="note">{escape(figure.note)}</p>{_save() if figure.svg else ""}{_json({"columns": figure.columns, "rows": figure.rows})}</figure>'
        for figure in figures
    )
    return f'<div class="figures">{shown}</div>' if shown else ""


def _save() -> str:
    buttons = "".join(
        f'<button type="button" data-save="{how}">{how.upper()}</button> ' for how in ("svg", "png", "csv")
    )
    return f'<div class="save">{buttons}</div>'


def _json(value: Any) -> str:
    """Data inside a page; no text of a user can end the element."""
    text = to_json(value, separators=(",", ":"), default=str).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'
