"""Imports only go down: the plan of the house, enforced."""

import ast
from pathlib import Path

import pytest

import softprompt

ROOT = Path(softprompt.__file__).parent
FLOORS = (
    {"_types", "_after_peft", "_version", "results"},
    {"_documents", "catalog", "topology", "typed"},
    {"prompts", "objectives", "data"},
    {"tuner"},
    {"methods", "training", "serving", "report"},
    {"bench"},
    {"cli", "__main__"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# neighbours on one floor do not know each other, with these exceptions (who -> whom)
NEIGHBOURS = {("training", "methods"), ("__main__", "cli")}
FILES = sorted(
    path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"
)  # the package's face shows every floor


def room(parts: tuple[str, ...]) -> str:
    """The package or single file directly under softprompt."""
    return parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms that a file imports, also inside functions; "" for the package's face itself."""
    here = path.relative_to(ROOT).parts[:-1]
    names: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [
                tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.split(".")[0] == "softprompt"
            ]
        elif isinstance(node, ast.ImportFrom):
            module = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                base = here[: len(here) - node.level + 1] + module
            elif module[:1] == ("softprompt",):
                base = module[1:]
            else:
                continue
            names += [base or (alias.name,) for alias in node.names]
    return {room(name) if name else "" for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path):
    me = room(path.relative_to(ROOT).parts)
    assert me in FLOOR, f"{me} stands on no floor; add it to the table of architecture.md and here"
    for other in imported(path) - {me}:
        assert other in FLOOR, (
            f"{path}: imports {other or 'the package itself'}, which is no floor; import the defining file"
        )
        allowed = FLOOR[other] < FLOOR[me] or (me, other) in NEIGHBOURS
        assert allowed, f"{me} (floor {FLOOR[me]}) must not import {other} (floor {FLOOR[other]})"


def test_the_check_sees_imports(tmp_path):
    """Negative control: every way to write an import is found."""
    assert imported(ROOT / "tuner" / "config.py") >= {"_types", "prompts", "tuner"}
    assert imported(ROOT / "methods" / "ept.py") == {"tuner"}
    assert imported(ROOT / "prompts" / "initial.py") == {"_types"}
