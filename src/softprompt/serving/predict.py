"""Use a trained adapter on text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from .._types import IGNORED, SoftPromptError, Tally, announce_counts, did_you_mean
from ..data import SECOND, Verbalizer, check_words, collator, encode_classification, encode_tokens
from ..models.assemble import load
from ..models.completing import BATCH_SIZE as BATCH_TO_COMPLETE
from ..models.completing import complete, exact_match, not_finite
from ..models.places import load_tokenizer
from ..models.scores import classification_scores, per_class_scores
from ..models.tags import OUTSIDE, best_tags, entities, mark_entities, tag_scores
from ..models.task_card import TaskCard

BATCH_SIZE = 64
CHUNK = 32  # batches whose rows are read, sorted by length, and predicted together

# Where a row stands ("row 3", "a.csv, line 4"), and what the model reads of it, as `Predictor.check` returns it.
Checked = tuple[str, dict[str, Any]]


class Predictor:
    """A trained adapter with its tokenizer and head: rows in, predictions out.

    Args:
        folder: what ``softprompt train`` wrote.
        backbone: another place where the same backbone lies.
        batch_size: rows at a time; None means 64, and 16 for completions.

    Raises:
        SoftPromptError: the folder is no such run, or the adapter does not fit.
    """

    def __init__(self, folder: str | Path, backbone: str | None = None, batch_size: int | None = None):
        self.card = TaskCard.read(folder)
        self.batch_size = BATCH_TO_COMPLETE if self.card.kind == "completion" else BATCH_SIZE
        if batch_size is not None:
            self.batch_size = _at_least_one("batch_size", batch_size)
        self.tokenizer = load_tokenizer(backbone or self.card.place(folder))
        self.model = load(folder, backbone)
        self.verbalizer = Verbalizer.from_dict(self.tokenizer, self.card.verbalizer) if self.card.verbalizer else None

    def predict(self, rows: Sequence[Mapping[str, Any]], max_new_tokens: int = 64) -> list[dict[str, Any]]:
        """Predict each row, in order: ``{"label", "score", "scores"}``, ``{"completion"}`` or ``{"tags", "entities"}``.

        ``tags`` has one name for each word; a word beyond max_length gets "O", and their number is announced. ``entities``
        is there for BIO tags: ``{"type", "start", "end", "text"}`` with the first word and the one behind the last.

        Args:
            rows: with ``text`` (and ``text_pair``), or ``prompt``, or ``tokens`` (a list of words; without it ``text`` is
                split at white space).
            max_new_tokens: of a completion.

        Raises:
            SoftPromptError: a row lacks its text; nothing is predicted then.
            NonFiniteError: the scores of a row are no finite numbers.
        """
        return list(self.predict_checked(list(self._numbered(rows)), max_new_tokens))

    def stream(self, rows: Iterable[Mapping[str, Any]], max_new_tokens: int = 64) -> Iterator[dict[str, Any]]:
        """Yield what `predict` returns, row by row and in order, without holding all rows: 32 batches are read at a time.

        Raises:
            SoftPromptError: a row lacks its text; the chunks before it have been yielded.
            NonFiniteError: the scores of a row are no finite numbers.
        """
        return self.predict_checked(self._numbered(rows), max_new_tokens)

    def check(self, row: Mapping[str, Any], where: str, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return what the model reads of ``row``: text (and text_pair), prompt, or tokens.

        Args:
            row: column -> value.
            where: what an error calls the place of the row.
            columns: text, text_pair, prompt or tokens -> the name of that column in the row, where it is another one.

        Raises:
            SoftPromptError: a text is missing, empty, no string, or cannot be encoded.
        """
        names = columns or {}
        if self.card.kind == "tokens":
            words = _words(row, where, names.get("tokens", "tokens"), names.get("text", "text"))
            for word in words:
                _check_encodable(word, where)
            return {"tokens": words}
        needed = ["text"] if self.card.kind == "classification" else ["prompt"]
        pair = names.get("text_pair", "text_pair")
        if self.card.kind == "classification" and (self._wants_pairs() or row.get(pair) is not None):
            needed.append("text_pair")
        asked = {name: names.get(name, name) for name in needed}
        return {name: self._text(row, where, column, asked.values()) for name, column in asked.items()}

    def predict_checked(self, rows: Iterable[Checked], max_new_tokens: int = 64) -> Iterator[dict[str, Any]]:
        """As `stream`, of rows that `check` returned, each with its place."""
        return self._chunks(iter(rows), _at_least_one("max_new_tokens", max_new_tokens))

    def _chunks(self, rows: Iterator[Checked], max_new_tokens: int) -> Iterator[dict[str, Any]]:
        tally = Tally()
        try:
            while chunk := list(islice(rows, CHUNK * self.batch_size)):
                with tally:
                    found = self._predict(chunk, max_new_tokens)
                yield from found
        finally:
            tally.say()

    def evaluate(self, rows: Dataset) -> dict[str, Any]:
        """Scores on labelled rows, as `softprompt.load_task` and `softprompt.load_rows` give them.

        Classification: "accuracy", "balanced_accuracy", "macro_f1", "per_class" (class -> precision, recall, f1, support) and
        "confusion" (true class -> predicted class -> rows, without zeros). Completions: "accuracy", the share that greedy
        decoding matches exactly. Tagged words: "accuracy", and "f1" where the tags are BIO tags; words beyond max_length are
        not scored, as in training. "rows" is their number.

        Raises:
            SoftPromptError: the rows are of another kind of task, there are none, or they hold a class that the adapter does
                not know.
            NonFiniteError: the scores of a row are no finite numbers.
        """
        needed = {
            "classification": {"text", "label"},
            "completion": {"prompt", "completion"},
            "tokens": {"tokens", "tags"},
        }[self.card.kind]
        if missing := sorted(needed - set(rows.column_names)):
            raise SoftPromptError(
                f"the adapter was trained for {self.card.kind} and needs the columns {sorted(needed)}; missing: {missing}."
            )
        if not len(rows):
            raise SoftPromptError("there are no rows to evaluate.")
        if self.card.kind == "completion":
            score = exact_match(self.model, self.tokenizer, rows, self.card.max_length, self.batch_size)
            return {"accuracy": score, "rows": len(rows)}
        tagged, names = self.card.kind == "tokens", self.card.label_names
        labels = [tag for tags in rows["tags"] for tag in tags] if tagged else list(rows["label"])
        if unknown := [label for label in labels if not 0 <= label < len(names)]:
            raise SoftPromptError(
                f"label {max(unknown)} is not among the adapter's {len(names)} classes: {', '.join(names)}."
            )
        if self.card.pairs == "apart" and "text_pair" not in rows.column_names:
            raise SoftPromptError("the adapter compares two texts: expected a column 'text_pair', got none.")
        checked = list(self._numbered(rows))
        if tagged:
            pairs = [
                [(tag, best) for tag, best in zip(*row, strict=True) if best is not None]
                for row in zip(rows["tags"], self._tags(checked), strict=True)
            ]
            true, found = ([[pair[side] for pair in row] for row in pairs] for side in (0, 1))
            return {**tag_scores(names, true, found), "rows": len(rows)}
        predicted = [int(scores.argmax()) for scores in self._scores(checked)]
        counts = Counter(zip(labels, predicted, strict=True))
        return {
            **classification_scores(labels, predicted, names),
            "rows": len(rows),
            "per_class": per_class_scores(labels, predicted, names),
            "confusion": {
                name: {names[j]: counts[i, j] for j in range(len(names)) if counts[i, j]}
                for i, name in enumerate(names)
                if any(true == i for true, _ in counts)
            },
        }

    def _numbered(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Checked]:
        return ((f"row {number}", self.check(row, f"row {number}")) for number, row in enumerate(rows, 1))

    def _wants_pairs(self) -> bool:
        return self.card.pairs == "apart" or bool((self.card.columns or {}).get("text_pair_column"))

    def _text(self, row: Mapping[str, Any], where: str, column: str, asked: Iterable[str]) -> str:
        text = row.get(column)
        if not isinstance(text, str) or not text.strip():
            there = sorted(map(str, row))
            near = "" if column in row else did_you_mean(column, sorted({*there} - {*asked}))
            raise SoftPromptError(
                f"{where}: expected a non-empty {column!r}, got {text!r:.60}; columns are {there}.{near}"
            )
        _check_encodable(text, where)
        if self.verbalizer is not None and self.tokenizer.mask_token in text:
            raise SoftPromptError(
                f"{where}: the text holds the mask token {self.tokenizer.mask_token!r}; remove it there."
            )
        return text

    def _predict(self, rows: Sequence[Checked], max_new_tokens: int) -> list[dict[str, Any]]:
        if self.card.kind == "tokens":
            return self._predict_tags(rows)
        if self.card.kind == "completion":
            places, prompts = [where for where, _ in rows], [row["prompt"] for _, row in rows]
            length = self.card.max_length
            texts = complete(self.model, self.tokenizer, prompts, length, max_new_tokens, self.batch_size, places)
            return [{"completion": text} for text in texts]
        names = self.card.label_names
        return [
            {
                "label": names[int(scores.argmax())],
                "score": float(scores.max()),
                "scores": dict(zip(names, scores.tolist(), strict=True)),
            }
            for scores in self._scores(rows)
        ]

    @torch.no_grad()
    def _scores(self, rows: Sequence[Checked]) -> list[torch.Tensor]:
        """The probabilities [C] of each row."""
        encoded: list[dict[str, Any]] = [{}] * len(rows)
        for columns in (["text"], ["text", "text_pair"]):
            at = [i for i, (_, row) in enumerate(rows) if list(row) == columns]
            if at:
                part = Dataset.from_list([{**rows[i][1], "label": 0} for i in at])
                for i, row in zip(at, self._encode(part).remove_columns("labels").to_list(), strict=True):
                    encoded[i] = row
        found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        collate = collator(self.tokenizer, "classification")
        for batch in self._by_length(encoded):
            logits = self._logits(collate([encoded[i] for i in batch])).float()
            for i, scores, finite in zip(batch, logits.softmax(-1).cpu(), logits.isfinite().all(-1), strict=True):
                if not finite:
                    raise not_finite(rows[i][0])
                found[i] = scores
        return found

    def _encode(self, part: Dataset) -> Dataset:
        if self.verbalizer is not None:
            return self.verbalizer.encode(part, max_length=self.card.max_length)
        return encode_classification(self.tokenizer, part, self.card.max_length, self.card.pairs)

    def _logits(self, batch: Mapping[str, Any]) -> torch.Tensor:
        return self.model(**{name: value.to(self.model.device) for name, value in batch.items()}).logits

    def _by_length(self, encoded: Sequence[Mapping[str, Any]]) -> Iterator[list[int]]:
        """Indices of rows of about one length, a batch at a time; the longest first, so that memory runs out at once."""

        def length(i: int) -> int:
            return max(len(encoded[i]["input_ids"]), len(encoded[i].get(f"{SECOND}input_ids", ())))

        order = sorted(range(len(encoded)), key=length, reverse=True)
        return (order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size))

    def _predict_tags(self, rows: Sequence[Checked]) -> list[dict[str, Any]]:
        names, found, missing = self.card.label_names, [], 0
        for (_, row), best in zip(rows, self._tags(rows), strict=True):
            missing += best.count(None)
            tags = [OUTSIDE if tag is None else names[tag] for tag in best]
            prediction: dict[str, Any] = {"tags": tags}
            if mark_entities(names):
                prediction["entities"] = [
                    {"type": kind, "start": start, "end": end, "text": " ".join(row["tokens"][start:end])}
                    for kind, start, end in entities(tags)
                ]
            found.append(prediction)
        announce_counts(
            f"{{}} words get the tag {OUTSIDE}",
            (missing,),
            "the model does not see them; raise max_length in training",
        )
        return found

    @torch.no_grad()
    def _tags(self, rows: Sequence[Checked]) -> list[list[int | None]]:
        """The index of each word's tag; None for a word that has no token."""
        words = [row["tokens"] for _, row in rows]
        places = [list(range(len(own))) for own in words]  # in place of tags: the labels say where each word stands
        encoded = encode_tokens(
            self.tokenizer, Dataset.from_dict({"tokens": words, "tags": places}), self.card.max_length
        ).to_list()
        collate = collator(self.tokenizer, "tokens")
        found: list[list[int | None]] = [[None] * len(own) for own in words]
        for batch in self._by_length(encoded):
            inputs = collate([encoded[i] for i in batch])
            labels = inputs.pop("labels")
            logits = self._logits(inputs).cpu()
            finite = (logits.isfinite().all(-1) | (labels == IGNORED)).all(-1)
            for i, at, tags, good in zip(batch, labels, best_tags(logits), finite, strict=True):
                if not good:
                    raise not_finite(rows[i][0])
                for word, tag in zip(at.tolist(), tags.tolist(), strict=True):
                    if word != IGNORED:
                        found[i][word] = tag
        return found


def _at_least_one(name: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise SoftPromptError(f"{name}: expected a whole number from 1, got {number!r}.")
    return number


def _words(row: Mapping[str, Any], where: str, column: str, text_column: str) -> list[str]:
    if row.get(column) is not None:
        return check_words(row[column], where)
    if isinstance(row.get(text_column), str):
        return check_words(row[text_column].split(), where)
    raise SoftPromptError(
        f"{where}: expected {column!r} (a list of words) or {text_column!r}; columns are {sorted(map(str, row))}."
    )


def _check_encodable(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SoftPromptError(
            f"{where}: the text holds half of a surrogate pair ({text[error.start]!a}, character {error.start + 1}), which "
            "stands for no character; it was cut there."
        ) from error
