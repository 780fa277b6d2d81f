"""Look into a trained prompt: what its tokens are near to, how large they are, how they lie, and which of them matter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F

from .._documents import read_object
from .._types import SoftPromptError
from ..data import batches as encoded_batches
from ..data import limited
from ..models.assemble import load
from ..models.hub import RESULT_FILE, adapter_folder
from ..models.kinds import OfTexts
from ..models.places import load_tokenizer
from ..models.task_card import TASK_FILE, TaskCard
from ..prompts import PlainPrompt, Prompt
from ..serving.predict import Predictor
from ..topology import metrics, persistence, wasserstein
from ..tuner import Backbone, prompts_of, read_prompt

ROWS = 256  # of the data that importance is measured on
PLACEHOLDER = re.compile(r"[\[<]unused_?\d+[\]>]")  # BERT's [unused12], Gemma's <unused12>: rows without a word
OFF = 2.0  # a median norm beyond this many times the vocabulary's 95 % quantile is no word's


def look(
    folder: str | Path,
    backbone: str | None = None,
    others: Sequence[str | Path] = (),
    rows: Dataset | None = None,
    top: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Describe a trained prompt.

    The result has these keys:

    - ``tokens``: for each virtual token at the input, the ``top`` nearest vocabulary tokens by cosine (special tokens and
      placeholders such as [unused12] are no neighbours), and the norm. With ``rows`` also the importance: the loss without
      the token minus the loss with it, in nats per row.
    - ``null``: the mean and largest cosine of as many random vectors to their nearest tokens. They are drawn with the
      vocabulary's mean and spread, and show which nearness means nothing.
    - ``norms``: the median of the prompt's norms, and the 5, 50 and 95 % quantiles of the vocabulary's.
    - ``topology``: `softprompt.topology.metrics` per layer.
    - ``others``: for each other adapter, the mean cosine of a token to its nearest token there (both ways), and the
      Wasserstein distance of the H0 diagrams at the first layer.
    - ``mechanism``: whether the parts of the method act: `softprompt.prompts.Prompt.mechanism`, and what the run that trained the
      prompt has noted in ``result.json``: the share of each term in the gradient, the scores of a search of layers.
    - ``warnings``: what is odd, and what to do about it.

    Args:
        folder: an adapter's folder, or its name on the hub.
        backbone: another place where the same backbone lies.
        others: folders of other adapters of the same width, or their names on the hub.
        rows: labelled rows, as `softprompt.load_rows` gives them; 256 of them are used, each class in proportion.
            ``softprompt train`` must have written the adapter.
        top: neighbours per token.
        seed: of the random vectors.

    Of a prompt that reads the input, the result describes the virtual tokens before it reads; it has no importance.

    Raises:
        SoftPromptError: a folder has no soft prompt, another adapter has another width, or ``rows`` lack what is needed.
    """
    given, folder = folder, adapter_folder(folder)
    prompt = read_prompt(folder)
    clouds = prompt().prefix.detach()
    if not len(clouds):
        raise SoftPromptError(f"{folder}: this prompt enters no layer; there is nothing to look at.")
    model = load(folder, backbone)
    state, name = prompts_of(model), backbone or _backbone_name(folder, model)
    facts: dict[str, Any] = {
        "adapter": str(given),
        "layers": list(prompt.layers),
        "tokens": [],
        "null": None,
        "norms": None,
        "topology": {str(i): metrics(persistence(c)) for i, c in zip(prompt.layers, clouds, strict=True)},
        "others": [_compare(clouds, other) for other in others],
        "mechanism": {**_noted(folder), **prompt.mechanism()},
        "warnings": [],
    }
    if prompt.layers[0] == 0:
        words = _words(load_tokenizer(name), state.backbone)
        with torch.no_grad():
            vocabulary = state.backbone.embed(torch.tensor(list(words))).float()
        facts |= _at_input(clouds[0], vocabulary, list(words.values()), top, seed)
        _warn(facts)
    else:
        facts["warnings"].append(
            "the prompt enters behind the embeddings, where no vocabulary token stands to compare with."
        )
    if rows is not None:
        if prompt.depends_on_input:
            raise SoftPromptError("importance leaves tokens out of a constant prompt; this one is made from the input.")
        importance = _importance(folder, backbone, rows)
        facts["tokens"] = facts["tokens"] or [{"index": i} for i in range(len(importance))]
        for token, value in zip(facts["tokens"], importance, strict=True):
            token["importance"] = value
    return facts


def _noted(folder: Path) -> dict[str, Any]:
    """The figures of the mechanism that the run in this folder has noted, if a run has."""
    path = folder / RESULT_FILE
    found: Any = read_object(path, "result of a run") if path.is_file() else {}
    for key in ("train_info", "mechanism"):
        found = found.get(key, {}) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not all(map(_is_figure, found.values())):
        raise SoftPromptError(
            f"{path}: train_info.mechanism: expected figures by name, as softprompt train writes them, got {found!r:.80}; move the file away to look at the prompt alone."
        )
    return found


def _is_figure(value: Any) -> bool:
    """Whether a value is a number, or a list or dict of numbers."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(isinstance(part, int | float) for part in parts)


def _backbone_name(folder: str | Path, model: Any) -> str:
    if (Path(folder) / TASK_FILE).is_file():
        return TaskCard.read(folder).place(folder)
    return str(model.peft_config[model.active_adapter].base_model_name_or_path)


def _words(tokenizer: Any, backbone: Backbone) -> dict[int, str]:
    """The tokens by id that a virtual token may be near to: no special ones, no placeholders, no rows that pad the embedding."""
    special = backbone.special_ids.union(tokenizer.all_special_ids, _added_special(tokenizer))
    tokens = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i not in special)
    return {i: token for i, token in tokens if i < backbone.embed.num_embeddings and not PLACEHOLDER.fullmatch(token)}


def _added_special(tokenizer: Any) -> list[int]:
    """Special tokens without a part to play, such as <|reserved_special_token_0|>; transformers' all_special_ids has no such ones."""
    try:
        added = tokenizer.added_tokens_decoder
    except NotImplementedError:  # mistral-common's, whose special tokens are all in all_special_ids
        return []
    return [i for i, token in added.items() if token.special]


def _at_input(vectors: Tensor, vocabulary: Tensor, words: Sequence[str], top: int, seed: int) -> dict[str, Any]:
    directions = F.normalize(vocabulary, dim=-1)
    near = (F.normalize(vectors, dim=-1) @ directions.T).topk(min(top, len(words)), dim=-1)
    generator = torch.Generator().manual_seed(seed)
    random = vocabulary.mean(0) + vocabulary.std(0) * torch.randn(vectors.shape, generator=generator)
    null = (F.normalize(random, dim=-1) @ directions.T).amax(-1)
    norms = vocabulary.norm(dim=-1)
    low, middle, high = torch.quantile(norms, torch.tensor([0.05, 0.5, 0.95])).tolist()
    tokens = [
        {
            "index": i,
            "norm": vectors[i].norm().item(),
            "nearest": [
                {"token": words[j], "cosine": value}
                for j, value in zip(near.indices[i].tolist(), near.values[i].tolist(), strict=True)
            ],
        }
        for i in range(len(vectors))
    ]
    return {
        "tokens": tokens,
        "null": {"mean": null.mean().item(), "largest": null.max().item()},
        "norms": {
            "prompt median": vectors.norm(dim=-1).median().item(),
            "vocabulary 5 %": low,
            "vocabulary 50 %": middle,
            "vocabulary 95 %": high,
        },
    }


def _warn(facts: dict[str, Any]) -> None:
    norms = facts["norms"]
    if norms["prompt median"] > OFF * norms["vocabulary 95 %"]:
        facts["warnings"].append(
            f"the median norm {norms['prompt median']:.3g} is far beyond the vocabulary's {norms['vocabulary 95 %']:.3g} (95 %): the prompt left the embeddings; train with a lower learning_rate or fewer steps."
        )
    nearest = max(token["nearest"][0]["cosine"] for token in facts["tokens"])
    if nearest <= facts["null"]["largest"]:
        facts["warnings"].append(
            "no virtual token is nearer to a word than random rows are: read nothing into the nearest tokens."
        )


def _compare(clouds: Tensor, other: str | Path) -> dict[str, Any]:
    theirs = read_prompt(adapter_folder(other))().prefix.detach()
    if not len(theirs) or theirs.shape[-1] != clouds.shape[-1]:
        raise SoftPromptError(
            f"{other}: expected a prompt of width {clouds.shape[-1]}, got {list(theirs.shape)}; compare adapters of one backbone."
        )
    return {
        "adapter": str(other),
        "cosine": nearest_both_ways(clouds[0], theirs[0]),
        "wasserstein h0": wasserstein(persistence(clouds[0]).h0, persistence(theirs[0]).h0).item(),
    }


def nearest_both_ways(first: Tensor, second: Tensor) -> float:
    """Mean cosine of a vector of ``first`` [P, H] to its nearest one of ``second`` [Q, H], and of those the other way, halved."""
    cosines = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T
    return (cosines.amax(0).mean().item() + cosines.amax(1).mean().item()) / 2


@torch.no_grad()
def _importance(folder: Path, backbone: str | None, rows: Dataset) -> list[float]:
    """Return, for each virtual token, the mean loss without it minus the mean loss with all of them."""
    predictor = Predictor(folder, backbone)
    if not isinstance(predictor.kind, OfTexts):
        raise SoftPromptError(
            f"what each virtual token is worth is measured on texts with a label; this adapter is for {predictor.card.kind}: leave the rows (--data) out."
        )
    model, card = predictor.model, predictor.card
    encode = predictor.kind.encoder(
        card, predictor.tokenizer, predictor.verbalizer, bool(model.config.is_encoder_decoder)
    )
    encoded = encode(limited(rows, ROWS))
    batches = [
        {key: value.to(model.device) for key, value in batch.items()}
        for batch in encoded_batches(encoded, predictor.tokenizer, predictor.kind.name)
    ]
    prompts, name = prompts_of(model).softprompt_prompts, model.active_adapter
    whole = prompts[name]
    assert isinstance(whole, Prompt)

    def loss(kept: list[int]) -> float:
        prompts[name] = _of(whole, kept)
        try:
            return sum(model(**batch).loss.item() * len(batch["labels"]) for batch in batches) / len(encoded)
        finally:
            prompts[name] = whole

    every = list(range(whole.num_virtual_tokens))
    base = loss(every)
    return [loss([i for i in every if i != token]) - base for token in every]


def _of(prompt: Prompt, kept: list[int]) -> PlainPrompt:
    """Make a constant prompt of some virtual tokens."""
    parts = prompt()
    vectors = parts.prefix[:, kept]
    delta = parts.input_delta
    depth, count, width = vectors.shape
    plain = PlainPrompt(depth, count, width, 0 if delta is None else len(delta)).to(vectors.device)
    plain.layers, plain.tau = prompt.layers, prompt.tau
    plain.start_from(vectors)
    if plain.delta is not None and delta is not None:
        plain.delta.copy_(delta)
    return plain.eval()
