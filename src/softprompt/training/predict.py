"""Use a trained adapter on text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from .._types import SoftPromptError
from ..data import Verbalizer, collator, encode_classification
from .assemble import TaskCard, load, load_tokenizer
from .generate import complete, exact_match


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
        self.tokenizer = load_tokenizer(backbone or self.card.backbone)
        self.model = load(folder, backbone)
        self.verbalizer = Verbalizer.from_dict(self.tokenizer, self.card.verbalizer) if self.card.verbalizer else None

    def predict(self, rows: Sequence[Mapping[str, Any]], max_new_tokens: int = 64) -> list[dict[str, Any]]:
        """Predict each row, in order: ``{"label", "score", "scores"}`` or ``{"completion"}``.

        Args:
            rows: with ``text`` (and ``text_pair``), or ``prompt``.
            max_new_tokens: of a completion.

        Raises:
            SoftPromptError: a row lacks its text.
        """
        if not rows:
            return []
        needed = "text" if self.card.kind == "classification" else "prompt"
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get(needed), str) or not row[needed].strip():
                raise SoftPromptError(
                    f"row {number}: expected a non-empty {needed!r}, got {row.get(needed)!r}; columns are {sorted(row)}."
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

        For completions it is the share that greedy decoding matches exactly.

        Raises:
            SoftPromptError: the rows are of another kind of task, or hold a class that the adapter does not know.
        """
        needed = {"text", "label"} if self.card.kind == "classification" else {"prompt", "completion"}
        if missing := sorted(needed - set(rows.column_names)):
            raise SoftPromptError(
                f"the adapter was trained for {self.card.kind} and needs the columns {sorted(needed)}; missing: {missing}."
            )
        if self.card.kind == "completion":
            return {"accuracy": exact_match(self.model, self.tokenizer, rows, self.card.max_length), "rows": len(rows)}
        if (largest := max(rows["label"], default=0)) >= len(self.card.label_names):
            raise SoftPromptError(
                f"label {largest} is not among the adapter's {len(self.card.label_names)} classes: {', '.join(self.card.label_names)}."
            )
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
                encoded = encode_classification(self.tokenizer, part, max_length=self.card.max_length)
            batch = collate([{k: v for k, v in row.items() if k != "labels"} for row in encoded.to_list()])
            yield from torch.softmax(
                self.model(**{k: v.to(self.model.device) for k, v in batch.items()}).logits.float(), -1
            ).cpu()
