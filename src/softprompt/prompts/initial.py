"""Where a prompt starts: at tokens of the vocabulary, a text, class labels, or a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from .._types import SoftPromptError

Embed = Callable[[Tensor], Tensor]  # token ids [N] -> embeddings [N, H], with the scale that the backbone applies


def sample_rows(
    embed: Embed, candidates: Tensor, count: int, generator: torch.Generator | None
) -> Float[Tensor, "count hidden"]:
    """Embed ``count`` random tokens of ``candidates``; they differ from each other where there are enough of them."""
    if len(candidates) >= count:
        picks = torch.randperm(len(candidates), generator=generator)[:count]
    else:
        picks = torch.randint(len(candidates), (count,), generator=generator)
    return embed(candidates[picks])


def tile_rows(vectors: Float[Tensor, "some hidden"], count: int) -> Float[Tensor, "count hidden"]:
    """Repeat or cut ``vectors`` to exactly ``count``, in order: a text shorter than the prompt starts over."""
    repeats = -(-count // len(vectors))
    return vectors.repeat(repeats, 1)[:count]


def label_rows(
    embed: Embed, labels: Sequence[Sequence[int]], rest: Float[Tensor, "prompt hidden"]
) -> Float[Tensor, "prompt hidden"]:
    """Replace the first vectors of ``rest`` by one for each class label, the mean over the label's tokens.

    This is the rule of Lester et al. 2021 (arXiv 2104.08691), section 3.1. Labels beyond the prompt's length are left
    out. Every label has at least one token.
    """
    means = torch.stack([embed(torch.tensor(list(ids))).mean(0) for ids in labels])[: len(rest)]
    return torch.cat([means, rest[len(means) :].to(means)])


def from_file(path: str | Path) -> Float[Tensor, "depth prompt hidden"]:
    """Read virtual tokens from a ``.npy`` or one-tensor ``.safetensors`` file, [P, H] or [D, P, H].

    Raises:
        SoftPromptError: the file is missing or of another format, or holds several tensors, another shape or values
            that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise SoftPromptError(
            f"init_path {str(path)!r}: no such file; expected a .npy or .safetensors file with one [P, H] array."
        )
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)  # a pickle could run code
            vectors = torch.from_numpy(np.asarray(array, dtype=np.float32))
        elif path.suffix == ".safetensors":
            tensors = load_file(path)
            if len(tensors) != 1:
                raise SoftPromptError(
                    f"{path}: expected one tensor, found {sorted(tensors)}; save only the prompt matrix."
                )
            vectors = next(iter(tensors.values())).float()
        else:
            raise SoftPromptError(f"{path}: expected .npy or .safetensors, got {path.suffix!r}.")
    except SoftPromptError:
        raise
    except Exception as error:  # the readers raise many types for a broken file
        raise SoftPromptError(f"{path}: cannot be read as {path.suffix} ({error}).") from error
    if vectors.dim() == 2:
        vectors = vectors.unsqueeze(0)
    if vectors.dim() != 3 or 0 in vectors.shape:
        raise SoftPromptError(f"{path}: expected an array [P, H] or [D, P, H], got shape {tuple(vectors.shape)}.")
    if not torch.isfinite(vectors).all():
        raise SoftPromptError(f"{path}: the array has values that are not finite.")
    return vectors
