"""The documentation as a site: `nox -s site` makes it from the pages of the repository.

The pages are written for readers of the repository, so links may leave `docs/`. Such a link leads
to the forge if TRIO_ODIN_REPOSITORY has its address, and is plain text without.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import trio_odin

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REPOSITORY = os.environ.get("TRIO_ODIN_REPOSITORY", "").rstrip("/")

project = "trio-odin"
release = version = trio_odin.__version__
extensions = ["myst_parser"]
exclude_patterns = ["templates", "capacity", "site"]
suppress_warnings = ["misc.highlighting_failure"]  # examples of wrong JSON
html_theme = "furo"
html_title = f"trio-odin {release}"
html_show_copyright = html_show_sourcelink = html_copy_source = False
html_extra_path = ["../asyncapi.json"]
templates_path = ["."]
html_sidebars = {
    "**": [
        *("sidebar/brand.html", "sidebar/search.html", "sidebar/scroll-start.html"),
        *("sidebar/navigation.html", "versions.html", "sidebar/scroll-end.html"),
    ]
}
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]

_PARTS = {
    "Clients": ["clients/README", "clients/*", "protocol"],
    "Operating": ["operating", "readiness", "configuration", "runbooks/*", "logs", "metrics"],
    "Measured": ["benchmarks", "capacity", "reliability", "conformance", "scale"],
    "Inside": ["architecture", "decisions/*"],
}
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    """Make a page of the repository a page of the site."""
    page = Path(app.env.doc2path(name))

    def lead(link: re.Match[str]) -> str:
        target = (page.parent / link[1]).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            raise ExtensionError(f"{page}: a link leads to {link[1]}, which does not exist")
        path = target.relative_to(ROOT).as_posix()
        is_here = target.is_relative_to(DOCS) and target.name != "report.html"
        if is_here and target.suffix in {".md", ".png", ".svg", ".json"}:
            return link[0]
        kind = "tree" if target.is_dir() else "blob"
        where = f"{REPOSITORY}/{kind}/v{release}/{path}{link[2] or ''}" if REPOSITORY else ""
        return f"]({where})" if where else "]{.file}"

    source[0] = _LINK.sub(lead, source[0])
    if name == app.config.root_doc:
        source[0] += "".join(
            f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {part}\n\n"
            + "\n".join(pages)
            + "\n```\n"
            for part, pages in _PARTS.items()
        )


def _list_versions(app: Sphinx, error: Exception | None) -> None:
    """Write a page beside the folders of all versions, the newest first."""
    if error is not None:
        return
    folders = [path.parent.name for path in app.outdir.parent.glob("*/index.html")]
    folders.sort(key=lambda name: [int(part) for part in re.findall(r"\d+", name)], reverse=True)
    links = "".join(f'<li><a href="{name}/index.html">{name}</a>' for name in folders)
    head = '<!doctype html><meta charset="utf-8"><title>trio-odin</title><h1>trio-odin</h1>'
    (app.outdir.parent / "index.html").write_text(f"{head}<ul>{links}</ul>\n", encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("build-finished", _list_versions)
