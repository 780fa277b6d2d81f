"""Use a trained adapter on text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from .._types import IGNORED, SoftPromptError, announce
from ..data import Verbalizer, check_words, collator, encode_classification, encode_tokens
from .assemble import TaskCard, load, load_tokenizer
from .generate import complete, exact_match
from .tags import OUTSIDE, best_tags, entities, mark_entities, tag_scores


class Predictor:
    """A trained adapter with its tokenizer and head: rows in, predictions out.

    Args:
        folder: what ``softprompt train`` wrote.
        backbone: another place where the same backbone lies.
        batch_size: rows at a time.

    Raises:
        SoftPromptError: the folder is no such run, or the adapter does not fit.
    """

    def __init__(self, folder: str | Path, backbone: str | None = None, batch_size: int = 64):
        self.card, self.batch_size = TaskCard.read(folder), batch_size
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
            SoftPromptError: a row lacks its text.
        """
        if not rows:
            return []
        if self.card.kind == "tokens":
            return self._predict_tags([_words(row, f"row {number}") for number, row in enumerate(rows, 1)])
        needed = "text" if self.card.kind == "classification" else "prompt"
        for number, row in enumerate(rows, 1):
            for name in (needed, "text_pair") if self.card.pairs == "apart" else (needed,):
                if not isinstance(row.get(name), str) or not row[name].strip():
                    raise SoftPromptError(
                        f"row {number}: expected a non-empty {name!r}, got {row.get(name)!r}; columns are {sorted(row)}."
                    )
        if self.card.kind == "completion":
            texts = complete(
                self.model, self.tokenizer, [row["prompt"] for row in rows], self.card.max_length, max_new_tokens
            )
            return [{"completion": text} for text in texts]
        names, found = self.card.label_names, []
        for scores in self._scores(rows):
            best = int(scores.argmax())
            found.append(
                {
                    "label": names[best],
                    "score": float(scores[best]),
                    "scores": dict(zip(names, scores.tolist(), strict=True)),
                }
            )
        return found

    def evaluate(self, rows: Dataset) -> dict[str, float]:
        """Accuracy on labelled rows, as `softprompt.load_task` and `softprompt.load_rows` give them.

        For completions it is the share that greedy decoding matches exactly. Tagged words have ``f1`` beside it, where the
        tags are BIO tags; words beyond max_length are not scored, as in training.

        Raises:
            SoftPromptError: the rows are of another kind of task, or hold a class that the adapter does not know.
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
        if self.card.kind == "completion":
            return {"accuracy": exact_match(self.model, self.tokenizer, rows, self.card.max_length), "rows": len(rows)}
        tagged = self.card.kind == "tokens"
        labels = [tag for tags in rows["tags"] for tag in tags] if tagged else rows["label"]
        if (largest := max(labels, default=0)) >= len(self.card.label_names):
            raise SoftPromptError(
                f"label {largest} is not among the adapter's {len(self.card.label_names)} classes: {', '.join(self.card.label_names)}."
            )
        if self.card.pairs == "apart" and "text_pair" not in rows.column_names:
            raise SoftPromptError("the adapter compares two texts: expected a column 'text_pair', got none.")
        if tagged:
            pairs = [
                [(tag, best) for tag, best in zip(*row, strict=True) if best is not None]
                for row in zip(rows["tags"], self._tags(rows["tokens"]), strict=True)
            ]
            true, found = ([[pair[side] for pair in row] for row in pairs] for side in (0, 1))
            return {**tag_scores(self.card.label_names, true, found), "rows": len(rows)}
        right = sum(
            int(scores.argmax()) == label
            for scores, label in zip(self._scores(rows.to_list()), rows["label"], strict=True)
        )
        return {"accuracy": right / len(rows), "rows": len(rows)}

    @torch.no_grad()
    def _scores(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[torch.Tensor]:
        columns = ["text", "text_pair"] if any(row.get("text_pair") is not None for row in rows) else ["text"]
        collate = collator(self.tokenizer, "classification")
        for i in range(0, len(rows), self.batch_size):
            part = Dataset.from_list(
                [{**{c: row.get(c) for c in columns}, "label": 0} for row in rows[i : i + self.batch_size]]
            )
            if self.verbalizer is not None:
                encoded = self.verbalizer.encode(part, max_length=self.card.max_length)
            else:
                encoded = encode_classification(self.tokenizer, part, self.card.max_length, self.card.pairs)
            batch = collate([{k: v for k, v in row.items() if k != "labels"} for row in encoded.to_list()])
            yield from torch.softmax(
                self.model(**{k: v.to(self.model.device) for k, v in batch.items()}).logits.float(), -1
            ).cpu()

    def _predict_tags(self, rows: list[list[str]]) -> list[dict[str, Any]]:
        names, found, missing = self.card.label_names, [], 0
        for words, best in zip(rows, self._tags(rows), strict=True):
            missing += best.count(None)
            tags = [OUTSIDE if tag is None else names[tag] for tag in best]
            prediction: dict[str, Any] = {"tags": tags}
            if mark_entities(names):
                prediction["entities"] = [
                    {"type": kind, "start": start, "end": end, "text": " ".join(words[start:end])}
                    for kind, start, end in entities(tags)
                ]
            found.append(prediction)
        if missing:
            announce(
                f"{missing} words get the tag {OUTSIDE}", "the model does not see them; raise max_length in training"
            )
        return found

    @torch.no_grad()
    def _tags(self, rows: Sequence[Sequence[str]]) -> list[list[int | None]]:
        """The index of each word's tag; None for a word that has no token."""
        places = [list(range(len(words))) for words in rows]  # in place of tags: the labels say where each word stands
        encoded = encode_tokens(
            self.tokenizer, Dataset.from_dict({"tokens": list(rows), "tags": places}), self.card.max_length
        )
        collate = collator(self.tokenizer, "tokens")
        found: list[list[int | None]] = [[None] * len(words) for words in rows]
        for i in range(0, len(encoded), self.batch_size):
            batch = collate(encoded.select(range(i, min(i + self.batch_size, len(encoded)))).to_list())
            places_in_batch = batch.pop("labels")
            best = best_tags(self.model(**{k: v.to(self.model.device) for k, v in batch.items()}).logits).cpu()
            for row, at, tags in zip(found[i:], places_in_batch, best, strict=False):
                for word, tag in zip(at.tolist(), tags.tolist(), strict=True):
                    if word != IGNORED:
                        row[word] = tag
        return found


def _words(row: Mapping[str, Any], where: str) -> list[str]:
    if row.get("tokens") is None and isinstance(row.get("text"), str):
        return check_words(row["text"].split(), where)
    if row.get("tokens") is None:
        raise SoftPromptError(f"{where}: expected 'tokens' (a list of words) or 'text'; columns are {sorted(row)}.")
    return check_words(row["tokens"], where)
