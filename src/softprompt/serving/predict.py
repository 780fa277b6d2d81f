"""Use a trained adapter on text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset

from .._types import SoftPromptError, Tally, did_you_mean
from ..data import Verbalizer
from ..models.assemble import load
from ..models.completing import Writing
from ..models.hub import adapter_folder
from ..models.kinds import KINDS, Checked
from ..models.marked import know_marker
from ..models.places import load_tokenizer
from ..models.task_card import TaskCard

CHUNK = 32  # batches whose rows are read, sorted by length, and predicted together


class Predictor:
    """A trained adapter with its tokenizer and head: rows in, predictions out.

    Args:
        folder: what ``softprompt train`` wrote, or its name on the hub, "owner/name" or "owner/name@revision".
        backbone: another place where the same backbone lies.
        batch_size: rows at a time; None means 64, and 16 for completions.

    Raises:
        SoftPromptError: the folder is no such run, or the adapter does not fit.
    """

    def __init__(self, folder: str | Path, backbone: str | None = None, batch_size: int | None = None):
        folder = adapter_folder(folder)
        self.card = TaskCard.read(folder)
        self.kind = KINDS[self.card.kind]
        self.batch_size = self.kind.batch_size
        if batch_size is not None:
            self.batch_size = _at_least_one("batch_size", batch_size)
        self.tokenizer = load_tokenizer(backbone or self.card.place(folder))
        self.model = load(folder, backbone)
        if (marker := getattr(self.model.active_peft_config, "marker_token_id", None)) is not None:
            know_marker(self.tokenizer, str(self.tokenizer.convert_ids_to_tokens(marker)))
        self.verbalizer = Verbalizer.from_dict(self.tokenizer, self.card.verbalizer) if self.card.verbalizer else None

    def predict(
        self, rows: Sequence[Mapping[str, Any]], max_new_tokens: int = 64, **writing: Any
    ) -> list[dict[str, Any]]:
        """Predict each row, in order.

        A class is ``{"label", "score", "scores"}``, several classes are ``{"labels", "scores"}``, a number is ``{"value"}``, a completion
        or an answer ``{"completion"}`` (``{"completions"}`` where several are asked for), tags are ``{"tags", "entities"}``.

        ``tags`` has one name for each word; a word beyond max_length gets "O", and their number is announced. ``entities``
        is there for BIO tags: ``{"type", "start", "end", "text"}`` with the first word and the one behind the last.

        Args:
            rows: with ``text`` (and ``text_pair``), or ``prompt``, or ``messages``, or ``tokens`` (a list of words; without it
                ``text`` is split at white space).
            max_new_tokens: of a completion.
            **writing: of completions, too: ``temperature``, ``top_p``, ``stop``, ``seed`` and ``completions``; see
                `softprompt.Writing`.

        Raises:
            SoftPromptError: a row lacks its text; nothing is predicted then.
            NonFiniteError: the scores of a row are no finite numbers.
        """
        return list(self.predict_checked(list(self.kind.numbered(self, rows)), max_new_tokens, **writing))

    def stream(
        self, rows: Iterable[Mapping[str, Any]], max_new_tokens: int = 64, **writing: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield what `predict` returns, row by row and in order, without holding all rows: 32 batches are read at a time.

        Raises:
            SoftPromptError: a row lacks its text; the chunks before it have been yielded.
            NonFiniteError: the scores of a row are no finite numbers.
        """
        return self.predict_checked(self.kind.numbered(self, rows), max_new_tokens, **writing)

    def check(self, row: Mapping[str, Any], where: str, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return what the model reads of ``row``: text (and text_pair), prompt, or tokens.

        Args:
            row: column -> value.
            where: what an error calls the place of the row.
            columns: text, text_pair, prompt or tokens -> the name of that column in the row, where it is another one.

        Raises:
            SoftPromptError: a text is missing, empty, no string, or cannot be encoded.
        """
        return self.kind.read(self, row, where, columns or {})

    def predict_checked(
        self, rows: Iterable[Checked], max_new_tokens: int = 64, **writing: Any
    ) -> Iterator[dict[str, Any]]:
        """As `stream`, of rows that `check` returned, each with its place."""
        if unknown := sorted(writing.keys() - {field.name for field in fields(Writing)}):
            known = sorted(field.name for field in fields(Writing))
            raise SoftPromptError(
                f"unknown setting {unknown[0]!r} of a prediction: expected {', '.join(known)}.{did_you_mean(unknown[0], known)}"
            )
        if writing and self.card.head != "lm":
            raise SoftPromptError(
                f"{', '.join(sorted(writing))}: settings of completions, but this adapter is for {self.card.kind}; leave them out."
            )
        return self._chunks(iter(rows), Writing(_at_least_one("max_new_tokens", max_new_tokens), **writing))

    def _chunks(self, rows: Iterator[Checked], writing: Writing) -> Iterator[dict[str, Any]]:
        tally = Tally()
        try:
            while chunk := list(islice(rows, CHUNK * self.batch_size)):
                with tally:
                    predictions = self.kind.predict(self, chunk, writing)
                yield from predictions
        finally:
            tally.say()

    def evaluate(self, rows: Dataset, scores: Sequence[str] = ()) -> dict[str, Any]:
        """Scores on labelled rows, as `softprompt.load_task` and `softprompt.load_rows` give them.

        Classification: "accuracy", "balanced_accuracy", "macro_f1", "per_class" (class -> precision, recall, f1, support) and
        "confusion" (true class -> predicted class -> rows, without zeros). Several classes: "micro_f1", "macro_f1", "accuracy" (rows
        whose classes are all right) and "per_class". Numbers: "pearson", "spearman" and errors. Completions and answers: "accuracy",
        the share that greedy decoding matches exactly. Tagged words: "accuracy", and "f1" where the tags are BIO tags; words beyond max_length are
        not scored, as in training. "rows" is their number.

        Args:
            rows: labelled.
            scores: of completions, further ones: "number_match" (the last number of both texts), "rouge1", "rouge2", "rougeL".

        Raises:
            SoftPromptError: a score is not one of these; the rows are of another kind of task, there are none, or they hold a class that the adapter does
                not know.
            NonFiniteError: the scores of a row are no finite numbers.
        """
        needed = set(self.kind.columns) - self.kind.optional
        if missing := sorted(needed - set(rows.column_names)):
            raise SoftPromptError(
                f"the adapter was trained for {self.card.kind} and needs the columns {sorted(needed)}; missing: {missing}."
            )
        if not len(rows):
            raise SoftPromptError("there are no rows to evaluate.")
        if scores and self.card.head != "lm":
            raise SoftPromptError(
                f"score {scores[0]!r}: only completions take further scores; this adapter is for {self.card.kind}."
            )
        return self.kind.evaluate(self, rows, scores)


def _at_least_one(name: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise SoftPromptError(f"{name}: expected a whole number from 1, got {number!r}.")
    return number
