"""What the site needs beyond docs/: pages of the root, files that pages link to, and a page of each package's names.

Pages are written for a code host, where `../CHANGELOG.md` and `../results/suites` are links like others. Here each such
link is followed: Markdown becomes a page, a folder a page that lists it, and any other file lies beside the pages.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "softprompt"
# of the root -> where it is on the site
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
OUTSIDE = "repository"
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
ITEM = re.compile(r" *([-*+]|\d+\.) ")
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def site_path(target: Path) -> str:
    """Where a file or a folder of the repository is on the site, from the site's root."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    path = target.relative_to(ROOT).as_posix()
    return PAGES.get(path) or f"{OUTSIDE}/{path}" + ("/index.md" if target.is_dir() else "")


def targets(text: str, source: Path) -> list[Path]:
    """Files and folders of the repository that a page links to."""
    found = [match[2] for part in FENCE.split(text)[::2] for match in LINK.finditer(part)]
    return [(source.parent / link).resolve() for link in found if ":" not in link]


def followed(text: str, source: Path) -> str:
    """The page's text as the site has it, with links to places of the site."""
    here = posixpath.dirname(site_path(source))

    def follow(match: re.Match[str]) -> str:
        if ":" in match[2]:  # an address, not a path
            return match[0]
        return match[1] + posixpath.relpath(site_path((source.parent / match[2]).resolve()), here or ".") + match[3]

    parts = FENCE.split(text)
    return "".join(part if at % 2 else spaced(LINK.sub(follow, part)) for at, part in enumerate(parts))


def spaced(text: str) -> str:
    """Lists as the site's Markdown wants them: a blank line in front, and four spaces for each level."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        item = ITEM.match(line)
        depth = len(line) - len(line.lstrip())
        if item and not inside and depth < 2:
            inside = True
            lines.append("")
        elif inside and line.strip() and depth < 2 and not item and not lines[-1].strip():
            inside = False
        lines.append(" " * (0 if depth < 2 else 4 if depth < 4 else 8) + line.lstrip() if inside else line)
    return "\n".join(lines) + "\n"


def listing(folder: Path) -> str:
    """A page that lists a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return "\n".join([f"# {folder.relative_to(ROOT).as_posix()}", "", *(f"- [{name}]({name})" for name in names), ""])


def exported(package: str, face: str = "__init__.py") -> list[str]:
    """Functions and classes that a package's face hands out, in its order; constants carry no docstring."""
    tree = ast.parse((SOURCE / package / face).read_text(encoding="utf-8"))
    made = [
        alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) and node.module for alias in node.names
    ]
    return [name for name in made if name and not name.isupper()]


def reference(package: str) -> str:
    """A page of a package's names; those that softprompt itself hands out stand on the page of these."""
    name, above = "softprompt." + package, set(exported("", "__init__.pyi"))
    names = exported(package)
    links = ", ".join(f"[{each}](../api.md#softprompt.{each})" for each in names if each in above)
    files = {path.stem for path in (SOURCE / package).iterdir()}
    own = "\n\n".join(
        f"::: {name}.{each}" + (f".{each}" if each in files else "") for each in names if each not in above
    )
    face = f"::: {name}\n    options:\n      members: false\n      show_root_heading: false"
    also = f"Also: {links}." if links else ""
    return "\n\n".join([f"# {name}", face, also, own]) + "\n"


def packages() -> list[str]:
    """The public packages of softprompt."""
    tree = ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8"))
    return [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module is None
        for alias in node.names
    ]


def on_files(files: Files, config: Any) -> Files:
    """Add what docs/ does not hold, until no page links to something that is missing."""
    for name, uri in PAGES.items():
        files.append(
            File.generated(config, uri, content=followed((ROOT / name).read_text(encoding="utf-8"), ROOT / name))
        )
    for package in packages():
        files.append(File.generated(config, f"api/{package}.md", content=reference(package)))
    waiting = [*DOCS.rglob("*.md"), *(ROOT / name for name in PAGES)]
    while waiting:
        page = waiting.pop()
        for target in targets(page.read_text(encoding="utf-8"), page):
            uri = site_path(target)
            if target.is_relative_to(DOCS) or files.get_file_from_path(uri) or not target.exists():
                continue  # a link to nothing is left to the check of links
            beside = sorted(path for path in target.iterdir() if path.is_file()) if target.is_dir() else []
            if target.is_dir():
                content: str | bytes = listing(target)
            elif target.suffix == ".md":
                content = followed(target.read_text(encoding="utf-8"), target)
                waiting.append(target)
            else:
                content = target.read_bytes()
            files.append(File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
            for path in beside:
                if not files.get_file_from_path(site_path(path)):
                    files.append(
                        File.generated(
                            config, site_path(path), content=path.read_bytes(), inclusion=InclusionLevel.NOT_IN_NAV
                        )
                    )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of the pages in docs/ as they are on the site."""
    source = page.file.abs_src_path
    if source is None or not Path(source).is_relative_to(DOCS):
        return markdown
    return followed(markdown, Path(source))
