"""The site of the documentation: complete, without a broken link, without a network, and equal to what a code host shows."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import softprompt

pytest.importorskip("mkdocs", reason="the site is the extra 'docs'")

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SHAPES = ("table", "tr", "li", "ul", "ol", "h1", "h2", "h3", "pre", "img")


class Settings(yaml.SafeLoader):
    """Reads mkdocs.yml; a Python object in it is None."""


Settings.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
MKDOCS = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=Settings)


def named(nav: Any) -> Iterator[str]:
    """Pages of a navigation, at any depth."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from named(part)


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hook", DOCS / "hook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_navigation_names_every_page_once(hook: ModuleType) -> None:
    shown = list(named(MKDOCS["nav"]))
    written = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    made = [*hook.PAGES.values(), *(f"api/{package}.md" for package in hook.packages())]
    assert sorted(shown) == sorted([*written, *made])


def test_every_public_name_has_its_place(hook: ModuleType) -> None:
    """What `softprompt` hands out is a package with a page of its own, or stands on the page of names, once."""
    page = re.findall(r"^::: softprompt\.(\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(page) == len(set(page))
    assert {*page, *hook.packages(), "__version__"} == {*softprompt.__all__, "__version__"}


def test_every_public_name_is_rendered(site: Path, hook: ModuleType) -> None:
    anchors = set(re.findall(r'id="(softprompt\.[\w.]+)"', (site / "api.html").read_text(encoding="utf-8")))
    assert {f"softprompt.{name}" for name in softprompt.__all__} - {
        f"softprompt.{package}" for package in hook.packages()
    } <= anchors
    for page in (site / "api.html", *(site / "api").glob("*.html")):  # a file that is called as its function is
        assert len(re.findall("doc-module", page.read_text(encoding="utf-8"))) <= (page.parent.name == "api"), page
    text = (site / "api" / "objectives.html").read_text(encoding="utf-8")
    assert 'id="softprompt.objectives.TSLoss"' in text and "../api.html#softprompt.objective" in text


def test_nothing_of_the_site_asks_a_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="?(?:https?:)?//[^>]*', text), page


def test_links_that_leave_docs_are_followed(site: Path) -> None:
    assert 'href="changelog.html"' in (site / "results.html").read_text(encoding="utf-8")
    suites = (site / "repository" / "results" / "suites" / "index.html").read_text(encoding="utf-8")
    assert 'href="few-shot.jsonl"' in suites
    shown = site / "repository" / "results" / "suites" / "few-shot.jsonl"
    assert shown.read_bytes() == (ROOT / "results" / "suites" / "few-shot.jsonl").read_bytes()


def test_pages_have_the_shape_that_a_code_host_shows(site: Path, hook: ModuleType) -> None:
    """The two read lists and tables by other rules; a list that falls into a paragraph is found here."""
    markdown_it = pytest.importorskip("markdown_it")
    reader = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table")
    sources = {name: ROOT / name for name in hook.PAGES} | {
        path.relative_to(DOCS).as_posix(): path for path in DOCS.rglob("*.md") if path.name != "api.md"
    }
    for name, source in sources.items():
        made = (site / hook.PAGES.get(name, name)).with_suffix(".html").read_text(encoding="utf-8")
        article = made[made.index("<article") : made.index("</article>")]
        expected = reader.render(source.read_text(encoding="utf-8"))
        for tag in SHAPES:
            counted = [len(re.findall(rf"<{tag}[ >]", text)) for text in (expected, article)]
            assert counted[0] == counted[1], (name, tag, counted)


def test_lists_are_spaced_as_the_site_reads_them(hook: ModuleType) -> None:
    assert hook.spaced("Words:\n- one\n  goes on\n  - below\n    and on\n- two\n\nNo list.\n    code\n") == (
        "Words:\n\n- one\n    goes on\n    - below\n        and on\n- two\n\nNo list.\n    code\n"
    )
    page = DOCS / "tasks" / "few-rows.md"
    linked = "[a](../bench.md) [b](../../CHANGELOG.md#new) [c](https://d.e)\n```\n[f](../bench.md)\n- g\n```\n"
    assert hook.followed(linked, page) == linked.replace("../../CHANGELOG", "../changelog")
