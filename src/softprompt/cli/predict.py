"""``softprompt predict`` and ``softprompt eval``: a trained adapter on rows."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .._types import SoftPromptError, did_you_mean
from .columns import Settings, Split, columns_set, labelled_rows
from .output import Output, check_path, counted, json_line
from .voice import err, quiet, table

if TYPE_CHECKING:
    from ..models import TaskCard
    from ..serving import Predictor

SHOWN = 5  # rows that are left out and named
MATRIX = 12  # classes of a whole table of confusions; of more, the most frequent ones are listed

BatchSize = Annotated[int | None, typer.Option(min=1, help="Rows at a time; 64 without it, of completions 16.")]
Backbone = Annotated[str | None, typer.Option(help="Another place where the same backbone lies.")]
Adapter = Annotated[
    str,
    typer.Argument(
        help="Folder that `softprompt train` wrote, or a name on the hub: owner/name or owner/name@revision."
    ),
]


def evaluate(
    adapter: Adapter,
    data: Annotated[str, typer.Option(help="File, folder or hub name with labelled rows.")],
    split: Split = None,
    settings: Settings = None,
    score: Annotated[
        list[str] | None,
        typer.Option(
            help="Further score of completions: number_match, rouge1, rouge2 or rougeL (extra rouge); may be repeated."
        ),
    ] = None,
    batch_size: BatchSize = None,
    backbone: Backbone = None,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw which classes are taken for which, as .png or .svg (extra plots).")
    ] = None,
) -> None:
    """Evaluate a trained adapter on labelled rows; prints one JSON line.

    Classes: accuracy, balanced accuracy, macro-F1, each class's precision, recall and F1, and which classes are taken for
    which. Several classes: micro- and macro-F1, and each class's. Numbers: correlations and errors. Completions: the share that is
    matched exactly. Tags: accuracy, and F1 of entities.
    """
    quiet()
    from ..models import TaskCard, adapter_folder
    from ..serving import Predictor

    folder = adapter_folder(adapter)
    card = TaskCard.read(folder)
    if figure is not None:
        _check_figure(figure, card)
    rows, split = labelled_rows(folder, data, split, settings)
    scores = Predictor(folder, backbone, batch_size).evaluate(rows, score or ())
    if "per_class" in scores:
        _show_classes(scores, card.label_names)
    print(
        json.dumps({"data": data, "split": split, **scores}, allow_nan=False)
    )  # first: a figure may fail to be written
    if figure is not None:
        from ..experiments import plots

        plots.save_figure(plots.confusion_figure(scores["confusion"], card.label_names), figure)


def _check_figure(figure: Path, card: TaskCard) -> None:
    """Refuse before anything is computed what could not be drawn or written."""
    if card.kind != "classification":
        raise SoftPromptError(f"--figure: expected an adapter that classifies, got one for {card.kind}.")
    if figure.suffix not in (".png", ".svg"):
        raise SoftPromptError(f"--figure {figure}: expected a name that ends in .png or .svg.")
    if find_spec("matplotlib") is None:
        raise SoftPromptError('--figure needs matplotlib; install it with: pip install "softprompt[plots]"')


def _show_classes(scores: Mapping[str, Any], names: Sequence[str]) -> None:
    def number(value: Any) -> str:
        return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"

    measures = ("precision", "recall", "f1", "support")
    confusion = scores.get("confusion")  # of classes that exclude each other
    lines = [(name, *(number(of_class[key]) for key in measures)) for name, of_class in scores["per_class"].items()]
    err.print(table("classes", ("class", *measures), lines))
    if confusion is None:
        return
    if len(names) <= MATRIX:
        cells = [(name, *(str(confusion.get(name, {}).get(other, 0)) for other in names)) for name in names]
        err.print(table("rows by true (down) and predicted class", ("", *names), cells))
        return
    wrong = [(n, true, other) for true, taken in confusion.items() for other, n in taken.items() if other != true]
    wrong.sort(key=lambda item: -item[0])
    err.print(
        table(
            "the most frequent confusions",
            ("true", "predicted", "rows"),
            [(true, other, str(n)) for n, true, other in wrong[:20]],
        )
    )


def predict(
    adapter: Adapter,
    input: Annotated[
        str, typer.Option(help="jsonl, json, csv, tsv or parquet file; '-' reads jsonl from stdin.")
    ] = "-",
    output: Annotated[
        str,
        typer.Option(
            help="jsonl, csv, tsv or parquet file to write, by its ending; '-' writes jsonl to stdout. It is there when it is "
            "whole; until then, and when the work is stopped, its rows are JSON lines in .NAME.partial beside it. A table "
            "has a column predicted_score_CLASS per class, and csv and tsv hold lists as JSON."
        ),
    ] = "-",
    plain: Annotated[bool, typer.Option("--plain", help="Input lines are plain texts, not JSON.")] = False,
    columns: Annotated[
        str | None, typer.Option(help="Columns of the input to keep, joined by commas, or 'none'; all without it.")
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out and count rows without a readable text.")
    ] = False,
    settings: Settings = None,
    batch_size: BatchSize = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a completion.")] = 64,
    completions: Annotated[
        int, typer.Option(min=1, help="Completions of each prompt; several need a temperature.")
    ] = 1,
    temperature: Annotated[
        float, typer.Option(min=0, help="Draw tokens of a completion; 0 takes the most probable one.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the most probable tokens that together reach it.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text before which a completion ends; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of what is drawn.")] = None,
    backbone: Backbone = None,
) -> None:
    """Predict rows: file or stdin in, one row out for each, in the same order, with predicted_* beside its columns."""
    check_path(output, input)
    quiet()
    from ..models import KINDS, TaskCard, Writing, adapter_folder
    from ..serving import Predictor

    folder = adapter_folder(adapter)
    card = TaskCard.read(folder)
    if plain and settings:
        raise SoftPromptError("--plain: lines of text have no columns; leave --set out.")
    drawing: dict[str, Any] = {
        "completions": completions,
        "temperature": temperature,
        "top_p": top_p,
        "stop": tuple(stop or ()),
        "seed": seed,
    }
    plainly = asdict(Writing())
    asked: dict[str, Any] = {name: value for name, value in drawing.items() if value != plainly[name]}
    Writing(max_new_tokens, **asked)  # what it refuses is refused before anything is loaded
    named = columns_set(settings, KINDS[card.kind].reads)
    types = _parquet_types(input) if output.endswith(".parquet") else {}
    added = ["predicted_completions"] if completions > 1 else _added(card)
    with Output(output, added, types) as sink:
        predictor = Predictor(folder, backbone, batch_size)
        rows = _Rows(predictor, named, None if columns is None else _split(columns), skip_bad_rows, added)
        total, placed = _survey(rows, input, plain)
        waiting: deque[tuple[str, dict[str, Any]]] = deque()  # rows that are read and not yet predicted

        def inputs() -> Iterator[tuple[str, dict[str, Any]]]:
            for where, kept, read in rows.good(placed, err.print):
                waiting.append((where, kept))
                yield where, read

        with _bar() as bar:
            task = bar.add_task("predicting", total=total)
            for prediction in predictor.predict_checked(inputs(), max_new_tokens, **asked):
                where, kept = waiting.popleft()
                sink.write(kept, {f"predicted_{key}": value for key, value in prediction.items()}, where)
                bar.advance(task)
    if rows.skipped:
        err.print(f"{counted(rows.skipped)} skipped")
    if output != "-":
        err.print(f"{counted(sink.rows)} written to {output}", markup=False, soft_wrap=True)


class _Rows:
    """The rows of a source, with the columns that the model reads and those that are kept.

    Args:
        predictor: says which rows are good.
        named: ``*_column`` -> the name that the user gives it.
        keep: the columns to keep; None keeps all.
        skip: whether bad rows are left out, and counted in ``skipped``.
        added: names of the predicted columns.
    """

    def __init__(
        self,
        predictor: Predictor,
        named: Mapping[str, str],
        keep: list[str] | None,
        skip: bool,
        added: Sequence[str],
    ):
        self.predictor, self.named, self.keep, self.skip = predictor, named, keep, skip
        self.taken = {*added, "predicted_scores"}
        self.skipped = 0
        self.there: dict[str, None] = {}

    def good(
        self, placed: Iterable[tuple[str, Any]], say: Callable[..., None] | None = None
    ) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Yield each good row's place, the columns that are kept of it, and what the model reads.

        Raises:
            SoftPromptError: a row is bad, and bad rows are not skipped; or a column has the name of a predicted one.
        """
        self.skipped = 0
        for where, row in placed:
            try:
                if isinstance(row, SoftPromptError):
                    raise row
                read = self.predictor.check(row, where, self._columns(row))
                kept = row if self.keep is None else {name: row[name] for name in self.keep if name in row}
                json_line(kept, where)
            except SoftPromptError as error:
                if not self.skip:
                    raise
                self.skipped += 1
                if say is not None and self.skipped <= SHOWN:
                    say(f"skipped {error}", markup=False, soft_wrap=True)
                continue
            if clash := sorted(self.taken & kept.keys()):
                others = [name for name in row if name not in self.taken]
                raise SoftPromptError(
                    f"{where}: the column {clash[0]!r} has the name of what predict writes; rename it, or leave it out with "
                    f"--columns {','.join(others) or 'none'}."
                )
            self.there |= dict.fromkeys(row)
            yield where, kept, read

    def check_kept(self) -> None:
        """Raise `SoftPromptError` if a column that is to be kept stands in no row that was read."""
        for name in self.keep or ():
            if self.there and name not in self.there:
                raise SoftPromptError(
                    f"--columns: no row has a column {name!r}; columns there: {', '.join(self.there)}."
                    f"{did_you_mean(name, self.there)}"
                )

    def _columns(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return the columns that the model reads: those that the user names, else those of training, else text, prompt and so on."""
        trained = self.predictor.card.columns or {}
        columns = {}
        for name in self.predictor.kind.reads:
            column = self.named.get(key := f"{name}_column") or trained.get(key, name)
            columns[name] = name if key not in self.named and column not in row and name in row else column
        return columns


def _survey(rows: _Rows, source: str, plain: bool) -> tuple[int | None, Iterable[tuple[str, Any]]]:
    """Look at all rows of a file, or at the first of stdin, before anything is predicted; return their number, and all of them."""
    from ..data import open_text, stream_jsonl, stream_rows, stream_texts
    from ..serving.predict import CHUNK

    column = rows.predictor.kind.plain
    if source == "-":
        lines = open_text(sys.stdin)
        placed = stream_texts("stdin", lines, column) if plain else stream_jsonl("stdin", lines)
        first = list(islice(placed, CHUNK * rows.predictor.batch_size))
        for _ in rows.good(first):
            pass
        rows.check_kept()
        return None, chain(first, placed)

    def read() -> Iterator[tuple[str, Any]]:
        if not plain:
            yield from stream_rows(source)
            return
        with open_text(Path(source)) as lines:
            yield from stream_texts(source, lines, column)

    if plain and not Path(source).is_file():  # a pipe can be read only once
        got = "no file" if Path(source).exists() else "no such file"
        raise SoftPromptError(f"{source}: expected a file of lines, got {got}; '-' reads stdin.")
    total = sum(1 for _ in rows.good(read()))
    rows.check_kept()
    return total, read()


def _added(card: TaskCard) -> list[str]:
    """Return the names of the predicted columns of a table."""
    from ..models import KINDS

    return [f"predicted_{name}" for name in KINDS[card.kind].predicted(card.label_names)]


def _parquet_types(source: str) -> dict[str, Any]:
    if not source.endswith(".parquet") or not Path(source).is_file():
        return {}
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        return {field.name: field.type for field in parquet.read_schema(source)}
    except (ArrowException, OSError):
        return {}  # the reader says what is wrong with the file


def _split(columns: str) -> list[str]:
    names = [name.strip() for name in columns.split(",") if name.strip()]
    return [] if names == ["none"] else list(dict.fromkeys(names))


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )
