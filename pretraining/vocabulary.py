"""A word-piece vocabulary cut to what a corpus needs, and the embeddings of what stays."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from softprompt import SoftPromptError

from .corpus import batches

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def counted(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Counter[int]:
    """How often each id stands in the documents that are not held out."""
    counts: Counter[int] = Counter()
    for some in batches(folder):
        shown = [text for text, held, _ in some if not held]
        for row in tokenizer.backend_tokenizer.encode_batch(shown, add_special_tokens=False):
            counts.update(row.ids)
    return counts


def kept(tokenizer: PreTrainedTokenizerBase, counts: Counter[int], size: int) -> list[int]:
    """The ids that stay, in their order: special tokens, single characters, and the most frequent pieces.

    Single characters, at the start of a word and inside it, keep every word spellable: one whose own piece is cut becomes several
    pieces, not [UNK]. Those beyond ASCII stay where the corpus has them as pieces.
    """
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    needed = {i for i, name in enumerate(names) if name in SPECIAL}
    single = {i: name.removeprefix("##") for i, name in enumerate(names) if len(name.removeprefix("##")) == 1}
    seen = {character for i, character in single.items() if counts[i] or character.isascii()}
    needed |= {i for i, character in single.items() if character in seen}
    if len(needed) > size:
        raise SoftPromptError(
            f"vocabulary={size}: expected at least {len(needed)}, the special tokens and single characters of this corpus; "
            "ask for more."
        )
    for i, _ in counts.most_common():
        if len(needed) >= size:
            break
        needed.add(i)
    return sorted(needed)


def cut(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> PreTrainedTokenizerFast:
    """The tokenizer with the pieces ``ids`` alone, numbered anew in their order."""
    names = tokenizer.convert_ids_to_tokens(ids)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["model"]["vocab"] = {name: new for new, name in enumerate(names)}
    for added in document["added_tokens"]:
        added["id"] = names.index(added["content"])
    special = (document.get("post_processor") or {}).get("special_tokens") or {}
    for name, entry in special.items():
        entry["ids"] = [names.index(name)]
    document["padding"] = document["truncation"] = None
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
    )
