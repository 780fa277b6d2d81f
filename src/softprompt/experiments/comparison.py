"""All tables and figures of a suite's cells, in one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .._files import write_text
from .._types import SoftPromptError, announce, check_choice
from .page import comparison_page
from .records import CELLS, read_cells
from .statistics import Scores, rank
from .suite import selected
from .tables import checkpoints_table, comparison_table, cost_table, mechanism_table, results_table, steps_table


def write_comparison(
    source: str | Path,
    folder: str | Path,
    reference: str | None = None,
    methods: Sequence[str] = (),
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    html: bool = False,
) -> list[Path]:
    """Write a suite's tables ``results``, ``comparison``, ``cost``, ``steps``, ``checkpoints`` and ``mechanisms`` as .md, .tex and .csv, and its figures.

    Figures are written as .png and .svg where matplotlib is installed.

    Args:
        source: ``cells.jsonl``, or the folder that holds it.
        folder: where to write.
        reference: the method that the others are compared with; None takes the first.
        methods, only, skip: choose the cells, see `softprompt.experiments.suite.selected`; methods stand in the given order.
        html: write ``comparison.html``, too, one page with all tables and the curves, which needs no other file.

    Returns:
        The files, in the order in which they are written. A figure that these cells do not allow is announced, with the reason.

    Raises:
        SoftPromptError: there are no finished cells, the reference or a method is unknown, or the choice leaves no cell.
    """
    path = Path(source) / CELLS if Path(source).is_dir() else Path(source)
    lines = list(read_cells(path).values())
    if not lines:
        what = "the file has no cells" if path.is_file() else "there is no such file"
        raise SoftPromptError(f"{path}: expected cells of softprompt bench, but {what}; run a suite first.")
    if not any(line["status"] == "done" for line in lines):
        raise SoftPromptError(
            f"{path}: expected cells of softprompt bench, at least one of them done, got {len(lines)} that failed; run the suite again with --retry-failed."
        )
    there = list(dict.fromkeys(line["method"] for line in lines))
    for method in methods:
        check_choice("method in these results", method, there)
    chosen = [line for line in lines if selected(line, methods, only, skip)]
    if not any(line["status"] == "done" for line in chosen):
        raise SoftPromptError(f"{path}: --method, --only and --skip leave no finished cell of {len(lines)}.")
    scores = Scores(chosen, list(methods) or None)
    reference = scores.methods[0] if reference is None else reference
    check_choice("reference", reference, scores.methods)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "results": results_table(scores),
        "comparison": comparison_table(scores, reference),
        "cost": cost_table(scores, reference),
        "steps": steps_table(scores, reference),
        "checkpoints": checkpoints_table(scores),
        "mechanisms": mechanism_table(scores),
    }
    written = []
    for name, table in tables.items():
        for suffix, text in ((".md", table.markdown()), (".tex", table.latex()), (".csv", table.csv())):
            written.append(folder / f"{name}{suffix}")
            write_text(written[-1], text)
    if html:
        written.append(folder / "comparison.html")
        write_text(written[-1], comparison_page(str(lines[0].get("suite") or path.parent.name), tables, scores))
    return written + _figures(scores, folder, reference)


def _figures(scores: Scores, folder: Path, reference: str) -> list[Path]:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        announce("no figures", 'they need matplotlib; install it with: pip install "softprompt[plots]"')
        return []
    from . import plots

    drawn: dict[str, Callable[[], plots.Figure]] = {
        "parameters": lambda: plots.accuracy_against_parameters(scores),
        "time": lambda: plots.accuracy_against_time(scores, reference),
        "curves": lambda: plots.learning_curves(scores),
        "steps": lambda: plots.steps_figure(scores, reference),
        "ranks": lambda: plots.critical_difference_diagram(rank(scores)),
    }
    written = []
    for name, draw in drawn.items():
        try:
            figure = draw()
        except SoftPromptError as error:
            announce(f"no figure {name!r}", str(error))
            continue
        written += [plots.save_figure(figure, folder / f"{name}{suffix}") for suffix in (".png", ".svg")]
    return written
