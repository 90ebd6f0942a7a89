"""Serves the files of the page and of the JavaScript client from memory."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import PurePosixPath

from attrs import frozen
from starlette.requests import Request
from starlette.responses import Response

from relay.model.origin import normal_origin

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors "
)
"""Nothing inline and nothing from other origins. Ends with who may show the page in a frame."""
MODULE_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""Of files that are no document and no worker: what they may load, the page that has them says.
Short, since there are many of them."""

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
PAGE_FILES = (
    "alerts.js",
    "api.js",
    "broadcast.js",
    "dom.js",
    "encoder.js",
    "icon.svg",
    "layers.js",
    "notify.js",
    "operate.js",
    "operator.js",
    "page.css",
    "page.js",
    "people.js",
    "pictures.js",
    "rates.js",
    "renewal.js",
    "share.js",
    "watch.js",
)
CLIENT_FILES = {
    f"/{name}": f"client/{name}"
    for name in (
        "core/alerts.js",
        "core/client.js",
        "core/codec.js",
        "core/link.js",
        "core/subscription.js",
        "core/uplink.js",
        "player/decoder.js",
        "player/screen.js",
        "player/sharing.js",
        "relay-client.d.ts",
        "relay-client.js",
        "relay-player.d.ts",
        "relay-player.js",
    )
}
"""Pages of any origin may import these."""
FILES = {
    "/": "page/index.html",
    "/push-worker.js": "page/push-worker.js",  # beside the page: what it serves is below its path
    "/app.webmanifest": "page/app.webmanifest",
    **{f"/page/{name}": f"page/{name}" for name in PAGE_FILES},
    **CLIENT_FILES,
}
MODULES = frozenset(path for path in FILES if path.endswith(".js")) - {"/push-worker.js"}


@frozen
class Asset:
    """One file, which is read and compressed when it is first asked for; that takes 1 ms."""

    _path: str
    _name: str
    _policy: str

    @property
    def content(self) -> bytes:
        return _read(self._name)[0]

    @property
    def headers(self) -> dict[str, str]:
        headers = {
            "Content-Type": MEDIA_TYPES[PurePosixPath(self._name).suffix],
            "Content-Security-Policy": self._policy,
            "Cache-Control": "no-cache",  # revalidate: a cached file may be from an earlier version
            "ETag": _read(self._name)[2],
            "Vary": "Accept-Encoding",
        }
        if self._path in CLIENT_FILES:
            headers["Access-Control-Allow-Origin"] = "*"
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return headers

    async def __call__(self, request: Request) -> Response:
        content, compressed, etag = _read(self._name)
        if etag in request.headers.get("If-None-Match", ""):
            return Response(None, 304, self.headers)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return Response(compressed, headers={**self.headers, "Content-Encoding": "gzip"})
        return Response(content, headers=self.headers)


def load_assets(frame_ancestors: Sequence[str] = ()) -> dict[str, Asset]:
    """All files, by URL path. Pages of the origins `frame_ancestors` may show the page in a
    frame."""
    origins = " ".join(filter(None, map(normal_origin, frame_ancestors))) or "'none'"
    page_policy = PAGE_POLICY + origins
    return {
        path: Asset(path, name, MODULE_POLICY if path in MODULES else page_policy)
        for path, name in FILES.items()
    }


@cache
def _read(name: str) -> tuple[bytes, bytes, str]:
    """A file, the same compressed, and its ETag; once for each process."""
    content = (resources.files("relay.web") / name).read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return content, gzip.compress(content, 9, mtime=0), etag
