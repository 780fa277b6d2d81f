"""Documents of a folder of text files, as one long array of token ids on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from softprompt import SoftPromptError

HELD_OUT = 100  # one document of so many
LONGEST = 20_000  # characters of a piece: a tokenizer takes a whole novel as one text badly
AT_ONCE = 1_000


def documents(folder: Path) -> Iterator[tuple[str, bool, str]]:
    """Every document (up to a blank line) in pieces of whole lines, whether it is held out, and the part it stands in.

    What is held out goes by a hash of the document, so it is the same for every order of files and every size of corpus. A part is
    a folder in ``folder``, or "." for the files that stand in none.
    """
    for path in sorted(folder.rglob("*.txt"), key=lambda path: (part_of(path, folder), path)):
        part = part_of(path, folder)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise SoftPromptError(f"{path}: expected UTF-8 ({error}); convert the file.") from error
        for document in text.split("\n\n"):
            if not document.strip():
                continue
            held = int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) % HELD_OUT == 0
            piece = ""
            for line in document.strip().splitlines():
                if piece and len(piece) + len(line) > LONGEST:
                    yield piece, held, part
                    piece = ""
                piece += line + "\n"
            yield piece, held, part


def part_of(path: Path, folder: Path) -> str:
    """The folder directly in ``folder`` that holds ``path``."""
    inside = path.relative_to(folder).parts
    return inside[0] if len(inside) > 1 else "."


def batches(folder: Path) -> Iterator[list[tuple[str, bool, str]]]:
    """The pieces of all documents, as many at once as a tokenizer takes well."""
    pieces = documents(folder)
    while some := list(islice(pieces, AT_ONCE)):
        yield some


def text_files(folder: Path) -> dict[str, int]:
    """The files that are read, each with its size: what was made of them is made anew where they change."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*.txt"))}
    if not files:
        raise SoftPromptError(f"{folder}: expected text files (*.txt), found none; unpack the corpus there.")
    return files


def check_mixture(mixture: dict[str, float] | None, folder: Path) -> None:
    """Raise `SoftPromptError` unless ``mixture`` names parts of the corpus in ``folder``."""
    parts = sorted({part_of(Path(name), Path()) for name in text_files(folder)})
    unknown = sorted(set(mixture or {}) - set(parts))
    if unknown and parts == ["."]:
        raise SoftPromptError(
            f"mixture names {', '.join(unknown)}, but {folder} has no folders of its own; --set mixture=null takes it as it is."
        )
    if unknown:
        raise SoftPromptError(
            f"mixture names {', '.join(unknown)}, expected folders of {folder}: {', '.join(map(repr, parts))}; "
            "name those, or --set mixture=null takes the corpus as it is."
        )


@dataclass(frozen=True)
class Tokens:
    """Token ids of a corpus: what is trained on, from where to where each part of it stands there, and what is held out."""

    train: np.ndarray
    parts: dict[str, tuple[int, int]]
    validation: np.ndarray


def encoded(folder: Path, tokenizer: PreTrainedTokenizerBase, cache: Path) -> Tokens:
    """The token ids of ``folder``, uint16, read from ``cache`` where they were written before.

    A document ends with the separator of the tokenizer.
    """
    backend = tokenizer.backend_tokenizer
    if len(tokenizer) > 2**16:
        raise SoftPromptError(f"expected a vocabulary of at most {2**16}, got {len(tokenizer)}; cut it first.")
    is_of = {"tokenizer": hashlib.sha256(backend.to_str().encode()).hexdigest(), "files": text_files(folder)}
    marker, paths = cache / "corpus.json", {name: cache / f"{name}.bin" for name in ("train", "validation")}
    made = json.loads(marker.read_text()) if marker.is_file() else {}
    if made.get("of") != is_of or "sizes" not in made:
        cache.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        sizes: Counter[str] = Counter()
        with paths["train"].open("wb") as train, paths["validation"].open("wb") as validation:
            for some in batches(folder):
                rows = backend.encode_batch([text for text, *_ in some], add_special_tokens=False)
                for row, (_, held, part) in zip(rows, some, strict=True):
                    ids = np.array([*row.ids, tokenizer.sep_token_id], dtype=np.uint16)
                    (validation if held else train).write(ids.tobytes())
                    sizes[part] += 0 if held else len(ids)
        made = {"of": is_of, "sizes": sizes}
        marker.write_text(json.dumps(made))  # last: a cache that was not written to its end is none
    ends = np.cumsum(list(made["sizes"].values())).tolist()
    parts = dict(zip(made["sizes"], zip([0, *ends[:-1]], ends, strict=True), strict=True))
    ids_of = {
        name: np.memmap(path, np.uint16, "r") if path.stat().st_size else np.zeros(0, np.uint16)
        for name, path in paths.items()
    }
    return Tokens(ids_of["train"], parts, ids_of["validation"])


class Blocks:
    """Blocks of ``length`` tokens, each ``first`` + tokens + ``last``, in an order of ``seed``.

    Those of ``special`` tokens alone, as a script that the vocabulary lacks becomes, are left out: they have no token to learn.
    Without ``mixture`` none is drawn twice. A mixture gives the share of the blocks that each of ``parts`` gets; a part that has
    fewer is gone through again, and all rounds are shuffled together. As a data set it gives the ids and the number of each block, another one in each round, so that what
    is drawn for a block (its masks) may be drawn from its number alone: a run that goes on sees what it would have seen.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        length: int,
        first: int,
        last: int,
        special: Sequence[int],
        seed: int,
        count: int | None = None,
        parts: dict[str, tuple[int, int]] | None = None,
        mixture: dict[str, float] | None = None,
    ):
        self.tokens, self.first, self.last, self.inner = tokens, first, last, length - 2
        self.whole = len(tokens) // self.inner
        shown = tokens[: self.whole * self.inner].reshape(self.whole, self.inner)
        usable = np.flatnonzero(~np.isin(shown, special).all(1))
        self.left_out = self.whole - len(usable)
        if len(usable) < (1 if mixture else count or 1):
            raise SoftPromptError(
                f"expected {count or 1} blocks of {length} tokens, the corpus has {len(usable)}; ask for fewer (steps x batch, "
                f"or validation_blocks of what is held out, one document of {HELD_OUT}), or give more text."
            )
        draw = np.random.default_rng(seed)
        if not mixture:
            self.order = draw.permutation(usable)[:count]
            return
        drawn = []
        for name, share in mixture.items():
            start, end = (parts or {}).get(name, (0, 0))
            blocks = usable[(usable * self.inner >= start) & ((usable + 1) * self.inner <= end)]
            wanted = math.ceil(share * (count or len(usable)))
            if wanted and not len(blocks):
                raise SoftPromptError(f"mixture: {name} has no block of {length} tokens; leave it out.")
            rounds = -(-wanted // max(1, len(blocks)))
            drawn.append(
                np.concatenate([draw.permutation(blocks) + r * self.whole for r in range(rounds)] or [blocks])[:wanted]
            )
        self.order = draw.permutation(np.concatenate(drawn))[:count]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(self.order[index])
        start = number % self.whole * self.inner
        inner = self.tokens[start : start + self.inner].astype(np.int64)
        return {"input_ids": np.concatenate([[self.first], inner, [self.last]]), "number": number}
