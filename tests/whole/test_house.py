"""Tests stand where the code stands: the plan of tests/, enforced."""

import ast
from collections import defaultdict
from pathlib import Path

import softprompt

SOURCE = Path(softprompt.__file__).parent
TESTS = Path(__file__).parents[1]
# laws of every method and family; what concerns the whole house: its plan, its documents, its processes
NO_ROOMS = ("contract", "whole")
NO_FILES: set[str] = set()  # tests in a room that have no file of the source
FILES = sorted(path for path in TESTS.rglob("*.py") if "published" not in path.parts)  # that folder is a record
CASES = [path for path in FILES if path.name.startswith("test_")]
LINES = 600


def name(path: Path) -> str:
    return path.relative_to(TESTS).as_posix()


def sources(test: Path) -> list[Path]:
    """What a test of a room may be about: training/test_run.py tests training/run.py, training/_run.py or the folder training/run."""
    folder, stem = SOURCE / test.relative_to(TESTS).parent, test.stem.removeprefix("test_")
    return [folder / f"{stem}.py", folder / f"_{stem}.py", folder / stem / "__init__.py"]


def imported(text: str) -> set[str]:
    """Modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {
                "." * node.level + (node.module or ""),
                *(f"{node.module or ''}.{alias.name}" for alias in node.names),
            }
    return found


def imports_a_test(text: str) -> bool:
    return any(part.startswith("test_") for module in imported(text) for part in module.split("."))


def body(node: ast.AST) -> str:
    """A function without its name, docstring and annotations; equal for equal code."""
    copy = ast.parse(ast.unparse(node)).body[0]
    for inner in ast.walk(copy):
        if isinstance(inner, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(inner):
            inner.body = inner.body[1:] or [ast.Pass()]
        if isinstance(inner, ast.FunctionDef):
            inner.returns = None
        if isinstance(inner, ast.arg):
            inner.annotation = None
    copy.name = "helper"
    return ast.dump(copy)


def helpers(text: str) -> list[tuple[str, str]]:
    """(name, body) of the functions and classes of a file that are no tests."""
    made = [n for n in ast.parse(text).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    return [(n.name, body(n)) for n in made if not n.name.startswith(("test_", "Test"))]


def test_each_test_stands_where_its_code_stands() -> None:
    """Else move it, or name it in NO_FILES."""
    roomed = [path for path in CASES if path.parent.name not in NO_ROOMS and name(path) not in NO_FILES]
    assert not [name(path) for path in roomed if not any(source.is_file() for source in sources(path))]


def test_exceptions_are_needed() -> None:
    assert {name(path) for path in CASES} >= NO_FILES
    assert not [name(TESTS / each) for each in NO_FILES if any(source.is_file() for source in sources(TESTS / each))]


def test_no_file_is_long() -> None:
    """A longer one is split by what it tests."""
    assert not [name(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > LINES]


def test_no_test_is_imported() -> None:
    """What two of them need belongs in tests/house."""
    assert not [name(path) for path in FILES if imports_a_test(path.read_text(encoding="utf-8"))]


def test_helpers_of_one_body_exist_once() -> None:
    places = defaultdict(list)
    for path in FILES:
        for helper, code in helpers(path.read_text(encoding="utf-8")):
            places[code].append(f"{name(path)}::{helper}")
    assert not [where for where in places.values() if len(where) > 1], "put it in tests/house once"


def test_every_test_is_collected() -> None:
    """A file of another name, or one of the tests in house/, would never run."""
    for path in FILES:
        made = [n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)]
        assert path in CASES or not [n for n in made if n.startswith("test_")], name(path)


def test_the_check_sees_what_it_forbids() -> None:
    """Negative control."""
    assert imports_a_test("from test_runs import stop") and imports_a_test(
        "def f():\n    import tests.training.test_run"
    )
    assert imports_a_test("from training import test_run") and not imports_a_test("from house.runs import options")
    one, other = "def f(x: int) -> int:\n    return x", 'def g(x):\n    """Itself."""\n    return x'
    assert helpers(one)[0][1] == helpers(other)[0][1] != helpers("def f(x):\n    return -x")[0][1]
