"""Imports only go down: the plan of the house, enforced."""

import ast
from pathlib import Path

import pytest

import softprompt

ROOT = Path(softprompt.__file__).parent


FLOORS = (
    {"_types", "_after_peft", "_version", "_files", "_environment"},
    {"catalog", "typed", "_documents", "topology"},
    {"prompts", "objectives", "data"},
    {"tuner"},
    {"methods", "models"},
    {"watch", "search", "serving"},
    {"training", "report"},
    {"experiments"},
    {"cli", "__main__"},
)


FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


# neighbours on one floor do not know each other, with this exception (who -> whom)
NEIGHBOURS = {("__main__", "cli")}


FILES = sorted(
    path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"
)  # the package's face shows every floor


def room(parts: tuple[str, ...]) -> str:
    """The package or single file directly under softprompt."""
    return parts[0].removesuffix(".py")


def imports(path: Path, root: Path = ROOT) -> list[tuple[tuple[str, ...], str]]:
    """The modules of the package that a file under ``root`` imports, also inside functions and for types, each with a name
    that it takes from there; "" is the module itself."""
    here = path.relative_to(root).parts[:-1]
    taken: list[tuple[tuple[str, ...], str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [tuple(alias.name.split(".")) for alias in node.names]
            taken += [(module[1:], "") for module in modules if module[0] == root.name]
        elif isinstance(node, ast.ImportFrom):
            module = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                base = here[: len(here) - node.level + 1] + module
            elif module[:1] == (root.name,):
                base = module[1:]
            else:
                continue
            taken += [(base, alias.name) for alias in node.names]
    return taken


def imported(path: Path) -> set[str]:
    """Rooms that a file imports; "" for the package's face itself."""
    return {room(module or (name,)) if module or name else "" for module, name in imports(path)}


def imported_files(path: Path, root: Path) -> set[Path]:
    """Files that a file imports: of ``from a import b`` it is a/b.py where that is a file, else a.py or the face of a."""
    files = set()
    for module, name in imports(path, root):
        spots = [root.joinpath(*module, name).with_suffix(".py")] if name else []
        if module:
            spots.append(root.joinpath(*module).with_suffix(".py"))
        spots += [root.joinpath(*module, name, "__init__.py"), root.joinpath(*module, "__init__.py")]
        files.add(next(spot for spot in spots if spot.is_file()))
    return files


def in_circles(root: Path) -> set[str]:
    """Files of a package from which imports lead back to themselves."""
    below = {path: imported_files(path, root) for path in root.rglob("*.py")}

    def reached(start: Path) -> set[Path]:
        seen: set[Path] = set()
        ahead = [start]
        while ahead:
            new = below[ahead.pop()] - seen
            seen |= new
            ahead += new
        return seen

    return {path.relative_to(root).as_posix() for path in below if path in reached(path)}


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


def test_no_files_import_each_other_in_a_circle():
    assert in_circles(ROOT) == set()


def test_the_check_sees_imports():
    """Negative control: every way to write an import is found."""
    assert imported(ROOT / "tuner" / "config.py") >= {"_types", "prompts", "tuner"}
    assert imported(ROOT / "methods" / "ept.py") == {"tuner"}
    assert imported(ROOT / "prompts" / "initial.py") == {"_types"}


def test_the_check_sees_circles(tmp_path):
    """Negative control: circles through a face, through names of files, for types and inside functions are found."""
    made = {
        "__init__.py": "",
        "ground.py": "",
        "face/__init__.py": "from .one import name",
        "face/one.py": "from house.face import two",
        "face/two.py": "def late():\n    from . import name",
        "face/leaf.py": "import house.ground",
        "left.py": "if TYPE_CHECKING:\n    from .right import name",
        "right.py": "import house.left\nfrom .face.leaf import name",
    }
    for name, text in made.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    circles = {"face/__init__.py", "face/one.py", "face/two.py"}, {"left.py", "right.py"}
    assert in_circles(tmp_path / "house") == set.union(*circles)
    (tmp_path / "house" / "left.py").write_text("from .ground import name")
    assert in_circles(tmp_path / "house") == circles[0]
