"""Give a fresh prompt its first values, as its config says."""

from __future__ import annotations

import torch
from torch import Tensor

from .._types import SoftPromptError
from ..prompts import Prompt, from_file, label_rows, sample_rows, tile_rows
from .backbone import Backbone, evaluating
from .calls.request import virtual_per_layer
from .config import SoftPromptConfig
from .saved.prompt import read_prompt


@torch.no_grad()
def start_prompt(prompt: Prompt, config: SoftPromptConfig, backbone: Backbone) -> None:
    """Start ``prompt`` from what ``config.init`` names.

    Vectors that come from the vocabulary are embedded as the backbone embeds them (with its scale). A deep prompt starts
    from one matrix too: its vectors at layer i are what the frozen layers below make of that matrix alone. Vectors that are
    given layer by layer (a file, an adapter) are those of the prompt's own layers, or of all layers.

    Raises:
        SoftPromptError: the text, labels, file or adapter cannot be used.
    """
    _check_form(prompt, config)
    generator = None if config.init_seed is None else torch.Generator().manual_seed(config.init_seed)
    vectors = _vectors(config, backbone, generator)
    sites = config.sites
    if len(vectors) == 1 and sites != (0,):
        vectors = _through_layers(vectors, backbone)
    if config.placement != "input" and len(vectors) == backbone.num_layers:
        vectors = vectors[list(sites)]
    if len(vectors) != len(sites):
        raise SoftPromptError(f"init={config.init!r}: expected 1 or {len(sites)} layers of rows, got {len(vectors)}.")
    prompt.start_from(vectors, generator)


def check_start(prompt: Prompt, config: SoftPromptConfig, backbone: Backbone) -> None:
    """Check what ``config.init`` names, without a look at the backbone's weights.

    Raises:
        SoftPromptError: the text, labels, file or adapter cannot be used.
    """
    _check_form(prompt, config)
    if config.init in ("file", "adapter"):
        _given(config, backbone)
    elif config.init in ("text", "labels"):
        _words(config)


def _check_form(prompt: Prompt, config: SoftPromptConfig) -> None:
    if not prompt.starts_at_vectors and config.init not in ("vocab", "normal"):
        raise SoftPromptError(
            f"init={config.init!r} starts a prompt at given vectors, which a {prompt.form} prompt cannot reach; use init='vocab' or 'normal', of which it takes the mean and the spread."
        )


def _given(config: SoftPromptConfig, backbone: Backbone) -> Tensor:
    """The vectors of a file or an adapter, as they stand there."""
    if isinstance(config.init_path, list):
        raise SoftPromptError(
            f"init_path={config.init_path}: a prompt starts from one {config.init}; name one. softprompt.train chooses among several adapters by the loss of its training rows (init='adapter')."
        )
    vectors = from_file(str(config.init_path)) if config.init == "file" else _from_adapter(str(config.init_path))
    if vectors.shape[-1] != backbone.hidden_size:
        raise SoftPromptError(
            f"{config.init_path}: expected rows of width {backbone.hidden_size} ({backbone.model_type}), got {vectors.shape[-1]}."
        )
    return vectors


def _words(config: SoftPromptConfig) -> list[list[int]]:
    """The tokens of the text, or of each label."""
    if config.init == "text":
        ids = _tokenize(config, str(config.init_text))
        if not ids:
            raise SoftPromptError(f"init_text {config.init_text!r} has no tokens.")
        return [ids]
    words = [config.init_text] if isinstance(config.init_text, str) else list(config.init_text or [])
    labels = {word: _tokenize(config, word) for word in words}
    if empty := [word for word, ids in labels.items() if not ids]:
        raise SoftPromptError(f"init_text: the labels {empty} have no tokens.")
    return list(labels.values())


def _vectors(config: SoftPromptConfig, backbone: Backbone, generator: torch.Generator | None) -> Tensor:
    count = config.num_virtual_tokens
    weight = backbone.embed.weight

    def embed(ids: Tensor) -> Tensor:
        return backbone.embed(ids.to(weight.device)).float().cpu()

    if config.init in ("file", "adapter"):
        return torch.stack([tile_rows(layer, count) for layer in _given(config, backbone)])
    if config.init == "text":
        (ids,) = _words(config)
        return tile_rows(embed(torch.tensor(ids)), count)[None]
    candidates = torch.tensor([i for i in range(backbone.vocab_size) if i not in backbone.special_ids])
    drawn = sample_rows(embed, candidates, count, generator)
    if config.init == "labels":
        return label_rows(embed, _words(config), drawn)[None]
    if config.init == "normal":
        return torch.randn(drawn.shape, generator=generator)[None] * drawn.std()
    return drawn[None]


def _tokenize(config: SoftPromptConfig, text: str) -> list[int]:
    from transformers import AutoTokenizer  # only text and labels need one

    name = config.tokenizer_name_or_path or config.base_model_name_or_path
    if not name:
        raise SoftPromptError(f"init={config.init!r} needs a tokenizer; set tokenizer_name_or_path.")
    try:
        return AutoTokenizer.from_pretrained(name)(text, add_special_tokens=False)["input_ids"]
    except (OSError, ValueError) as error:
        raise SoftPromptError(f"no tokenizer at {name!r} ({error}); set tokenizer_name_or_path.") from error


def _from_adapter(folder: str) -> Tensor:
    parts = read_prompt(folder)()
    if parts.input_delta is not None and bool(parts.input_delta.any()):
        raise SoftPromptError(
            f"{folder}: expected a prompt that is virtual tokens alone to start from; this one changes the input embeddings, too (DePT, EPT), which such a start would drop. Name another, or save its virtual tokens as .npy (softprompt.read_prompt) and take them with init='file'."
        )
    return parts.prefix.detach()  # of a generated prompt, the vectors that it changes by what it reads


def _through_layers(vectors: Tensor, backbone: Backbone) -> Tensor:
    """Run the stack on ``vectors`` [1, P, H] alone and note what enters each layer; [L, P, H].

    The prompt gets dropout-free states; an input prompt would have had them there, so a deep prompt starts where an
    input prompt starts, up to what its positions would have read from the text.
    """
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach())) for layer in backbone.layers
    ]
    try:
        # with gradient: a pass without makes bitsandbytes pack 4-bit weights on the CPU for good, and they train no more
        with torch.enable_grad(), evaluating(backbone.stack):
            backbone.stack(
                inputs_embeds=vectors.to(backbone.embed.weight).requires_grad_(),
                **virtual_per_layer(backbone, vectors.shape[1]),
            )
    finally:
        for hook in hooks:
            hook.remove()
    states = torch.cat([s[:1].float().cpu() for s in seen])
    states[0] = vectors[0]  # the input site takes embeddings as they are, before the stack adds positions or norms
    return states
