"""What MkDocs does besides: pages that stand outside docs/, and links as they are in the repository.

In the repository every link leads to a file or a folder.  The site has the pages of docs/ at its root, and those of
OUTSIDE below the paths of their own.  A link to anything else becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# The path in the repository, and in the site.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "rulesets/README.md": "rulesets.md",
    "rulesets/library/README.md": "library.md",
    "state/README.md": "state-formats.md",
}
INFO = re.compile(r"^(```\w+) .*$", re.MULTILINE)
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def in_site(path: str) -> str | None:
    """The page of the site for a path of the repository, a folder's README for a folder; None if the site lacks it."""
    if (ROOT / path).is_dir():
        path = posixpath.join(path, "README.md")
    if path in OUTSIDE:
        return OUTSIDE[path]
    return path.removeprefix("docs/") if path.startswith("docs/") and path.endswith(".md") else None


def rewritten(text: str, path: str) -> str:
    """The page at `path` of the repository, its links as the site needs them."""
    folder, page = posixpath.dirname(path), in_site(path) or ""

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target:
            return found[0]
        place = in_site(posixpath.normpath(posixpath.join(folder, target)))
        return f"[{label}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})" if place else label

    parts = FENCED.split(text)
    # Python-Markdown takes a fence with one word behind it and no more.
    return "".join(INFO.sub(r"\1", part) if index % 2 else LINK.sub(link, part) for index, part in enumerate(parts))


def on_config(config: Any) -> Any:
    """List every decision below the page that introduces them."""
    decisions = sorted(path.name for path in (ROOT / "docs/adr").glob("[0-9]*.md"))
    config.nav.append({"Decisions": ["adr/README.md", *(f"adr/{name}" for name in decisions)]})
    return config


def on_files(files: Files, *, config: Any) -> Files:
    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    path = {page: path for path, page in OUTSIDE.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return rewritten(markdown, path)
