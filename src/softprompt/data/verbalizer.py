"""Classification by a language model: a template with a place for a word, and words that stand for the classes."""

from __future__ import annotations

import difflib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .._types import SoftPromptError, announce, check_choice, did_you_mean
from .encode import announce_cut, beginning_of_text, encode_in_batches
from .labels import as_text
from .read import shown

PIECES = ("one", "mean")
PLACES = ("mask", "next", "first")  # where a word is read: at the mask, as the text goes on, as a decoder begins
PLACEHOLDERS = ("text", "text_pair", "mask")
LINE = "\n"  # no tokenizer makes one token of it and the word behind it


class Verbalizer:
    """Turn rows into texts with one place for a word, and the logits of that word into class logits.

    ``class_logits[c] = mean over words w of class c of logits[w]``, the mean in logit space; with ``pieces="mean"``, ``logits[w]`` of a
    word of several pieces is the mean of theirs at the one mask.

    Args:
        tokenizer: a fast tokenizer; with a mask token where words are read at a mask.
        template: text with the placeholders {text}, {mask} and, for pairs, {text_pair}, as in "{text} It was {mask}.". {mask} is its
            end where no mask is read: "{text} It was {mask}".
        label_words: class name (or whole number) -> one word or several. A word is one token as it would stand in the
            template: with the leading space where the tokenizer's pieces carry it.
        label_names: order of the C classes; None takes the order of ``label_words``.
        pieces: "one" refuses a word of several pieces, "mean" takes it.
        place: where a language model is asked for the word: "mask", in the text (masked); "next", behind it (causal); "first", as
            the first word of the answer (encoder-decoder).

    Attributes:
        token_ids: ``[C][W_c][pieces]``, the tokens of every word.

    Raises:
        SoftPromptError: the template has an unknown placeholder, no {mask} or two, or goes on behind one that is no mask; a word is
            several pieces and "one" is asked for, is not in the vocabulary or stands for two classes; or a class has no words.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        label_words: Mapping[Any, str | Sequence[str]],
        label_names: Sequence[str] | None = None,
        pieces: str = PIECES[0],
        place: str = PLACES[0],
    ):
        check_choice("label_pieces", pieces, PIECES)
        check_choice("place", place, PLACES)
        if place == "mask" and tokenizer.mask_token is None:
            raise SoftPromptError(
                "the tokenizer has no mask token, so it is none of a masked language model: use place='next' for a causal one, place='first' for an encoder-decoder."
            )
        if not tokenizer.is_fast:
            raise SoftPromptError(
                f"{type(tokenizer).__name__} is a slow tokenizer; "
                "texts are cut by its offsets, which only fast ones give."
            )
        self.tokenizer, self.template = tokenizer, template
        self._parts = _parse(template)
        self._fields = {field for _, field in self._parts if field}
        self.label_words = _words(label_words, label_names)
        self.label_names = list(self.label_words)
        self.pieces, self.place = pieces, place
        self.mask = str(tokenizer.mask_token) if place == "mask" else ""  # what a text may not hold
        if place != "mask":
            self._check_end()
        self._space = _space_before_mask(self._parts) and (place != "mask" or _pieces_carry_space(tokenizer))
        if self._space:
            self._parts = _without_space_before_mask(self._parts)
        self._check_pieces()
        self.token_ids = [[self._pieces(word) for word in self.label_words[name]] for name in self.label_names]
        self._left_out = False  # it was said that second texts are
        self._check_words()
        self._check_distinct()

    def encode(self, dataset: Dataset, max_length: int) -> Dataset:
        """Encode the columns text (text_pair) and label as ``input_ids [N][<= max_length]`` with one place for a word and labels [N].

        Only the texts are cut (on their right, of a pair the longer first), never the template; the number of cut texts
        is announced. A text that goes on with the word ends without the tokenizer's token of an end.

        Raises:
            SoftPromptError: a column is missing, the template alone fills max_length, or a text holds the mask token, or none at all.
        """
        wanted = [*sorted(self._fields - {"mask"}), "label"]
        if any(name not in dataset.column_names for name in wanted):
            raise SoftPromptError(
                f"template {self.template!r}: expected a dataset with columns {', '.join(wanted)}, "
                f"got {', '.join(dataset.column_names)}."
            )
        if "text_pair" in dataset.column_names and "text_pair" not in self._fields and not self._left_out:
            self._left_out = True
            announce("text_pair is left out", f"the template {self.template!r} has no {{text_pair}}")
        overhead = len(self._tokenized([self._render({})])["input_ids"][0])
        if overhead >= max_length:
            raise SoftPromptError(
                f"max_length={max_length} leaves no room for text: the template takes {overhead} tokens."
            )
        seen = cut = 0

        def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            nonlocal seen, cut
            rows = [
                dict(zip(wanted, values, strict=True)) for values in zip(*(batch[name] for name in wanted), strict=True)
            ]
            for row in rows:
                if self.mask and any(self.mask in row[name] for name in wanted[:-1]):
                    raise SoftPromptError(f"row {seen}: the text holds the mask token {self.mask!r}; remove it there.")
                seen += 1
            encoded = self._tokenized([self._render(row) for row in rows])
            if not all(encoded["input_ids"]):
                first = seen - len(rows) + encoded["input_ids"].index([])
                raise SoftPromptError(f"row {first}: the tokenizer makes no token of its text; remove it.")
            long = [i for i, ids in enumerate(encoded["input_ids"]) if len(ids) > max_length]
            for i in long:
                shorter = self._shorten(rows[i], max_length, max_length - overhead)
                for key, values in self._tokenized([shorter]).items():
                    encoded[key][i] = values[0]
            cut += len(long)
            return {**encoded, "labels": [row["label"] for row in rows]}

        encoded = encode_in_batches(dataset, encode)
        announce_cut(cut, len(dataset), "texts", max_length, "with the template they")
        return encoded

    def word_positions(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Int[Tensor, "batch seq"] | None = None
    ) -> Int[Tensor, " batch"]:
        """Return the position [B] of each example whose logits are those of its word: of the mask, of the last token ("next"), or 0
        in a decoder ("first").

        Raises:
            SoftPromptError: an example has no mask or several.
        """
        if self.place == "first":
            return input_ids.new_zeros(len(input_ids))
        if self.place == "next":
            real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            return (real * torch.arange(input_ids.shape[1], device=input_ids.device)).argmax(1)
        is_mask = input_ids == self.tokenizer.mask_token_id
        counts = is_mask.sum(1)
        if (counts != 1).any():
            first = int((counts != 1).nonzero()[0])
            raise SoftPromptError(
                f"row {first} of the batch has {int(counts[first])} masks, expected one; "
                "encode texts with Verbalizer.encode."
            )
        return is_mask.int().argmax(1)

    def class_logits(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch classes"]:
        """Return class logits [B, C]: the mean over each class's words of the logits [B, V] at `word_positions`."""
        return torch.stack([_mean_of_words(logits.T, words) for words in self.token_ids], dim=1)

    def class_embeddings(self, table: Float[Tensor, "vocab hidden"]) -> Float[Tensor, "classes hidden"]:
        """Return the mean over each class's words of their rows [C, H] in a table of embeddings."""
        return torch.stack([_mean_of_words(table, words) for words in self.token_ids])

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` needs besides the tokenizer, JSON-serialisable."""
        others = {} if self.pieces == PIECES[0] else {"pieces": self.pieces}
        if self.place != PLACES[0]:
            others["place"] = self.place
        return {"template": self.template, "label_words": self.label_words, "label_names": self.label_names, **others}

    @classmethod
    def from_dict(cls, tokenizer: PreTrainedTokenizerBase, saved: Mapping[str, Any]) -> Verbalizer:
        """Rebuild what `to_dict` saved, for ``tokenizer``; raises `SoftPromptError` as the constructor does."""
        pieces, place = saved.get("pieces", PIECES[0]), saved.get("place", PLACES[0])
        return cls(tokenizer, saved["template"], saved["label_words"], saved["label_names"], pieces, place)

    def _tokenized(self, texts: list[str]) -> dict[str, list[list[int]]]:
        if self.place != "next":
            return dict(self.tokenizer(texts, verbose=False))
        start = beginning_of_text(self.tokenizer)
        ids = [start + own for own in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
        return {"input_ids": ids, "attention_mask": [[1] * len(own) for own in ids]}

    def _render(self, row: Mapping[str, Any]) -> str:
        values = {**row, "mask": self.mask}
        text = "".join(literal + (values.get(field, "") if field else "") for literal, field in self._parts)
        return text.rstrip(" ") if self._space and self.place == "next" else text  # the word brings its blank

    def _shorten(self, row: Mapping[str, Any], max_length: int, budget: int) -> str:
        """Render the row with its texts cut to ``budget`` tokens together, or fewer where joining makes new tokens."""
        fields = [field for _, field in self._parts if field not in ("", "mask")]  # a text may stand there twice
        encoded = [
            self.tokenizer(row[f], add_special_tokens=False, return_offsets_mapping=True, verbose=False) for f in fields
        ]
        ends = [[end for _, end in one["offset_mapping"]] for one in encoded]
        while True:
            lengths = _longest_first([len(e) for e in ends], budget)
            kept = {f: min(n for g, n in zip(fields, lengths, strict=True) if g == f) for f in fields}
            texts = {f: row[f][: e[kept[f] - 1]] if kept[f] else "" for f, e in zip(fields, ends, strict=True)}
            rendered = self._render(texts)
            excess = len(self._tokenized([rendered])["input_ids"][0]) - max_length
            if excess <= 0:
                return rendered
            budget = max(0, budget - excess)

    def _pieces(self, word: str) -> list[int]:
        """The tokens of a word as it would stand at its place."""
        word = (" " if self._space and self.place != "first" else "") + word
        if self.place == "next":  # alone, a word of SentencePiece gets a space that the text may not have
            before, whole = (self._bare(text) for text in (LINE, LINE + word))
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self._bare(word)

    def _bare(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _check_end(self) -> None:
        """Raise `SoftPromptError` for what only a mask can have: a text behind it, and several pieces at once."""
        if self._parts[-1][1] != "mask":
            raise SoftPromptError(
                f"template {self.template!r}: a causal or encoder-decoder model reads the text before it says the word: expected {{mask}} as the end of the template."
            )
        if self.pieces != PIECES[0]:
            raise SoftPromptError(
                f"label_pieces={self.pieces!r} reads all pieces of a word at its mask, and a model without masks says one after the other; use words of one piece each."
            )

    def _check_pieces(self) -> None:
        """Raise `SoftPromptError` with all words that cannot be read at the mask: unknown ones, or of several pieces where one is asked for."""
        wrong = []
        for name, words in self.label_words.items():
            for word in words:
                ids = self._pieces(word)
                which = f"label word {word!r} of class {name!r}"
                if not ids or self.tokenizer.unk_token_id in ids:
                    wrong.append((word, f"{which} is not in the tokenizer's vocabulary", "another word"))
                elif len(ids) > 1 and self.pieces == PIECES[0]:
                    pieces = ", ".join(self.tokenizer.convert_ids_to_tokens(ids))
                    wrong.append(
                        (word, f"{which} is {len(ids)} pieces ({pieces}), expected one", "another, more common word")
                    )
        if wrong:
            advice = wrong[0][2] if len(wrong) == 1 else "other, more common words"
            near = self._single_pieces_near([word for word, _, _ in wrong])
            one_piece = f" One piece each: {', '.join(map(repr, near))}." if near else ""
            several = self.place == "mask" and any(" pieces (" in what for _, what, _ in wrong)
            mean = ", or set label_pieces=mean" if several else ""
            raise SoftPromptError(f"{'; '.join(what for _, what, _ in wrong)}; try {advice}{mean}.{one_piece}")

    def _single_pieces_near(self, words: Sequence[str]) -> list[str]:
        """Words of the vocabulary that are spelled like ``words`` and stand at the mask as one token."""
        vocabulary = {piece.lstrip("\u0120\u2581") for piece in self.tokenizer.get_vocab()}  # their marks of a space
        readable = sorted(piece for piece in vocabulary if len(piece) > 2 and piece.isalpha())
        near = (other for word in words for other in difflib.get_close_matches(word, readable, n=3, cutoff=0.7))
        return [word for word in dict.fromkeys(near) if len(self._pieces(word)) == 1]

    def _check_distinct(self) -> None:
        owner: dict[tuple[int, ...], tuple[str, str]] = {}
        for name, ids in zip(self.label_names, self.token_ids, strict=True):
            for word, pieces in zip(self.label_words[name], ids, strict=True):
                token = tuple(sorted(pieces))  # the mean of the same pieces is the same in any order
                if token in owner:
                    other, other_word = owner[token]
                    raise SoftPromptError(
                        f"label words {other_word!r} of class {other!r} and {word!r} of class {name!r} "
                        "are the same tokens; every word may stand for one class, once."
                    )
                owner[token] = (name, word)

    def _check_words(self) -> None:
        """Refuse tokens that no text has as a word."""
        special = set(self.tokenizer.all_special_tokens)
        for name, words in self.label_words.items():
            if taken := next((word for word in words if word in special), None):
                raise SoftPromptError(
                    f"label word {taken!r} of class {name!r} is a special token of the tokenizer, which stands for no word; choose a word."
                )


def _mean_of_words(rows: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """The mean over words of the mean over their pieces of ``rows`` [V, ...]."""
    return torch.stack([rows[torch.tensor(pieces, device=rows.device)].mean(0) for pieces in words]).mean(0)


def _parse(template: str) -> list[tuple[str, str]]:
    """(literal, field) in order; the last field may be empty."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SoftPromptError(f"template {template!r}: {error}; write {{{{ and }}}} for braces.") from error
    fields = [field for _, field, _, _ in parsed if field is not None]
    valid = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    for _, field, spec, conversion in parsed:
        if field is not None and (field not in PLACEHOLDERS or spec or conversion):
            written = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise SoftPromptError(
                f"template {template!r}: unknown placeholder {{{written}}}; expected {valid}."
                f"{did_you_mean(field, PLACEHOLDERS)}"
            )
    if fields.count("mask") != 1:
        raise SoftPromptError(f"template {template!r}: expected exactly one {{mask}}, got {fields.count('mask')}.")
    if "text" not in fields:
        raise SoftPromptError(
            f"template {template!r}: expected a {{text}}, got only {', '.join(filter(None, fields))}."
        )
    return [(literal, field or "") for literal, field, _, _ in parsed]


def _words(label_words: object, label_names: Sequence[str] | None) -> dict[str, list[str]]:
    """Class name -> its words, in the order of ``label_names`` or else of ``label_words``."""
    if not isinstance(label_words, Mapping):
        raise SoftPromptError(
            "label_words: expected class names with their words, like {negative: terrible, positive: great}, "
            f"got {shown(label_words)}."
        )
    given: dict[str, list[str]] = {}
    for key, value in label_words.items():
        name = as_text(key, "label_words")
        several = [value] if isinstance(value, str | int) else list(value) if isinstance(value, list | tuple) else []
        words = [as_text(word, "label_words", f"word of class {name!r}") for word in several]
        if not words or not all(word and word.strip() == word for word in words):
            blank = " A blank in front of the word stands in the template." if any(map(str.strip, words)) else ""
            raise SoftPromptError(
                f"label_words: expected a word or a list of words for class {name!r}, got {shown(value)}.{blank}"
            )
        if name in given:
            raise SoftPromptError(f"label_words: class {name!r} is there twice, as a number and as a text; keep one.")
        given[name] = words
    names = list(given) if label_names is None else [as_text(name, "label_words") for name in label_names]
    missing = [name for name in names if name not in given]
    extra = [name for name in given if name not in names]
    if missing or extra:
        parts = [f"no words for {', '.join(map(repr, missing))}"] if missing else []
        if extra:
            parts.append(f"unknown class {', '.join(map(repr, extra))}")
        near = did_you_mean(extra[0], names) if extra else ""
        raise SoftPromptError(
            f"label_words: {'; '.join(parts)}.{near} Expected one entry for each of {', '.join(names)}."
        )
    if len(names) < 2:
        raise SoftPromptError(f"label_words: expected at least two classes, got {names}.")
    return {name: given[name] for name in names}


def _pieces_carry_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether " a" and "a" are different tokens, as in byte-level BPE (RoBERTa) and unlike WordPiece (BERT)."""
    spaced, bare = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" a", "a"))
    # SentencePiece gives a bare word its space by itself; one more would be a piece of its own.
    return spaced != bare and not tokenizer.convert_ids_to_tokens(bare)[0].startswith("\u2581")


def _space_before_mask(parts: list[tuple[str, str]]) -> bool:
    return any(field == "mask" and literal.endswith(" ") for literal, field in parts)


def _without_space_before_mask(parts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The mask stands for " word", space included, so the space must not be left in front of it."""
    return [(literal.rstrip(" ") if field == "mask" else literal, field) for literal, field in parts]


def _longest_first(lengths: list[int], budget: int) -> list[int]:
    """Shorten the longest until the sum fits ``budget``."""
    lengths = list(lengths)
    while sum(lengths) > budget:
        longest = max(range(len(lengths)), key=lambda i: lengths[i])
        others = sum(lengths) - lengths[longest]
        second = max((n for i, n in enumerate(lengths) if i != longest), default=0)
        # Down to the runner-up at once, then one by one.
        lengths[longest] = max(budget - others, min(second, lengths[longest] - 1), 0)
    return lengths
