"""Use a trained adapter on text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from .._types import SoftPromptError
from ..data import Task, Verbalizer, collator, encode_classification
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
                raise SoftPromptError(f"row {number}: expected a non-empty {needed!r}, got {row.get(needed)!r}; columns are {sorted(row)}.")
        if self.card.kind == "completion":
            texts = complete(self.model, self.tokenizer, [row["prompt"] for row in rows], self.card.max_length, max_new_tokens)
            return [{"completion": text} for text in texts]
        names, found = self.card.label_names, []
        for scores in self._scores(rows):
            best = int(scores.argmax())
            found.append({"label": names[best], "score": float(scores[best]), "scores": dict(zip(names, scores.tolist()))})
        return found

    def evaluate(self, task: Task, split: str = "test") -> dict[str, float]:
        """Accuracy on a split of ``task``; for completions, the share that is matched exactly.

        Raises:
            SoftPromptError: the task has no such split, is of another kind, or has classes that the adapter does not know.
        """
        rows = {"train": task.train, "dev": task.dev, "test": task.test}.get(split)
        if rows is None:
            raise SoftPromptError(f"the data has no {split!r} split.")
        if task.kind != self.card.kind:
            raise SoftPromptError(f"the adapter was trained for {self.card.kind}, the data is for {task.kind}.")
        if task.kind == "completion":
            return {"accuracy": exact_match(self.model, self.tokenizer, rows, self.card.max_length), "rows": len(rows)}
        if list(task.label_names) != list(self.card.label_names):
            raise SoftPromptError(f"the adapter's classes are {self.card.label_names}, the data's are {task.label_names}; they must agree in order.")
        right = sum(int(scores.argmax()) == label for scores, label in zip(self._scores(rows.to_list()), rows["label"]))
        return {"accuracy": right / len(rows), "rows": len(rows)}

    @torch.no_grad()
    def _scores(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[torch.Tensor]:
        columns = ["text", "text_pair"] if any(row.get("text_pair") is not None for row in rows) else ["text"]
        collate = collator(self.tokenizer, "classification")
        for i in range(0, len(rows), self.batch_size):
            part = Dataset.from_list([{**{c: row.get(c) for c in columns}, "label": 0} for row in rows[i : i + self.batch_size]])
            if self.verbalizer is not None:
                encoded = self.verbalizer.encode(part, max_length=self.card.max_length)
            else:
                encoded = encode_classification(self.tokenizer, part, max_length=self.card.max_length)
            batch = collate([{k: v for k, v in row.items() if k != "labels"} for row in encoded.to_list()])
            yield from torch.softmax(self.model(**{k: v.to(self.model.device) for k, v in batch.items()}).logits.float(), -1).cpu()
