"""The page's static files, their paths and media types. They hold no secret, so everybody may load them."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES = (
    *("index.html", "page.css", "page.js", "net.js", "dom.js"),
    *("streams.js", "ask.js", "timeline.js", "queries.js", "mosaic.js"),
)

PAGE = {"/" if name == "index.html" else f"/{name}": _FOLDER / name for name in _FILES}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def media_type(file: Path) -> str:
    """Return the media type of a file of the page."""
    return _TYPES[file.suffix]
