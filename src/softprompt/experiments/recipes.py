"""Recipes: a paper's set-up as flat keys of ``softprompt train``, with what the paper itself reports beside it."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from .._types import SoftPromptError, check_choice
from ..training.keys.yaml_values import from_yaml

PAPER = "paper"
FACTS = {"title", "arxiv", "numbers"}


def recipe_names() -> list[str]:
    """List the names that `load_recipe` takes, sorted."""
    folder = files(__package__) / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the flat keys of a recipe, for `RunOptions.from_flat`, and the facts of its paper.

    The facts are ``title``, ``arxiv`` and ``numbers``, which the paper reports and nobody measured here. A recipe's comments
    say where it differs from the paper. Data and backbone are names on the hub.

    Raises:
        SoftPromptError: there is no recipe of that name; the message names the nearest.
    """
    check_choice("recipe", name, recipe_names())
    text = (files(__package__) / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    flat = from_yaml(text, f"recipe {name!r}:")
    facts = flat.pop(PAPER, None)
    if not isinstance(facts, dict) or set(facts) != FACTS:
        raise SoftPromptError(
            f"recipe {name!r}: expected a block 'paper' with {', '.join(sorted(FACTS))}, got {facts!r}."
        )
    return flat, facts
