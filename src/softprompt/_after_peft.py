"""PEFT knows SOFTPROMPT as soon as both packages are imported, in either order, though neither import waits for the other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TUNER = f"{__package__}.tuner"  # importing it registers


def register_with_peft() -> None:
    """Register now where PEFT is loaded, else when somebody loads it."""
    if "peft" in sys.modules:
        importlib.import_module(TUNER)
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


class _AfterPeft(MetaPathFinder):
    """Finds PEFT as the finders behind it do, and imports our tuner when PEFT has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((made for finder in others if (made := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            # whoever only looks for PEFT (transformers does) must not use this finder up: it goes when PEFT has run
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.import_module(TUNER)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
