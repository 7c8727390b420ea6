"""Hooks of mkdocs.yml: README.md as the site's first page, and links to files that are not pages.

A page may link to any file of the repository, as it is read there. On the site such a link becomes its own text; one
to a file that does not exist stays, and fails the strict build like any broken link.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent
DOCS = ROOT / "docs"
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Any, *, config: Any) -> Any:
    """Add README.md as index.md."""
    text = re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text())
    text = re.sub(r"""(src|srcset)="docs/""", r'\1="', text)
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ into their text."""
    is_readme = page.file.src_uri == "index.md"
    folder = (DOCS / page.file.src_uri).parent

    def shown(link: re.Match[str]) -> str:
        near = Path(os.path.normpath(folder / link[2]))
        if near.exists() and near.is_relative_to(DOCS):
            return link[0]
        path = Path(os.path.normpath((ROOT if is_readme else folder) / link[2]))
        return link[1] if path.exists() and not path.is_relative_to(DOCS) else link[0]

    return _LINK.sub(shown, markdown)
