"""The files of the page and of the client, read once and answered as they are. Floor 4."""

from __future__ import annotations

import gzip
import hashlib
from importlib import resources

from attrs import frozen
from starlette.requests import Request
from starlette.responses import Response

PAGE_POLICY = "; ".join(
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
"""Nothing inline, and nothing from elsewhere."""

JAVASCRIPT = "text/javascript; charset=utf-8"
FILES = {
    "/relay-client.js": ("client/relay-client.js", JAVASCRIPT),
    "/relay-client.d.ts": ("client/relay-client.d.ts", "text/plain; charset=utf-8"),
}
"""What is answered with which file; the client may be imported by pages from anywhere."""
FOR_ALL = frozenset(FILES)


@frozen
class Asset:
    """One file, and the same packed."""

    content: bytes
    packed: bytes
    headers: dict[str, str]

    async def __call__(self, request: Request) -> Response:
        etag = self.headers["ETag"]
        if etag in request.headers.get("If-None-Match", ""):
            return Response(None, 304, self.headers)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return Response(self.packed, headers={**self.headers, "Content-Encoding": "gzip"})
        return Response(self.content, headers=self.headers)


def load_assets() -> dict[str, Asset]:
    """All of them, by path."""
    return {path: _load(path, *file) for path, file in FILES.items()}


def _load(path: str, name: str, media_type: str) -> Asset:
    content = (resources.files("relay.web") / name).read_bytes()
    headers = {
        "Content-Type": media_type,
        "Cache-Control": "no-cache",  # ask each time: what is stored may be of an earlier relay
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        "Vary": "Accept-Encoding",
    }
    if path in FOR_ALL:
        headers["Access-Control-Allow-Origin"] = "*"
    return Asset(content, gzip.compress(content, 9, mtime=0), headers)
