"""What to read: a camera, a device or a file, and all that FFmpeg is told about it.

FFmpeg opens nothing but what the kind of a source needs: its protocols are listed, and its demuxer
is named. What is said about a source never shows its credentials.
"""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from attrs import field, frozen

from relay.errors import ConfigError
from relay.logs.printable import printable

SourceKind = Literal["rtsp", "mjpeg", "file", "device"]

PROTOCOLS: Mapping[SourceKind, tuple[str, ...]] = {
    "rtsp": ("rtsp", "rtp", "udp", "tcp", "tls"),
    "mjpeg": ("http", "https", "tcp", "tls"),
    "file": ("file",),
    "device": (),
}
"""What FFmpeg may open, by the kind of the source."""
KIND_OF_SCHEME: Mapping[str, SourceKind] = {
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "http": "mjpeg",
    "https": "mjpeg",
}
"""By scheme."""
FILE_FORMATS = {
    "avi": "avi",
    "h264": "h264",
    "m4v": "mov",
    "mjpeg": "mjpeg",
    "mjpg": "mjpeg",
    "mkv": "matroska",
    "mov": "mov",
    "mp4": "mov",
    "mpjpeg": "mpjpeg",
    "ts": "mpegts",
    "webm": "matroska",
}
"""Demuxers by the ending of a file's name."""
TOLD_OF_IN_PATHS = re.compile(r"[=&]")
"""Cameras take a password in the path, too: `/user=admin&password=secret`."""
MAX_SOURCE_LENGTH = 4096
IO_ERROR, INTERRUPTED = "Input/output error", "Immediate exit requested"
AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, Alpine
)


@frozen
class IngestSource:
    """A source that may be read."""

    kind: SourceKind
    address: str = field(repr=False)
    """What FFmpeg opens, with the credentials."""
    shown: str
    """The same for people, without them."""
    demuxer: str
    has_credentials: bool = False
    verifies_tls: bool = True
    """Whether the certificate of a camera is checked."""

    @property
    def options(self) -> dict[str, str]:
        """The options for FFmpeg."""
        options = {"protocol_whitelist": ",".join(PROTOCOLS[self.kind]) or "none"}
        if self.kind == "rtsp":
            options |= {
                "rtsp_flags": "prefer_tcp",
                "allowed_media_types": "video",
                "analyzeduration": "1000000",  # microseconds
                "probesize": "1000000",  # bytes
                "fpsprobesize": "0",  # the rate does not matter
            }
        if self.kind == "mjpeg":
            options |= {"max_redirects": "0", "codec_whitelist": "mjpeg"}
        if self.checks_certificate:
            options |= {"tls_verify": "1"}
            authorities = find_authorities()
            if authorities is not None:
                options |= {"ca_file": authorities}
        return options

    @property
    def checks_certificate(self) -> bool:
        scheme = urlsplit(self.address).scheme.lower()
        return self.verifies_tls and scheme in {"https", "rtsps"}

    def explain(self, reason: str) -> str:
        """What FFmpeg says, in plainer words where it does not tell a user what is wrong."""
        if reason == INTERRUPTED:
            return "it sends nothing"
        if reason == IO_ERROR and self.checks_certificate:
            return "no TLS, or no valid certificate, which --insecure-tls does not check"
        return reason


def find_authorities() -> str | None:
    """The file with the certificates that this system trusts: FFmpeg does not find it."""
    usual = ssl.get_default_verify_paths().cafile
    return next((each for each in (usual, *AUTHORITIES) if each and Path(each).is_file()), None)


def parse_source(
    text: str, *, kind: SourceKind | None = None, insecure_tls: bool = False
) -> IngestSource:
    """The source that a user names; `ConfigError`, which shows no credentials.

    `kind` is given for files and devices that are named without `file:` or `device:`.
    """
    if not text or len(text) > MAX_SOURCE_LENGTH or not text.isprintable():
        raise ConfigError(f"the source is not a URL or path of up to {MAX_SOURCE_LENGTH} letters")
    for prefix in ("file", "device"):
        if kind is None and text.startswith(f"{prefix}:"):
            return parse_source(text.removeprefix(f"{prefix}:"), kind=prefix)
    if kind == "file":
        return _file(text)
    if kind == "device":
        if sys.platform != "linux":
            raise ConfigError("devices (V4L2) can be read on Linux only")
        shown = f"device {printable(text)}"
        return IngestSource("device", str(Path(text).absolute()), shown, "video4linux2")
    return _url(text, insecure_tls=insecure_tls)


def _file(text: str) -> IngestSource:
    path = Path(text).absolute()
    ending = path.suffix.removeprefix(".").lower()
    if ending not in FILE_FORMATS:
        known = ", ".join(sorted(FILE_FORMATS))
        raise ConfigError(
            f"cannot tell the format of {printable(text)} by its name: it should end in {known}"
        )
    if not path.is_file():
        raise ConfigError(f"there is no file {printable(text)}")
    return IngestSource("file", f"file:{path}", printable(path.name), FILE_FORMATS[ending])


def _url(text: str, *, insecure_tls: bool) -> IngestSource:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError("the source is not a valid URL") from None
    kind = KIND_OF_SCHEME.get(parts.scheme.lower())
    if kind is None or not host:
        raise ConfigError(
            "the source should begin with rtsp://, rtsps://, http:// or https://; name a file with"
            " file:PATH or --file, and a device with device:PATH or --device"
        )
    named = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme.lower()}://{named}{'' if port is None else f':{port}'}"
    return IngestSource(
        kind,
        text,
        printable(shown + _shown_path(parts)),
        "rtsp" if kind == "rtsp" else "mpjpeg",
        has_credentials="@" in parts.netloc or _hides_something(parts),
        verifies_tls=not insecure_tls,
    )


def _shown_path(parts: SplitResult) -> str:
    path = "/…" if TOLD_OF_IN_PATHS.search(parts.path) else parts.path
    return f"{path}?…" if parts.query or parts.fragment else path


def _hides_something(parts: SplitResult) -> bool:
    return bool(parts.query or parts.fragment or TOLD_OF_IN_PATHS.search(parts.path))
