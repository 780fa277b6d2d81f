"""Documents of a folder of text files, as one long array of token ids on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

HELD_OUT = 100  # one document of so many
LONGEST = 20_000  # characters of a piece: a tokenizer takes a whole novel as one text badly
AT_ONCE = 1_000


def documents(folder: Path) -> Iterator[tuple[str, bool]]:
    """Every document (up to a blank line) in pieces of whole lines, and whether it is held out.

    What is held out goes by a hash of the document, so it is the same for every order of files and every size of corpus.
    """
    for path in sorted(folder.rglob("*.txt")):
        for document in path.read_text(encoding="utf-8").split("\n\n"):
            if not document.strip():
                continue
            held = int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) % HELD_OUT == 0
            piece = ""
            for line in document.strip().splitlines():
                if piece and len(piece) + len(line) > LONGEST:
                    yield piece, held
                    piece = ""
                piece += line + "\n"
            yield piece, held


def batches(folder: Path) -> Iterator[list[tuple[str, bool]]]:
    """The pieces of all documents, as many at once as a tokenizer takes well."""
    pieces = documents(folder)
    while some := list(islice(pieces, AT_ONCE)):
        yield some


def text_files(folder: Path) -> dict[str, int]:
    """The files that are read, each with its size: what was made of them is made anew where they change."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*.txt"))}
    if not files:
        raise SystemExit(f"{folder}: expected text files (*.txt), found none; unpack the corpus there.")
    return files


def encoded(folder: Path, tokenizer: PreTrainedTokenizerBase, cache: Path) -> dict[str, np.ndarray]:
    """Token ids of "train" and "validation", uint16, read from ``cache`` where they were written before.

    A document ends with the separator of the tokenizer.
    """
    backend = tokenizer.backend_tokenizer
    whose = hashlib.sha256(backend.to_str().encode()).hexdigest()
    files = text_files(folder)
    if len(tokenizer) > 2**16:
        raise SystemExit(f"expected a vocabulary of at most {2**16}, got {len(tokenizer)}; cut it first.")
    is_of = {"tokenizer": whose, "files": files}
    marker, paths = cache / "corpus.json", {name: cache / f"{name}.bin" for name in ("train", "validation")}
    if not marker.is_file() or json.loads(marker.read_text()) != is_of:
        cache.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        with paths["train"].open("wb") as train, paths["validation"].open("wb") as validation:
            for some in batches(folder):
                rows = backend.encode_batch([text for text, _ in some], add_special_tokens=False)
                for row, (_, held) in zip(rows, some, strict=True):
                    ids = np.array([*row.ids, tokenizer.sep_token_id], dtype=np.uint16)
                    (validation if held else train).write(ids.tobytes())
        marker.write_text(json.dumps(is_of))  # last: a cache that was not written to its end is none
    return {name: np.memmap(path, np.uint16, "r") for name, path in paths.items()}


class Blocks:
    """Blocks of ``length`` tokens, each ``first`` + tokens + ``last``, drawn without repetition in an order of ``seed``.

    As a data set it gives the ids and the number of each block, so that what is drawn for a block (its masks) may be drawn from
    its number alone: a run that goes on sees what it would have seen.
    """

    def __init__(self, tokens: np.ndarray, length: int, first: int, last: int, seed: int, count: int | None = None):
        self.tokens, self.first, self.last, self.inner = tokens, first, last, length - 2
        whole = len(tokens) // self.inner
        if whole < (count or 1):
            raise SystemExit(f"expected {count or 1} blocks of {length} tokens, the corpus has {whole}; ask for fewer.")
        self.order = np.random.default_rng(seed).permutation(whole)[:count]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, object]:
        start = int(self.order[index]) * self.inner
        inner = self.tokens[start : start + self.inner].astype(np.int64)
        return {"input_ids": np.concatenate([[self.first], inner, [self.last]]), "number": int(self.order[index])}
