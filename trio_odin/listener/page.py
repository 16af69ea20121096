"""The live page: what a browser gets at `/`, and what that loads.

Its source is clients/js/page, and `npm run build:page` writes it to assets/, compressed. A browser
asks for three files more; their address has a digest of their content, so caches keep them, and a
page that was loaded before an update never gets a script of after it.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Final

from trio_odin.net.http import Headers, Request, Response

FOREVER: Final = ("Cache-Control", "public, max-age=31536000, immutable")
VARY: Final = ("Vary", "Accept")
_ASSETS: Final = files("trio_odin.listener").joinpath("assets")
_TYPES: Final = {
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_DIGEST_DIGITS: Final = 16
_NO_SNIFFING: Final = ("X-Content-Type-Options", "nosniff")
# Nothing from anywhere else. 'self' covers WebSockets to the address that the page came from.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HTML_HEADERS: Final[Headers] = (
    ("Cache-Control", "no-cache"),
    VARY,
    ("Content-Security-Policy", _POLICY),
    ("Referrer-Policy", "no-referrer"),
    _NO_SNIFFING,
)


class Page:
    """The page and its files, read once and kept as they are sent."""

    def __init__(self) -> None:
        packed = {name: _ASSETS.joinpath(f"{name}.gz").read_bytes() for name in _TYPES}
        plain = {name: gzip.decompress(content) for name, content in packed.items()}
        digest = hashlib.sha256(b"".join(plain.values())).hexdigest()[:_DIGEST_DIGITS]
        folder = f"page/{digest}"
        html = _ASSETS.joinpath("index.html").read_text("utf-8").replace("{assets}", folder)
        self._html = Response(200, html.encode(), "text/html; charset=utf-8", _HTML_HEADERS)
        self._plain = _responses(folder, plain)
        self._packed = _responses(folder, packed, ("Content-Encoding", "gzip"))

    def respond(self, request: Request) -> Response | None:
        """Return the page or one of its files; None if the request is for something else.

        `/` is the page only for a client that names text/html, as browsers do: others want text.
        """
        if request.path == "/":
            return self._html if _quality(request, b"accept", "text/html") else None
        is_packed = _quality(request, b"accept-encoding", "gzip")
        return (self._packed if is_packed else self._plain).get(request.path)


def _responses(
    folder: str, contents: Mapping[str, bytes], *headers: tuple[str, str]
) -> dict[str, Response]:
    common = (FOREVER, ("Vary", "Accept-Encoding"), _NO_SNIFFING, *headers)
    return {
        f"/{folder}/{name}": Response(200, content, _TYPES[name], common)
        for name, content in contents.items()
    }


def _quality(request: Request, header: bytes, wanted: str) -> float:
    """How much a client wants what it names (RFC 9110, 12.4.2); 0 if it does not name it."""
    for choice in _choices(request, header):
        name, *parameters = (part.strip().lower() for part in choice.split(";"))
        if name == wanted:
            weights = [text[2:] for text in parameters if text.startswith("q=")]
            try:
                return float(weights[0]) if weights else 1.0
            except ValueError:
                return 0.0
    return 0.0


def _choices(request: Request, header: bytes) -> Iterator[str]:
    for name, value in request.headers:
        if name == header:
            yield from value.decode("latin-1").split(",")
