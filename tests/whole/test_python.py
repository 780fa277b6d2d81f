"""The oldest Python of pyproject.toml can read the package; what a newer one brought is an error here, on any Python."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import softprompt

ROOT = Path(__file__).parents[2]
SOURCE = Path(softprompt.__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OLDEST = PYPROJECT["project"]["requires-python"].removeprefix(">=")
VERSION = tuple(map(int, OLDEST.split(".")))
# `.long()` is a tensor's: read as the type of Python 2, it would end the reading of its file
VERMIN = (
    str(Path(sys.executable).with_name("vermin")),
    "--quiet",
    "--no-tips",
    "--no-parse-comments",
    "--exclude",
    "long",
    "--violations",
)


def newer_names(place: Path) -> str:
    """Modules, functions and arguments of the standard library in the files of a folder that the oldest Python lacks."""
    words = [*VERMIN, f"--target={OLDEST}-", str(place)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    assert "could not be combined" not in done.stdout, f"a file was not judged: {done.stdout}"
    return done.stdout.strip() if done.returncode else ""


def test_the_oldest_python_reads_each_file() -> None:
    for path in sorted(SOURCE.rglob("*.py*")):
        if path.suffix in (".py", ".pyi"):
            ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=VERSION)


def test_no_name_is_newer_than_the_oldest_python() -> None:
    assert not newer_names(SOURCE)


@pytest.mark.parametrize(
    "line",
    [
        "from typing import override",
        "import copy\ncopy.replace",
        "from pathlib import Path\nPath().walk()",
        "import itertools\nitertools.batched([], 2)",
        "import sys\nsys.monitoring",
    ],
)
def test_the_check_sees_what_it_forbids(tmp_path: Path, line: str) -> None:
    """Negative control: names of 3.12 and 3.13."""
    (tmp_path / "newer.py").write_text(line + "\n")
    assert "newer.py" in newer_names(tmp_path)


def test_the_type_checker_takes_the_oldest_python() -> None:
    """ruff reads requires-python by itself."""
    assert PYPROJECT["tool"]["mypy"]["python_version"] == OLDEST
    assert "target-version" not in PYPROJECT["tool"]["ruff"]
