"""Ranges of dependencies, as pyproject.toml writes them; .ci/oldest runs the package at both of their ends."""

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import softprompt

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
LOADER = SourceFileLoader("oldest", str(ROOT / ".ci" / "oldest"))
ends = module_from_spec(spec_from_loader(LOADER.name, LOADER))
LOADER.exec_module(ends)
DEPENDENCIES = ends.project()["dependencies"]
LINE = re.compile(r'^  "(?P<range>[^"]+)",(?P<rest>.*)$')


def requirements(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines]


def uncommented(text: str, dependencies: list[str]) -> list[str]:
    """The dependencies whose line says no reason."""
    lines = [found for line in text.splitlines() if (found := LINE.match(line))]
    reasons = {found["range"]: found["rest"].strip().removeprefix("#").strip() for found in lines}
    return [each for each in dependencies if not reasons[each]]


def outside(dependencies: list[str], exact: dict[str, str]) -> list[str]:
    """The dependencies whose version in constraints.txt is missing or not in their range."""
    return [
        str(each)
        for each in requirements(dependencies)
        if exact.get(canonicalize_name(each.name), "none") not in each.specifier
    ]


def test_each_dependency_says_why_it_is_there() -> None:
    assert not uncommented(TEXT, DEPENDENCIES)


def test_each_dependency_has_one_lower_bound() -> None:
    """It ends where there is none."""
    assert all(ends.lower(each) for each in requirements(DEPENDENCIES))


def test_the_tested_version_of_each_dependency_is_in_its_range() -> None:
    assert not outside(DEPENDENCIES, ends.exact())


def test_both_ends_are_what_the_file_says() -> None:
    """torch alone stays where constraints.txt has it."""
    torch = f"torch=={ends.exact()['torch']}"
    oldest, newest = ends.wanted(newest=False), ends.wanted(newest=True)
    assert torch in oldest and torch in newest and "numpy==2.0" in oldest and "peft==0.21.2" in oldest
    assert {"beartype>=0.20", *map(str, requirements(DEPENDENCIES))} - set(newest) == {"torch>=2.6"}
    assert not [each for each in oldest if "==" not in each] and len(oldest) == len(newest) > len(DEPENDENCIES)


def test_the_version_is_written_once() -> None:
    told = ends.project()
    assert told["dynamic"] == ["version"] and "version" not in told
    assert 'version = { attr = "softprompt._version.__version__" }' in TEXT
    written = [
        path for path in ROOT.glob("src/**/*.py") if re.search(r"^_*version_* *=", path.read_text("utf-8"), re.I | re.M)
    ]
    assert written == [ROOT / "src" / "softprompt" / "_version.py"]
    assert softprompt.__version__ in written[0].read_text(encoding="utf-8")


def test_each_backbone_has_a_version_of_its_own_that_the_demo_takes() -> None:
    demo = {each.name: each for each in requirements(ends.project()["optional-dependencies"]["demo"])}
    for path in sorted(ROOT.glob("backbones/*/pyproject.toml")):
        told = ends.project(path)
        assert told["version"] in demo[told["name"]].specifier, path


def test_the_checks_see_what_they_forbid() -> None:
    """Negative control."""
    silent = '  "a>=1",  # for this\n  "b>=1",\n  "c>=1",  #\n'
    assert uncommented(silent, ["a>=1", "b>=1", "c>=1"]) == ["b>=1", "c>=1"]
    assert outside(["a>=2", "b-c>=1,<3", "d>=1"], {"a": "1.9", "b-c": "2"}) == ["a>=2", "d>=1"]
    for bad in ("a", "a<2", "a!=1"):
        with pytest.raises(SystemExit, match="lower bound"):
            ends.lower(Requirement(bad))
