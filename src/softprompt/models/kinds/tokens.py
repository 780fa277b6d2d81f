"""Rows of words with one tag each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import PeftConfig, PeftType
from torch import Tensor
from transformers import AutoModelForTokenClassification, EvalPrediction, PreTrainedTokenizerBase

from ..._types import IGNORED, SoftPromptError, announce, announce_counts
from ...data import FewRows, Verbalizer, check_words, encode_tokens
from ..completing import Writing
from ..finite import not_finite
from ..tags import OUTSIDE, best_tags, entities, kept_tags, mark_entities, scorer, tag_scores
from ._base import Adapted, Card, Checked, Kind, check_encodable, check_labels, logits_of, long_first


class Tokens(Kind):
    name = "tokens"
    columns = ("tokens", "tags")
    reads = ("tokens", "text")
    plain = "text"
    heads = ("stock",)
    loaders: ClassVar[dict[str, Any]] = {"TOKEN_CLS": AutoModelForTokenClassification}
    pipeline = "token-classification"
    kept = staticmethod(best_tags)

    def choose_head(self, asked: str) -> str:
        if asked == "verbalizer":
            raise SoftPromptError("head='verbalizer' classifies whole texts; for tagged words use head='stock'.")
        if asked == "pooled":
            announce("head=stock", "every word has a tag, so there is nothing to pool")
        return "stock"

    def task_type(self, head: str, encoder_decoder: bool) -> str:
        return "TOKEN_CLS"

    def check_method(self, method: str, config: PeftConfig) -> None:
        super().check_method(method, config)
        if config.peft_type in (PeftType.PROMPT_TUNING, PeftType.P_TUNING):
            raise SoftPromptError(
                f"method {method!r} cannot tag words: PEFT leaves the virtual tokens among the logits, so labels do not fit; use 'prompt_tuning'."
            )

    def encoder(
        self, card: Card, tokenizer: PreTrainedTokenizerBase, verbalizer: Verbalizer | None, encoder_decoder: bool
    ) -> Callable[[Dataset], Dataset]:
        return partial(encode_tokens, tokenizer, max_length=card.max_length)

    def scores(self, names: Sequence[str]) -> list[str]:
        return ["f1", "accuracy", "loss"] if mark_entities(names) else ["accuracy", "loss"]

    def choose_score(self, names: Sequence[str]) -> str:
        if not mark_entities(names):
            announce("score=accuracy", "the tags are no BIO tags, so there are no entities to count")
        return super().choose_score(names)

    def metrics(self, names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
        return scorer(names)

    def for_metric(self, names: Sequence[str], prediction: EvalPrediction) -> tuple[Any, Any]:
        """The names of the tags of each row's words: predicted, and true."""
        true, predicted = ([[names[tag] for tag in row] for row in tags] for tags in kept_tags(prediction))
        return predicted, true

    def read(self, adapted: Adapted, row: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> dict[str, Any]:
        words = _words(row, where, columns.get("tokens", "tokens"), columns.get("text", "text"))
        for word in words:
            check_encodable(word, where)
        return {"tokens": words}

    def predict(self, adapted: Adapted, rows: Sequence[Checked], writing: Writing) -> list[dict[str, Any]]:
        best_of = self._tags(adapted, rows)
        announce_counts(
            f"{{}} words get the tag {OUTSIDE}",
            (sum(best.count(None) for best in best_of),),
            "the model does not see them; raise max_length in training",
        )
        names = adapted.card.label_names
        return [_tagged(names, row["tokens"], best) for (_, row), best in zip(rows, best_of, strict=True)]

    def encoded(self, adapted: Adapted, rows: Sequence[Checked]) -> list[dict[str, Any]]:
        words = [row["tokens"] for _, row in rows]
        places = [list(range(len(own))) for own in words]  # in place of tags: the labels say where each word stands
        encode = self.encoder(adapted.card, adapted.tokenizer, None, encoder_decoder=False)
        table: Any = FewRows({"tokens": words, "tags": places})
        return list(encode(table).to_list())

    def answer(self, adapted: Adapted, row: Checked, encoded: Mapping[str, Any], logits: Tensor) -> dict[str, Any]:
        words = row[1]["tokens"]
        best: list[int | None] = [None] * len(words)
        labels = encoded["labels"]
        for word, tag, finite in zip(labels, best_tags(logits).tolist(), logits.isfinite().all(-1), strict=True):
            if word != IGNORED:
                if not finite:
                    raise not_finite(row[0])
                best[word] = tag
        return _tagged(adapted.card.label_names, words, best)

    def evaluate(self, adapted: Adapted, rows: Dataset, scores: Sequence[str] = ()) -> dict[str, Any]:
        names = adapted.card.label_names
        check_labels((tag for tags in rows["tags"] for tag in tags), names)
        best_of = self._tags(adapted, list(self.numbered(adapted, rows)))
        pairs = [
            [(tag, best) for tag, best in zip(*row, strict=True) if best is not None]
            for row in zip(rows["tags"], best_of, strict=True)
        ]
        true, predicted = ([[pair[side] for pair in row] for row in pairs] for side in (0, 1))
        return {**tag_scores(names, true, predicted), "rows": len(rows)}

    def predicted(self, names: Sequence[str]) -> list[str]:
        return ["tags", "entities"] if mark_entities(names) else ["tags"]

    def example(self, card: Card) -> str:
        return '{"tokens": ["...", "..."]}'

    @torch.no_grad()
    def _tags(self, adapted: Adapted, rows: Sequence[Checked]) -> list[list[int | None]]:
        """The index of each word's tag; None for a word that has no token."""
        encoded = self.encoded(adapted, rows)
        collate = self.collator(adapted.tokenizer)
        best: list[list[int | None]] = [[None] * len(row["tokens"]) for _, row in rows]
        for batch in long_first(encoded, adapted.batch_size):
            inputs = dict(collate([encoded[i] for i in batch]))
            labels = inputs.pop("labels")
            logits = logits_of(adapted, inputs).cpu()
            finite = (logits.isfinite().all(-1) | (labels == IGNORED)).all(-1)
            for i, at, tags, good in zip(batch, labels, best_tags(logits), finite, strict=True):
                if not good:
                    raise not_finite(rows[i][0])
                for word, tag in zip(at.tolist(), tags.tolist(), strict=True):
                    if word != IGNORED:
                        best[i][word] = tag
        return best


def _tagged(names: Sequence[str], words: Sequence[str], best: Sequence[int | None]) -> dict[str, Any]:
    """A row's tags, and the entities that they mark; a word without one is outside of all."""
    tags = [OUTSIDE if tag is None else names[tag] for tag in best]
    if not mark_entities(names):
        return {"tags": tags}
    return {
        "tags": tags,
        "entities": [
            {"type": name, "start": start, "end": end, "text": " ".join(words[start:end])}
            for name, start, end in entities(tags)
        ],
    }


def _words(row: Mapping[str, Any], where: str, column: str, text_column: str) -> list[str]:
    if row.get(column) is not None:
        return check_words(row[column], where)
    if isinstance(row.get(text_column), str):
        return check_words(row[text_column].split(), where)
    raise SoftPromptError(
        f"{where}: expected {column!r} (a list of words) or {text_column!r}; columns are {sorted(map(str, row))}."
    )
