"""The forms of a prompt, by the names that configs have for them."""

from __future__ import annotations

from ._base import Prompt
from .compiled import CompiledPrompt
from .decomposed import DecomposedPrompt
from .generated import GeneratedPrompt
from .instance import InstancePrompt
from .plain import PlainPrompt
from .projected import ProjectedPrompt

FORMS: dict[str, type[Prompt]] = {
    kind.form: kind
    for kind in (PlainPrompt, DecomposedPrompt, GeneratedPrompt, InstancePrompt, ProjectedPrompt, CompiledPrompt)
}
